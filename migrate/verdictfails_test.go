package migrate_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/migrate"
	"claviger/provider"
)

var errLost = errors.New("the database is lost")

// lossy is a store and a target whose call number n fails. Calls count from 1.
type lossy struct {
	metastore.Store
	migrate.Target
	n, calls int
}

func (l *lossy) fails() bool { l.calls++; return l.calls == l.n }

// try makes a call, or fails.
func try[T any](l *lossy, call func() (T, error)) (v T, err error) {
	if l.fails() {
		return v, errLost
	}
	return call()
}

func (l *lossy) URI() string { return l.Target.URI() }

func (l *lossy) Runs(ctx context.Context) ([]string, error) {
	return try(l, func() ([]string, error) { return l.Store.Runs(ctx) })
}

func (l *lossy) Records(ctx context.Context, run string) ([]metastore.Record, error) {
	return try(l, func() ([]metastore.Record, error) { return l.Store.Records(ctx, run) })
}

func (l *lossy) Put(ctx context.Context, run, item string, data []byte) error {
	_, err := try(l, func() (bool, error) { return true, l.Store.Put(ctx, run, item, data) })
	return err
}

func (l *lossy) Uses(ctx context.Context) ([]metastore.Use, error) {
	return try(l, func() ([]metastore.Use, error) { return l.Store.Uses(ctx) })
}

func (l *lossy) DeletedKeys(ctx context.Context, names ...string) ([]metastore.DeletedKey, error) {
	return try(l, func() ([]metastore.DeletedKey, error) { return l.Store.DeletedKeys(ctx, names...) })
}

func (l *lossy) NextNumber(ctx context.Context, key string) (int, error) {
	return try(l, func() (int, error) { return l.Store.NextNumber(ctx, key) })
}

func (l *lossy) Numbered(ctx context.Context, key string, n int) (bool, error) {
	return try(l, func() (bool, error) { return l.Store.Numbered(ctx, key, n) })
}

func (l *lossy) Setting(ctx context.Context, name string) (string, bool, error) {
	if l.fails() {
		return "", false, errLost
	}
	return l.Store.Setting(ctx, name)
}

func (l *lossy) LastUses(ctx context.Context, versions ...string) ([]time.Time, time.Time, error) {
	if l.fails() {
		return nil, time.Time{}, errLost
	}
	return l.Store.LastUses(ctx, versions...)
}

func (l *lossy) Clocks(ctx context.Context) (metastore.Clocks, error) {
	return try(l, func() (metastore.Clocks, error) { return l.Store.Clocks(ctx) })
}

func (l *lossy) Keys(ctx context.Context) ([]string, error) {
	return try(l, func() ([]string, error) { return l.Target.Keys(ctx) })
}

func (l *lossy) Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error) {
	return try(l, func() ([]claviger.KeyVersion, error) { return l.Target.Versions(ctx, key) })
}

func (l *lossy) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	target, _ := l.Target.(provider.BlockEncrypter)
	return target.EncryptBlocks(ctx, version, blocks)
}

// replacing is a target that can purge single versions.
type replacing struct {
	*lossy
	at time.Time
}

func (r replacing) Replaced(context.Context, string) (time.Time, error) {
	return try(r.lossy, func() (time.Time, error) { return r.at, nil })
}

// TestVerdictNeedsEachAnswer: if any answer of the store or the target is missing, a verdict is not made, not recorded,
// and not used.
func TestVerdictNeedsEachAnswer(t *testing.T) {
	for name, do := range map[string]func(ctx context.Context, e *migrate.Engine, v *migrate.Verdict) error{
		"facts": func(ctx context.Context, e *migrate.Engine, _ *migrate.Verdict) error {
			_, err := e.EDEKFacts(ctx, []string{"k", "strange"}, []string{"k@0", "k@2", "k@9", "strange@0"})
			return err
		},
		"record": func(ctx context.Context, e *migrate.Engine, v *migrate.Verdict) error {
			return e.RecordVerdict(ctx, v)
		},
		"old version": func(ctx context.Context, e *migrate.Engine, _ *migrate.Verdict) error {
			_, err := e.OldVersion(ctx, "k@2")
			return err
		},
		"finish": func(ctx context.Context, e *migrate.Engine, _ *migrate.Verdict) error {
			_, err := e.Finish(ctx, migrate.FinishOptions{Since: noon, Verdict: true, SourceGone: true})
			return err
		},
	} {
		b := newVerdictMigration(t)
		must(t, b.store.AddUse(t.Context(), []metastore.Use{{Source: b.source.URI(), Version: "k@0", Op: "decrypt",
			Count: 1, Last: noon.Add(-time.Hour)}}))
		b.record(t)
		b.cfg.Source = nil
		for n := 1; ; n++ {
			l := &lossy{Store: b.store, Target: b.target, n: n}
			b.cfg.Store, b.cfg.Target = l, replacing{l, born}
			err := do(t.Context(), b.engine(t), b.v)
			if l.calls < n {
				if err != nil || n < 2 {
					t.Errorf("%s: %v after %d calls", name, err, n-1)
				}
				break
			}
			if !errors.Is(err, errLost) {
				t.Errorf("%s: call %d failed, and the error is %v", name, n, err)
			}
		}
	}
}

// TestOldVersion: the last use is the recorded one, or the time since which uses are recorded. A target without the
// method cannot purge a version.
func TestOldVersion(t *testing.T) {
	b := newTestMigration(t)
	if _, err := b.engine(t).OldVersion(t.Context(), "k@0"); !claviger.Is(err, claviger.Unsupported) {
		t.Errorf("a target that cannot: %v", err)
	}
	b.cfg.Target = replacing{&lossy{Store: b.store, Target: b.target}, born}
	_, since, err := b.store.LastUses(t.Context())
	must(t, err)
	v, err := b.engine(t).OldVersion(t.Context(), "k@0")
	if err != nil || !v.Replaced.Equal(born) || !v.LastUse.Equal(since) || v.Key != "k" {
		t.Errorf("%+v, %v, recorded since %v", v, err, since)
	}
	later := since.Add(time.Hour).Truncate(time.Millisecond)
	must(t, b.store.RecordUses(t.Context(), []metastore.LastUse{{Version: "k@0", Last: later}}))
	if v, err = b.engine(t).OldVersion(t.Context(), "k@0"); err != nil || !v.LastUse.Equal(later) {
		t.Errorf("%+v, %v, want %v", v, err, later)
	}
}

// TestDamagedVerdict: a record that cannot be read is an error.
func TestDamagedVerdict(t *testing.T) {
	b := newVerdictMigration(t)
	must(t, b.store.Put(t.Context(), "verdicts", "verdict-x", []byte(`{"outcome":`)))
	_, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, Verdict: true})
	if err == nil || !strings.Contains(err.Error(), "record of a verdict is damaged") {
		t.Error(err)
	}
}

// TestHoldersOfSpellings: a key of a source that answers to every spelling has one holder for all of them, and its
// versions here are found by each spelling. The time of its takeover is known.
func TestHoldersOfSpellings(t *testing.T) {
	b := newTestMigration(t)
	b.cfg.Source = &folding{Source: b.source}
	b.add(t, "sales", 2, aclName("Sales"))
	r := b.run(t)
	made := r.Keys[0].TargetVersions[0]
	_, id, _ := strings.Cut(made, "@")
	f := b.facts(t, []string{"SALES", "sales"}, []string{"SALES@0", "sales@1", "SALES@" + id})
	for key, h := range f.Keys {
		if h != migrate.Here {
			t.Errorf("key %s: %s", key, h)
		}
	}
	if f.EDEKs["SALES@0"] != migrate.AtSource || f.EDEKs["sales@1"] != migrate.AtSource ||
		f.EDEKs["SALES@"+id] != migrate.Here {
		t.Errorf("%v", f.EDEKs)
	}
	if at, ok := f.TakenOver["sales"]; !ok || at.IsZero() {
		t.Errorf("taken over %v", f.TakenOver)
	}
}

// TestHoldersElsewhere: a key that was taken over into another target counts as a source's, with all its versions.
func TestHoldersElsewhere(t *testing.T) {
	e := newElsewhereMigration(t)
	_, err := e.engine(t).EDEKFacts(t.Context(), []string{"finance"}, []string{"finance@0", "finance@3"})
	must(t, err)
	must(t, e.store.Insert(t.Context(), metastore.Key{Metadata: claviger.Metadata{Name: "finance", BitLength: 128,
		Cipher: "none"}, List: []metastore.Version{{ID: "3", Object: "00", Created: born}}}))
	f, err := e.engine(t).EDEKFacts(t.Context(), []string{"finance"}, []string{"finance@0", "finance@3"})
	must(t, err)
	if f.Keys["finance"] != migrate.AtSource || f.EDEKs["finance@0"] != migrate.AtSource ||
		f.EDEKs["finance@3"] != migrate.AtSource {
		t.Errorf("%v, %v", f.Keys, f.EDEKs)
	}
}

// TestIncompleteRunIsNoEnd: a run that could not take over all keys has no end for a verdict.
func TestIncompleteRunIsNoEnd(t *testing.T) {
	b := newTestMigration(t)
	b.cfg.Source = &stub{Source: b.source, refuse: map[string]claviger.Kind{"k": claviger.Denied}}
	b.add(t, "k", 1)
	b.run(t)
	if f := b.facts(t, nil, nil); f.Run == nil || f.Run.State != migrate.Incomplete || !f.RunEnded.IsZero() {
		t.Errorf("%+v, ended %v", f.Run, f.RunEnded)
	}
}

// TestHolderOfDestroyedVersion: a version of a migrated key that was made here and destroyed since needs no source. If
// the source has a version of that number too, the EDEK may be the source's.
func TestHolderOfDestroyedVersion(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k", 2)
	b.run(t)
	must(t, b.store.Insert(t.Context(), metastore.Key{Metadata: claviger.Metadata{Name: "k", BitLength: 128,
		Cipher: "none"}, List: []metastore.Version{{ID: "1", Object: "01", Created: born},
		{ID: "5", Object: "05", Created: born}, {ID: "abc", Object: "0a", Created: born}}}))
	f := b.facts(t, nil, []string{"k@1", "k@4", "k@5", "k@abc"})
	if f.EDEKs["k@1"] != migrate.AtSource || f.EDEKs["k@4"] != migrate.AtSource ||
		f.EDEKs["k@5"] != migrate.Destroyed || f.EDEKs["k@abc"] != migrate.AtSource {
		t.Errorf("%v", f.EDEKs)
	}
}
