package migrate_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/migrate"
	"claviger/migrate/report"
	"claviger/provider"
)

// freeMigration is a testMigration with two migrated keys: "gone", which was deleted here since, and "here".
type freeMigration struct {
	*testMigration
	now time.Time
}

func newFreeMigration(t *testing.T) *freeMigration {
	t.Helper()
	b := &freeMigration{newTestMigration(t), noon}
	b.add(t, "gone", 1)
	b.add(t, "here", 1)
	b.cfg.Now = func() time.Time { b.now = b.now.Add(time.Second); return b.now }
	b.run(t)
	must(t, b.target.Delete(t.Context(), "gone"))
	return b
}

// finish ends the migration, with the statement that the source is gone.
func (b *freeMigration) finish(t *testing.T) {
	t.Helper()
	b.cfg.Source = nil
	end, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true,
		SourceGone: true, Get: func(string) (string, string, bool) { return "", "", false }})
	if err != nil || !end.Finished {
		t.Fatalf("%v, %v", end, err)
	}
	b.cfg.Source = b.source
}

// wantFreed checks which names are free, separated by commas.
func (b *freeMigration) wantFreed(t *testing.T, want string) {
	t.Helper()
	list, err := migrate.Origins(t.Context(), b.store, b.target.URI())
	must(t, err)
	var got []string
	for _, o := range list {
		if o.Freed != nil {
			got = append(got, o.Key)
		}
	}
	if s := strings.Join(got, ","); s != want {
		t.Errorf("freed %q, want %q", s, want)
	}
}

// TestFreeNamesRefuses: FreeNames frees all names or none, and none before the end of the migration.
func TestFreeNamesRefuses(t *testing.T) {
	b := newFreeMigration(t)
	refused := func(key, says string) {
		t.Helper()
		_, err := b.engine(t).FreeNames(t.Context(), "root", "gone", key)
		if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v does not say %q", key, err, says)
		}
	}
	refused("gone", "was not finished: claviger migrate finish")
	b.finish(t)
	refused("never", "has no key never")
	refused("here", "key here is here")
	b.wantFreed(t, "") // one name that cannot be freed keeps the others
}

// TestFreeNames: names are kept after the end of a migration until an administrator frees them, and again once
// another migration lists them.
func TestFreeNames(t *testing.T) {
	b := newFreeMigration(t)
	b.finish(t)
	b.cfg.Store = withDeletedKey{b.store, metastore.DeletedKey{Key: metastore.Key{
		Metadata: claviger.Metadata{Name: "gone"}, List: []metastore.Version{{ID: "0"}, {ID: "1"}}}}}
	names, err := b.engine(t).FreeNames(t.Context(), "root", "gone")
	if text := textOf(report.Freed, names); !strings.Contains(text, "The name gone is free") ||
		!strings.Contains(text, "(claviger key undelete gone --key-version gone@1)") {
		t.Errorf("%s", text)
	}
	if err != nil || len(names.Freed) != 1 || names.Freed[0].User != "root" ||
		names.Freed[0].Host != "new.example.com" {
		t.Fatalf("%+v, %v", names, err)
	}
	b.wantFreed(t, "gone")
	status, err := b.engine(t).Status(t.Context())
	if err != nil || len(status.Freed) != 1 || len(status.Runs) != 1 {
		t.Errorf("status: %+v, %v", status, err)
	}
	if c := status.Counts; c.Total != 2 || c.Done != 1 || c.Deleted != 0 || c.Freed != 1 {
		t.Errorf("a name that was freed counts as done: %+v", c)
	}
	if text := textOf(report.Status, status); !strings.Contains(text,
		"2 keys: 1 done, 1 deleted here and freed, 0 under way") {
		t.Error(text)
	}
	// A user makes a key of the freed name. It does not count as the migrated key.
	b.now = b.now.Add(time.Hour)
	_, err = b.target.Create(t.Context(), provider.Spec{Name: "gone", Cipher: claviger.DefaultCipher, BitLength: 128})
	must(t, err)
	status, err = b.engine(t).Status(t.Context())
	if c := status.Counts; err != nil || c.Done != 1 || c.Freed != 1 {
		t.Errorf("a key that took the freed name counts as the migrated one: %+v, %v", c, err)
	}
	// The source is configured again, and a new run lists the name.
	b.add(t, "new", 1)
	b.run(t)
	b.wantFreed(t, "")
}

// withDeletedKey is a store with one deleted key.
type withDeletedKey struct {
	migrate.Store
	key metastore.DeletedKey
}

func (s withDeletedKey) DeletedKeys(context.Context, ...string) ([]metastore.DeletedKey, error) {
	return []metastore.DeletedKey{s.key}, nil
}
