package migrate_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/migrate"
	"claviger/migrate/report"
	"claviger/provider/memory"
)

// half is a target whose token has lost some of the keys that its metastore knows.
type half struct {
	*memory.Provider
	lost func(version string) bool
}

func (h half) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	if h.lost(version) {
		return claviger.Errorf("pkcs11.key", claviger.Unavailable, version, "the token holds no such key")
	}
	return h.Provider.EncryptBlocks(ctx, version, blocks)
}

// TestKeysThatCannotBeUsed: verify and finish do not go by what the metastore counts.
// A version that the target cannot encrypt with is a difference, and a reason to keep
// the source.
func TestKeysThatCannotBeUsed(t *testing.T) {
	b := newBench(t)
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
	b.cfg.Target = half{b.target, func(v string) bool { return v == last }}
	v, err := b.engine(t).Verify(ctx)
	must(t, err)
	i := slices.IndexFunc(v.Keys, func(d migrate.KeyDiff) bool { return d.Key == "bad" })
	want := migrate.Difference{Field: "version " + last, Source: "its own",
		Target: "not usable (the token holds no such key)"}
	if v.Different != 1 || v.Same != 41 || !slices.Equal(v.Keys[i].Differences, []migrate.Difference{want}) {
		t.Errorf("%d different: %+v, want %+v", v.Different, v.Keys[i], want)
	}
	if got := finish(); len(got) != 1 ||
		!strings.Contains(got[0], last+" cannot be used here: the token holds no such key") {
		t.Errorf("without %s: %q", last, got)
	}
	// With most keys lost, it is not told of each.
	b.cfg.Target = half{b.target, func(v string) bool { return v != last }}
	if got := finish(); len(got) != 17 || !strings.Contains(got[16], " more versions cannot be used here") {
		t.Errorf("%d: %q", len(got), got)
	}
}

// TestDeletedSince: status and finish say of a key that was deleted here since its
// migration that it is not here.
func TestDeletedSince(t *testing.T) {
	b := newBench(t)
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
	golden(t, "finish-deleted", textOf(report.Ending, f))
}

// lossy is a target on whose token an operator has given versions up.
type lossy struct {
	*memory.Provider
	lost []string
}

func (l lossy) GivenUp(_ context.Context, versions []string) ([]string, error) {
	return slices.DeleteFunc(slices.Clone(versions), func(v string) bool { return !slices.Contains(l.lost, v) }), nil
}

// TestStatusOfGivenUp: a key whose versions were given up is not done, to status.
func TestStatusOfGivenUp(t *testing.T) {
	b := newBench(t)
	b.cfg.Versions = migrate.All
	b.add(t, "kept", 1)
	b.add(t, "lost", 2)
	b.add(t, "partly", 2)
	b.run(t)
	b.cfg.Target = lossy{b.target, []string{"lost@2", "lost@3", "partly@2"}}
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

// TestFinishedStaysFinished: what was said and decided at the end holds afterwards,
// without the flags that said it; a use of the source after it does not.
func TestFinishedStaysFinished(t *testing.T) {
	b := newBench(t)
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
		t.Errorf("said again without a flag: %v, %+v", err, f)
	}
	if _, err := b.engine(t).Verify(ctx); err == nil || !strings.Contains(err.Error(),
		"was finished at 2026-11-23T12:00:00Z") {
		t.Errorf("verify without a source: %v", err)
	}
}

// TestFinishByTheClock: no migration is ended by a clock that is known to be wrong, nor
// while the end of the last run is still to come: uses since would be taken for older ones.
func TestFinishByTheClock(t *testing.T) {
	const day = 24 * time.Hour
	b := newBench(t)
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
	b.here, b.there = -day, -day // its end was written by a clock that was ahead
	if f := finish(); f.Finished || !strings.Contains(strings.Join(f.Refusals, "\n"), "is in the future") {
		t.Errorf("ended a day from now: %+v", f)
	}
}

// TestKeysSinceTheRun: a key that the source has got since the run keeps it needed,
// also when the source is no longer configured; its name stays taken. Where the source
// was never asked after the run, the end needs the operator's word.
func TestKeysSinceTheRun(t *testing.T) {
	b := newBench(t)
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
		t.Errorf("never asked: %+v", f)
	}
	b.add(t, "late", 1)
	if f := finish(source, false); f.Finished || f.Compared != nil || len(f.Refusals) != 1 ||
		!strings.Contains(f.Refusals[0], "key late is at the source and was not migrated") {
		t.Errorf("a new key: %+v", f)
	}
	for _, gone := range []bool{false, true} {
		if f := finish(nil, gone); f.Finished || !strings.Contains(strings.Join(f.Refusals, "\n"),
			"key late is planned: is at the source and was not migrated") {
			t.Errorf("a new key, and the source taken out, gone %t: %+v", gone, f)
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
		t.Errorf("taken over, and the source gone: %+v", f)
	}
}

// TestUsesOfOtherKeys: what the source was asked for, and was never migrated, keeps the
// migration from its end, as does a source that has none of the keys.
func TestUsesOfOtherKeys(t *testing.T) {
	b := newBench(t)
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
