package sqlite

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"claviger"
)

// TestCheckWritesAtOnce: readiness, the other trustee and an operator's status may call CheckWrites at the same
// time. All calls succeed, and leave no file beside the store.
func TestCheckWritesAtOnce(t *testing.T) {
	s := newFilledStore(t)
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

// openFiles returns the files in a folder that this process has open.
func openFiles(t *testing.T, dir string) (open []string) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	for _, fd := range list {
		// A descriptor may be closed since the folder was read.
		if name, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(name, dir) {
			open = append(open, name)
		}
	}
	return open
}

// TestCheckWritesRefuses: CheckWrites fails if the file beside the store cannot be made, written or synced. It keeps no
// file open, and overwrites a file that a killed process left.
func TestCheckWritesRefuses(t *testing.T) {
	s := newFilledStore(t)
	name := s.db.Path() + ".room"
	check(t, s.CheckWrites(t.Context())) // it opens a connection
	open := len(openFiles(t, filepath.Dir(name)))
	for what, tt := range map[string]struct {
		make func() error
		want string
	}{
		"a folder":                     {func() error { return os.Mkdir(name, 0o700) }, "is a directory"},
		"a full disk":                  {func() error { return os.Symlink("/dev/full", name) }, "no space left"},
		"a disk that cannot be synced": {func() error { return os.Symlink("/dev/null", name) }, "sync"},
		"a file of a killed process":   {func() error { return os.WriteFile(name, make([]byte, 9), 0o600) }, ""},
	} {
		check(t, tt.make())
		failures := s.Failures()
		err := s.CheckWrites(t.Context())
		if tt.want == "" {
			check(t, err)
		} else if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), tt.want) ||
			!strings.Contains(err.Error(), s.db.Path()) || s.Failures() != failures+1 {
			t.Errorf("%s: %v, and %d failures", what, err, s.Failures()-failures)
		}
		_ = os.Remove(name) // most are removed
	}
	if now := openFiles(t, filepath.Dir(name)); len(now) != open {
		t.Errorf("open are %s", now)
	}
}
