package migrate_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/metastore"
	"claviger/migrate"
)

// TestObstacles: Obstacles says in the words of Finish what the journal shows, without the source, and writes nothing.
func TestObstacles(t *testing.T) {
	b := newTestMigration(t)
	ctx := t.Context()
	opts := migrate.FinishOptions{Since: noon.Add(-migrate.DefaultUnused), Verdict: true,
		NotRestarted: []string{"the node on h (process 1)"}}
	obstacles := func() []string {
		t.Helper()
		list, err := b.engine(t).Obstacles(ctx, opts)
		must(t, err)
		return list
	}
	if list := obstacles(); len(list) != 1 || !strings.Contains(list[0], "nothing was migrated") {
		t.Errorf("before any run: %q", list)
	}
	b.add(t, "k", 2)
	b.run(t)
	must(t, b.store.AddUse(ctx, []metastore.Use{
		{Source: b.source.URI(), Version: "k@1", Op: "reencrypt", Count: 500, Last: noon.Add(-2 * time.Hour)}}))
	before, err := b.engine(t).Status(ctx)
	must(t, err)
	list := obstacles()
	f, err := b.engine(t).Finish(ctx, opts)
	must(t, err)
	if !slices.Equal(list, f.Refusals) || len(list) != 3 {
		t.Errorf("%q\nFinish: %q", list, f.Refusals)
	}
	if before.Runs[0].Compared != nil {
		t.Error("Obstacles has written a comparison")
	}
	unlock, _, err := b.store.TryLock(ctx, migrate.LockName)
	must(t, err)
	defer unlock()
	if list := obstacles(); !slices.Contains(list, "a process is migrating now") {
		t.Errorf("while a process migrates: %q", list)
	}
	if v, err := b.engine(t).LastVerdict(ctx); v != nil || err != nil {
		t.Errorf("%+v, %v", v, err)
	}
}
