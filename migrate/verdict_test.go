package migrate_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/migrate"
	"claviger/migrate/report"
)

// facts returns the facts for keys and versions.
func (b *testMigration) facts(t *testing.T, keys, versions []string) *migrate.EDEKFacts {
	t.Helper()
	f, err := b.engine(t).EDEKFacts(t.Context(), keys, versions)
	must(t, err)
	return f
}

// TestHolders checks which KMS has a version that an EDEK names. A version that this KMS did not make is the source's.
func TestHolders(t *testing.T) {
	b := newTestMigration(t)
	ctx := t.Context()
	b.add(t, "k", 2)
	b.add(t, "deleted", 1)
	b.run(t)
	addTo(t, b.target, "ours", 1, 0)
	must(t, b.store.Insert(ctx, metastore.Key{Metadata: claviger.Metadata{Name: "purged", BitLength: 128,
		Cipher: "AES/CTR/NoPadding"}, List: []metastore.Version{{ID: "0", Object: "00", Created: born}}}))
	must(t, b.store.SoftDelete(ctx, "purged"))
	deleted := b.facts(t, []string{"purged"}, []string{"purged@0"})
	if deleted.Keys["purged"] != migrate.Here || deleted.EDEKs["purged@0"] != migrate.Here {
		t.Errorf("a deleted key that can come back: %v, %v", deleted.Keys, deleted.EDEKs)
	}
	_, err := b.store.Discard(ctx, "purged", "0")
	must(t, err)
	b.cfg.Theirs = map[string]bool{"ours@0": true}
	f := b.facts(t, []string{"k", "ours", "purged", "strange"},
		[]string{"k@0", "k@1", "k@2", "k@7", "k@abc", "ours@0", "purged@0", "strange@0"})
	if want := map[string]migrate.Holder{"k": migrate.Here, "ours": migrate.Here, "purged": migrate.Destroyed,
		"strange": migrate.Nobody}; !maps.Equal(f.Keys, want) {
		t.Errorf("keys %v, want %v", f.Keys, want)
	}
	if want := map[string]migrate.Holder{"k@0": migrate.AtSource, "k@1": migrate.AtSource, "k@2": migrate.Here,
		"k@7": migrate.AtSource, "k@abc": migrate.AtSource, "ours@0": migrate.AtSource,
		"purged@0": migrate.Destroyed, "strange@0": migrate.Nobody}; !maps.Equal(f.EDEKs, want) {
		t.Errorf("versions %v, want %v", f.EDEKs, want)
	}
}

// TestSourceVersions: the facts have each version of the source, also if the source does not show its versions, with
// the version here that replaces it, and its last use.
func TestSourceVersions(t *testing.T) {
	b := newTestMigration(t)
	b.cfg.Source = &stub{Source: b.source, noNames: true}
	b.add(t, "k", 2)
	b.run(t)
	must(t, b.store.AddUse(t.Context(), []metastore.Use{
		{Source: b.source.URI(), Version: "k@1", Op: "reencrypt", Count: 9, Last: noon.Add(-time.Hour)},
		{Source: b.source.URI(), Version: "late@0", Op: "decrypt", Count: 1, Last: noon.Add(-time.Minute)}}))
	f := b.facts(t, []string{"k"}, []string{"k@8"})
	var names []string
	for _, v := range f.Versions {
		names = append(names, v.Source+">"+v.Target)
	}
	if want := []string{"k@0>", "k@1>k@2", "k@8>", "late@0>"}; !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
	if f.LastUse == nil || f.LastUse.Version != "late@0" || f.Versions[1].LastUse == nil || f.RunEnded != noon {
		t.Errorf("%+v, ended %v", f.LastUse, f.RunEnded)
	}
}

// verdictMigration is a finished migration with a granted verdict.
type verdictMigration struct {
	*testMigration
	v *migrate.Verdict
}

func newVerdictMigration(t *testing.T) *verdictMigration {
	t.Helper()
	b := &verdictMigration{testMigration: newTestMigration(t)}
	b.add(t, "k", 2)
	b.run(t)
	b.v = &migrate.Verdict{Format: migrate.VerdictFormat, At: noon, Outcome: migrate.Granted,
		Journal: b.facts(t, nil, nil).Journal,
		Images: []migrate.VerdictImage{{Image: "fsimage_7", Namespace: 4711, Transaction: 7,
			AsOf: ptr(noon.Add(-time.Minute))}},
		Versions: []migrate.VersionVerdict{{Version: "k@0", Retirable: true, Paths: []string{"/secret"}}}}
	return b
}

func (b *verdictMigration) record(t *testing.T) {
	t.Helper()
	must(t, b.engine(t).RecordVerdict(t.Context(), b.v))
}

func (b *verdictMigration) finish(t *testing.T) *migrate.Ending {
	t.Helper()
	f, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, Verdict: true, Get: nothingSet})
	must(t, err)
	return f
}

// TestFinishByVerdict: a granted verdict ends the migration, and the report and the journal name it. Later calls of
// finish name it too.
func TestFinishByVerdict(t *testing.T) {
	b := newVerdictMigration(t)
	must(t, b.store.AddUse(t.Context(), []metastore.Use{{Source: b.source.URI(), Version: "k@0", Op: "reencrypt",
		Count: 1, Last: noon.Add(-2 * time.Minute)}}))
	b.record(t)
	for range 2 {
		f := b.finish(t)
		text := textOf(report.Ending, f)
		if !f.Finished || f.EDEKs == nil || f.EDEKs.By != migrate.ByVerdict || f.EDEKs.Verdict != b.v.Name ||
			!strings.Contains(text, "by "+b.v.Name+" no EDEK of HDFS needs the source (transaction 7 of namespace "+
				"4711 at 2026-11-23T11:59:00Z)") || strings.Contains(text, "operator") ||
			strings.Contains(text, "snapshots from before") {
			t.Errorf("%+v\n%s", f, text)
		}
	}
	s, err := b.engine(t).Status(t.Context())
	must(t, err)
	if run := s.Runs[0]; run.EDEKs == nil || run.EDEKs.Verdict != b.v.Name || run.Completed == nil {
		t.Errorf("%+v", run)
	}
	records, err := b.store.Records(t.Context(), "verdicts")
	if err != nil || len(records) != 1 || strings.Contains(string(records[0].Data), "/secret") {
		t.Errorf("%v, %s", err, records)
	}
}

// TestVerdictDoesNotCount: finish is refused, with the cure, for each reason why a recorded verdict does not count.
func TestVerdictDoesNotCount(t *testing.T) {
	for name, c := range map[string]struct {
		change func(ctx context.Context, b *verdictMigration) error
		want   string
	}{
		"needed": {func(_ context.Context, b *verdictMigration) error {
			b.v.Outcome, b.v.ToDo = migrate.Needed, []migrate.Step{{Do: "delete snapshot /z/.snapshot/s1"}}
			return nil
		}, "EDEKs need the source: delete snapshot /z/.snapshot/s1"},
		"no verdict": {func(_ context.Context, b *verdictMigration) error {
			b.v.Outcome, b.v.Problems = migrate.NoVerdict, []string{"one nameservice is missing"}
			return nil
		}, "has no result: one nameservice is missing; then run claviger migrate verdict again"},
		"no outcome": {func(_ context.Context, b *verdictMigration) error {
			b.v.Outcome = ""
			return nil
		}, "has no result"},
		"used since": {func(ctx context.Context, b *verdictMigration) error {
			return b.store.AddUse(ctx, []metastore.Use{{Source: b.source.URI(), Version: "k@1", Op: "decrypt", Count: 1,
				Last: noon.Add(-time.Second)}})
		}, "k@1 was requested at 2026-11-23T11:59:59Z, after the state that the image fsimage_7 of verdict-"},
		"an image without a time": {func(ctx context.Context, b *verdictMigration) error {
			b.v.Images[0].AsOf = nil
			return b.store.AddUse(ctx, []metastore.Use{{Source: b.source.URI(), Version: "k@1", Op: "decrypt", Count: 1,
				Last: noon.Add(-time.Hour)}})
		}, "after the state that the image"},
		"another journal": {func(_ context.Context, b *verdictMigration) error {
			b.v.Journal = "0123"
			return nil
		}, "keys or versions in the journal have changed since verdict-"},
		"another decision about a version": {func(_ context.Context, b *verdictMigration) error {
			b.cfg.Theirs = map[string]bool{"k@2": true}
			return nil
		}, "keys or versions in the journal have changed since verdict-"},
		"edited: an EDEK": {func(_ context.Context, b *verdictMigration) error {
			b.v.Versions[0].EDEKs = 3
			return nil
		}, "contradicts itself: version k@0 is needed by 3 EDEKs"},
		"edited: a version": {func(_ context.Context, b *verdictMigration) error {
			b.v.Versions[0].Retirable = false
			return nil
		}, "contradicts itself: version k@0 is not retirable"},
		"edited: a problem": {func(_ context.Context, b *verdictMigration) error {
			b.v.Problems = []string{"a namespace is missing"}
			return nil
		}, "contradicts itself: it has the problem: a namespace is missing"},
		"edited: a step": {func(_ context.Context, b *verdictMigration) error {
			b.v.ToDo = []migrate.Step{{Do: "re-encrypt zone /z"}}
			return nil
		}, "contradicts itself: it says what is to be done: re-encrypt zone /z"},
		"edited: no image": {func(_ context.Context, b *verdictMigration) error {
			b.v.Images = nil
			return nil
		}, "contradicts itself: it has no image"},
		"older than an image that was counted": {func(_ context.Context, b *verdictMigration) error {
			newer := *b.v
			newer.Outcome, newer.Images = migrate.Needed, []migrate.VerdictImage{{Image: "fsimage_9", Namespace: 4711,
				Transaction: 9}}
			return b.engine(t).RecordVerdict(t.Context(), &newer)
		}, "has counted a newer image (fsimage_9, transaction 9)"},
		"older than an image of a verdict on a version here": {func(_ context.Context, b *verdictMigration) error {
			newer := *b.v
			newer.Format, newer.Images = migrate.VersionVerdictFormat, []migrate.VerdictImage{{Image: "fsimage_9",
				Namespace: 4711, Transaction: 9}}
			return b.engine(t).RecordVerdict(t.Context(), &newer)
		}, "has counted a newer image (fsimage_9, transaction 9)"},
		"in the future": {func(_ context.Context, b *verdictMigration) error {
			b.v.At = noon.Add(time.Hour)
			return nil
		}, "which is in the future"},
	} {
		b := newVerdictMigration(t)
		must(t, c.change(t.Context(), b))
		b.record(t)
		if f := b.finish(t); f.Finished || len(f.Refusals) != 1 || !strings.Contains(f.Refusals[0], c.want) ||
			f.EDEKs != nil {
			t.Errorf("%s: finished %v, %q, want %q", name, f.Finished, f.Refusals, c.want)
		}
	}
}

// TestOtherDecisions: a verdict is void while the operator's decisions about versions differ from the decisions at the
// time of the verdict. It counts again when the decisions are the same.
func TestOtherDecisions(t *testing.T) {
	b := newVerdictMigration(t)
	decide := func(ours, theirs string) {
		b.cfg.Ours, b.cfg.Theirs = map[string]bool{ours: true}, map[string]bool{theirs: true}
	}
	decide("k@7", "k@8")
	b.v.Journal = b.facts(t, nil, nil).Journal
	b.record(t)
	for _, other := range [][2]string{{"k@6", "k@8"}, {"k@7", "k@6"}, {"k@8", "k@7"}} {
		decide(other[0], other[1])
		if f := b.finish(t); f.Finished || len(f.Refusals) != 1 ||
			!strings.Contains(f.Refusals[0], "keys or versions in the journal have changed since verdict-") {
			t.Errorf("%q: %q", other, f.Refusals)
		}
	}
	decide("k@7", "k@8")
	if f := b.finish(t); !f.Finished {
		t.Errorf("%q", f.Refusals)
	}
}

// TestLastVerdictCounts: the verdict that was recorded last decides, also if a clock was set back. Without a verdict,
// finish is refused.
func TestLastVerdictCounts(t *testing.T) {
	b := newVerdictMigration(t)
	if f := b.finish(t); f.Finished || !strings.Contains(strings.Join(f.Refusals, "\n"), "there is no verdict: run") {
		t.Errorf("no verdict: %q", f.Refusals)
	}
	b.record(t)
	b.v.Outcome, b.v.At = migrate.Needed, noon.Add(-time.Hour)
	b.record(t)
	if f := b.finish(t); f.Finished {
		t.Error("finished by a verdict that a later one has replaced")
	}
	b.v.Outcome, b.v.At = migrate.Granted, noon // the time of the first one
	b.record(t)
	if f := b.finish(t); !f.Finished || f.EDEKs.Verdict != b.v.Name {
		t.Errorf("%+v", f)
	}
}

// TestKeyTakenOverAfterVerdict: a key that is taken over after the verdict makes it void.
func TestKeyTakenOverAfterVerdict(t *testing.T) {
	b := newVerdictMigration(t)
	b.record(t)
	b.add(t, "late", 1)
	b.run(t)
	if f := b.finish(t); f.Finished || len(f.Refusals) != 1 || !strings.Contains(f.Refusals[0], "have changed since") {
		t.Errorf("%q", f.Refusals)
	}
}
