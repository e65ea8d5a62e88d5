package migrate_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/golden"
	"claviger/metastore"
	"claviger/migrate"
	"claviger/migrate/report"
	"claviger/provider/memory"
)

// lostObjects is a target whose token has lost some of the keys that the metastore has.
type lostObjects struct {
	*memory.Provider
	lost func(version string) bool
}

func (h lostObjects) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	if h.lost(version) {
		return claviger.Errorf("pkcs11.key", claviger.Unavailable, version, "the token holds no such key")
	}
	return h.Provider.EncryptBlocks(ctx, version, blocks)
}

// TestKeysThatCannotBeUsed: verify and finish do not rely on the metastore alone. Verify reports a version with which
// the target cannot encrypt as a difference, and finish is refused.
func TestKeysThatCannotBeUsed(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "good", 1)
	b.add(t, "bad", 2)
	for i := range 40 {
		b.add(t, fmt.Sprintf("many%02d", i), 1)
	}
	b.run(t)
	ctx := t.Context()
	finish := func() []string {
		t.Helper()
		f, err := b.engine(t).Finish(ctx, migrate.FinishOptions{Since: noon, EDEKsDone: true})
		must(t, err)
		return f.Refusals
	}
	if got := finish(); len(got) > 0 {
		t.Errorf("with all keys: %q", got)
	}
	bad := versions(t, b.target, "bad")
	last := bad[len(bad)-1]
	b.cfg.Target = lostObjects{b.target, func(v string) bool { return v == last }}
	v, err := b.engine(t).Verify(ctx)
	must(t, err)
	i := slices.IndexFunc(v.Keys, func(d migrate.KeyDiff) bool { return d.Key == "bad" })
	want := migrate.Difference{Field: "version " + last, Source: "none",
		Target: "not usable (the token holds no such key)"}
	if v.Different != 1 || v.Same != 41 || !slices.Equal(v.Keys[i].Differences, []migrate.Difference{want}) {
		t.Errorf("%d different: %+v, want %+v", v.Different, v.Keys[i], want)
	}
	if got := finish(); len(got) != 1 ||
		!strings.Contains(got[0], last+" cannot be used here: the token holds no such key") {
		t.Errorf("without %s: %q", last, got)
	}
	// If most keys are lost, finish names only some of them.
	b.cfg.Target = lostObjects{b.target, func(v string) bool { return v != last }}
	if got := finish(); len(got) != 17 || !strings.Contains(got[16], " more versions cannot be used here") {
		t.Errorf("%d: %q", len(got), got)
	}
}

// TestDeletedSince: status and finish report a key that was deleted here after its migration as deleted.
func TestDeletedSince(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "kept", 1)
	b.add(t, "dropped", 1)
	b.run(t)
	ctx := t.Context()
	must(t, b.target.Delete(ctx, "dropped"))
	s, err := b.engine(t).Status(ctx)
	must(t, err)
	if s.Keys[0].State != migrate.Deleted || !strings.Contains(s.Keys[0].Why, "deleted here since") ||
		s.Keys[1].State != migrate.Done {
		t.Errorf("%+v", s.Keys)
	}
	f, err := b.engine(t).Finish(ctx, migrate.FinishOptions{Since: noon, EDEKsDone: true,
		Get: func(string) (string, string, bool) { return "", "", false }})
	must(t, err)
	if !f.Finished || !slices.Equal(f.Deleted, []string{"dropped"}) {
		t.Errorf("%+v", f)
	}
	golden.Compare(t, "testdata/finish-deleted.golden", textOf(report.Ending, f))
}

// givenUp is a target of which an operator has given up versions, because the token has lost them.
type givenUp struct {
	*memory.Provider
	lost []string
}

func (l givenUp) GivenUp(_ context.Context, versions []string) ([]string, error) {
	return slices.DeleteFunc(slices.Clone(versions), func(v string) bool { return !slices.Contains(l.lost, v) }), nil
}

// TestStatusOfGivenUp: status shows a key as lost if all its versions were given up, and as done if some were.
func TestStatusOfGivenUp(t *testing.T) {
	b := newTestMigration(t)
	b.cfg.Versions = migrate.All
	b.add(t, "kept", 1)
	b.add(t, "lost", 2)
	b.add(t, "partly", 2)
	b.run(t)
	b.cfg.Target = givenUp{b.target, []string{"lost@2", "lost@3", "partly@2"}}
	s, err := b.engine(t).Status(t.Context())
	must(t, err)
	for i, want := range []struct {
		state migrate.State
		why   string
	}{{migrate.Done, ""}, {migrate.Lost,
		"given up here, because the token does not have it: lost@2, lost@3"}, {migrate.Done, "does not have " +
		"it: partly@2;"}} {
		if k := s.Keys[i]; k.State != want.state || !strings.Contains(k.Why, want.why) || want.why == "" &&
			k.Why != "" {
			t.Errorf("%+v, want %+v", k, want)
		}
	}
	if text := textOf(report.Status, s); !strings.Contains(text, "3 keys: 2 done, 1 given up, 0 under way") {
		t.Error(text)
	}
}

// TestFinishedStaysFinished: after the end of the migration, finish gives the same answer without the flags, and verify
// says when the migration was finished.
func TestFinishedStaysFinished(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k", 1)
	b.run(t)
	ctx := t.Context()
	none := func(string) (string, string, bool) { return "", "", false }
	f, err := b.engine(t).Finish(ctx, migrate.FinishOptions{Since: noon, EDEKsDone: true, Get: none})
	must(t, err)
	if !f.Finished {
		t.Fatalf("%+v", f)
	}
	b.cfg.Source = nil
	again := migrate.FinishOptions{Since: noon.AddDate(0, 0, -1), Get: none}
	if f, err = b.engine(t).Finish(ctx, again); err != nil || !f.Finished || len(f.Refusals) > 0 {
		t.Errorf("finish again, without flags: %v, %+v", err, f)
	}
	if _, err := b.engine(t).Verify(ctx); err == nil || !strings.Contains(err.Error(),
		"was finished at 2026-11-23T12:00:00Z") {
		t.Errorf("verify without a source: %v", err)
	}
}

// TestFinishWithWrongClock: finish is refused if this host's clock is wrong, or if the last run ended in the future.
// Otherwise recent uses of the source would count as older ones.
func TestFinishWithWrongClock(t *testing.T) {
	const day = 24 * time.Hour
	b := newTestMigration(t)
	b.add(t, "k", 1)
	b.run(t)
	finish := func() *migrate.Ending {
		t.Helper()
		f, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true, Get: nothingSet})
		must(t, err)
		return f
	}
	for _, off := range []time.Duration{8 * day, -8 * day} {
		b.here = off
		if f := finish(); f.Finished || len(f.Refusals) != 1 || !strings.Contains(f.Refusals[0], "192h0m0s") {
			t.Errorf("%v off: %+v", off, f)
		}
	}
	b.here = 0
	if f := finish(); !f.Finished {
		t.Errorf("%+v", f)
	}
	b.here, b.there = -day, -day // so the end of the run is in the future
	if f := finish(); f.Finished || !strings.Contains(strings.Join(f.Refusals, "\n"), "is in the future") {
		t.Errorf("ended a day from now: %+v", f)
	}
}

// TestKeysSinceTheRun: finish is refused if the source has a new key since the run, even if the source is no longer
// configured. The key's name stays reserved here. If the source was never read after the run, finish needs
// --source-gone.
func TestKeysSinceTheRun(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k", 1)
	b.run(t)
	ctx := t.Context()
	finish := func(source migrate.Source, gone bool) *migrate.Ending {
		t.Helper()
		b.cfg.Source = source
		f, err := b.engine(t).Finish(ctx, migrate.FinishOptions{Since: noon, EDEKsDone: true, SourceGone: gone,
			Get: nothingSet})
		must(t, err)
		return f
	}
	source := b.cfg.Source
	if f := finish(nil, false); f.Finished || len(f.Refusals) != 1 || !strings.Contains(f.Refusals[0],
		"--source-gone") {
		t.Errorf("the source was never read: %+v", f)
	}
	b.add(t, "late", 1)
	if f := finish(source, false); f.Finished || f.Compared != nil || len(f.Refusals) != 1 ||
		!strings.Contains(f.Refusals[0], "key late is at the source and was not migrated") {
		t.Errorf("a new key: %+v", f)
	}
	for _, gone := range []bool{false, true} {
		if f := finish(nil, gone); f.Finished || !strings.Contains(strings.Join(f.Refusals, "\n"),
			"key late is planned: is at the source and was not migrated") {
			t.Errorf("a new key, source not configured, --source-gone=%t: %+v", gone, f)
		}
	}
	origins, err := migrate.Origins(ctx, b.store, b.target.URI())
	must(t, err)
	if !slices.ContainsFunc(origins, func(o migrate.Origin) bool { return o.Key == "late" }) {
		t.Errorf("the name of the new key is free: %v", origins)
	}
	b.cfg.Source = source
	b.run(t)
	if f := finish(nil, true); !f.Finished || f.Compared != nil {
		t.Errorf("the new key is migrated, --source-gone: %+v", f)
	}
}

// TestUsesOfOtherKeys: finish is refused if a version that was never migrated was used at the source, or if the source
// lists none of the migrated keys.
func TestUsesOfOtherKeys(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k", 1)
	b.run(t)
	ctx := t.Context()
	source := b.cfg.Source
	finish := func(source migrate.Source) *migrate.Ending {
		t.Helper()
		b.cfg.Source = source
		f, err := b.engine(t).Finish(ctx, migrate.FinishOptions{Since: noon.Add(24 * time.Hour), EDEKsDone: true,
			Get: nothingSet})
		must(t, err)
		return f
	}
	if f := finish(source); f.Compared == nil {
		t.Fatalf("%+v", f)
	}
	must(t, b.store.AddUse(ctx, []metastore.Use{{Source: b.source.URI(), Version: "late@0", Op: "decrypt", Count: 1,
		Last: noon}}))
	if f := finish(nil); f.Finished || !strings.Contains(strings.Join(f.Refusals, "\n"), "late@0 was used at") {
		t.Errorf("a key that was never migrated: %+v", f)
	}
	if err := b.source.Delete(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	b.add(t, "other", 1)
	if f := finish(source); f.Finished || f.Compared != nil || !strings.Contains(strings.Join(f.Refusals, "\n"),
		"lists none of the 1 keys that were migrated") {
		t.Errorf("another source: %+v", f)
	}
}
