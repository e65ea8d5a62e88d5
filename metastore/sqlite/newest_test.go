package sqlite

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestNewestTimeUsesIndexes checks that the query of the newest time does not read whole tables: each deletion and each
// comparison of clocks runs it.
func TestNewestTimeUsesIndexes(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	rows, err := s.db.Reader.QueryContext(t.Context(), `EXPLAIN QUERY PLAN SELECT `+newestTime)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var plan []string
	for rows.Next() {
		var id, parent, unused int
		var step string
		if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
			t.Fatal(err)
		}
		plan = append(plan, step)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	all := strings.Join(plan, "; ")
	for _, want := range []string{"version_use USING COVERING INDEX", "journal USING COVERING INDEX"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in %s", want, all)
		}
	}
}
