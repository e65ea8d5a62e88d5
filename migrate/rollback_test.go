package migrate_test

import (
	"strings"
	"testing"
	"time"

	"claviger/migrate"
)

// TestFinishAfterRollback: a verdict on images from after a rollback of HDFS counts, also if a verdict on a version
// here has counted a newer transaction before. From then on its images are those that no older image replaces.
func TestFinishAfterRollback(t *testing.T) {
	b := newVerdictMigration(t)
	ctx := t.Context()
	image := func(txid uint64, rolledBack bool) []migrate.VerdictImage {
		return []migrate.VerdictImage{{Image: "fsimage", Namespace: 4711, Transaction: txid, RolledBack: rolledBack,
			AsOf: ptr(noon.Add(-time.Minute))}}
	}
	old, ofVersion := *b.v, *b.v
	old.At, old.Images, old.Outcome = noon.Add(-2*time.Hour), image(9, false), migrate.Needed
	ofVersion.At, ofVersion.Images, ofVersion.Format = noon.Add(-time.Hour), image(12, false),
		migrate.VersionVerdictFormat
	must(t, b.engine(t).RecordVerdict(ctx, &old))
	must(t, b.engine(t).RecordVerdict(ctx, &ofVersion))
	b.v.Images, b.v.Accepted = image(7, true), []string{"HDFS was rolled back"}
	b.record(t)
	if seen := b.facts(t, nil, nil).Images[4711]; seen.Transaction != 7 || seen.Verdict != b.v.Name ||
		!seen.AsOf.Equal(noon.Add(-time.Minute)) {
		t.Errorf("%+v", seen)
	}
	last := *b.v
	last.Images = image(6, false)
	must(t, b.engine(t).RecordVerdict(ctx, &last))
	if f := b.finish(t); f.Finished || !strings.Contains(strings.Join(f.Refusals, "\n"), "transaction 7): give that") {
		t.Errorf("an older image than after the rollback: %q", f.Refusals)
	}
	b.v.Images = image(8, false)
	b.record(t)
	if f := b.finish(t); !f.Finished {
		t.Errorf("a newer image than after the rollback: %q", f.Refusals)
	}
}

// TestOtherNamespaces: a verdict without a namespace that was counted before does not count, unless the operator has
// said that it is gone.
func TestOtherNamespaces(t *testing.T) {
	b := newVerdictMigration(t)
	b.record(t)
	b.v.Images[0].Namespace = 815
	b.record(t)
	if f := b.finish(t); f.Finished || len(f.Refusals) != 1 ||
		!strings.Contains(f.Refusals[0], "has counted an image of namespace 4711 (fsimage_7)") {
		t.Errorf("%q", f.Refusals)
	}
	b.v.Gone = []uint32{4711}
	b.record(t)
	if f := b.finish(t); !f.Finished {
		t.Errorf("%q", f.Refusals)
	}
}

// TestFinishByRolledBack: the record of the end has what the operator has accepted.
func TestFinishByRolledBack(t *testing.T) {
	b := newVerdictMigration(t)
	b.v.Images[0].RolledBack, b.v.Accepted = true, []string{"HDFS was rolled back"}
	b.record(t)
	f := b.finish(t)
	if !f.Finished || !f.EDEKs.Images[0].RolledBack || len(f.EDEKs.Accepted) != 1 {
		t.Errorf("%+v", f)
	}
}
