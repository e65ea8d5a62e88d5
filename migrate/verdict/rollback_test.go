package verdict_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/migrate"
	"claviger/migrate/verdict"
)

// rolledBack is site after a verdict has counted a newer transaction, whose image shows the state of that time.
func rolledBack(asOf time.Time) *verdict.Input {
	in := site()
	in.Facts.Images = map[uint32]migrate.SeenImage{4711: {Transaction: 8, Image: "fsimage_8", Verdict: "verdict-1",
		AsOf: asOf}}
	in.AcceptRollback = true
	return in
}

// TestAcceptedRollback: by the operator's word that HDFS was rolled back, an image with an older transaction is
// accepted, and the verdict says so. The image must show a later change than the one that was counted before: otherwise
// it may be a file from before the rollback.
func TestAcceptedRollback(t *testing.T) {
	v := verdict.Judge(rolledBack(noon.Add(-61 * time.Minute)))
	if v.Outcome != migrate.Granted || len(v.Accepted) != 1 || !v.Images[0].RolledBack ||
		!strings.Contains(v.Accepted[0], "fsimage_7 shows transaction 7 of its namespace, and verdict-1 has counted a "+
			"newer image (fsimage_8, transaction 8); by the operator's word, HDFS was rolled back") {
		t.Errorf("%+v", v)
	}
	v = verdict.Judge(rolledBack(noon.Add(-time.Hour))) // the time of fsimage_7
	if v.Outcome != migrate.NoVerdict || len(v.Accepted) != 0 || v.Images[0].RolledBack ||
		!strings.Contains(strings.Join(v.Problems, "\n"), "This one shows no later change") {
		t.Errorf("%+v", v)
	}
	in := rolledBack(noon.Add(-61 * time.Minute))
	in.AcceptRollback = false
	if v = verdict.Judge(in); v.Outcome != migrate.NoVerdict || v.Images[0].RolledBack ||
		!strings.Contains(strings.Join(v.Problems, "\n"), "--accept-rollback") {
		t.Errorf("%+v", v)
	}
	in = rolledBack(noon.Add(-61 * time.Minute))
	in.Images[0].Report.Image.Transaction = 8
	if v = verdict.Judge(in); v.Outcome != migrate.Granted || len(v.Accepted) != 0 || v.Images[0].RolledBack {
		t.Errorf("without a rollback: %+v", v)
	}
}

// TestOtherHDFS: an image of another HDFS, whose keys have the same names, does not replace that of a namespace which
// was counted before. The operator may say that the namespace is gone.
func TestOtherHDFS(t *testing.T) {
	in := site()
	in.Facts.Images = map[uint32]migrate.SeenImage{815: {Transaction: 8, Image: "fsimage_8", Verdict: "verdict-1"}}
	v := verdict.Judge(in)
	if v.Outcome != migrate.NoVerdict || len(v.Problems) != 1 || !strings.Contains(v.Problems[0],
		"verdict-1 has counted an image of namespace 815 (fsimage_8), and no image of that namespace is given now") {
		t.Errorf("%+v", v)
	}
	in.AcceptGone = []uint32{4711, 815}
	v = verdict.Judge(in)
	if v.Outcome != migrate.Granted || len(v.Accepted) != 1 || !slices.Equal(v.Gone, []uint32{815}) {
		t.Errorf("%+v", v)
	}
	in.Facts.Images = nil
	if v = verdict.Judge(in); v.Outcome != migrate.Granted || len(v.Accepted)+len(v.Gone) > 0 {
		t.Errorf("nothing is gone: %+v", v)
	}
}
