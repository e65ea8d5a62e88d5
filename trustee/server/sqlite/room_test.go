package sqlite

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestCheckWritesAtOnce: readiness, the other trustee and an operator's status may call CheckWrites at the same
// time. All calls succeed, and leave no file beside the store.
func TestCheckWritesAtOnce(t *testing.T) {
	s := filled(t)
	before, err := os.ReadDir(filepath.Dir(s.db.Path()))
	check(t, err)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 10 {
				if err := s.CheckWrites(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	after, err := os.ReadDir(filepath.Dir(s.db.Path()))
	check(t, err)
	if len(after) != len(before) {
		t.Errorf("%d files in the store's folder before, %d after", len(before), len(after))
	}
}
