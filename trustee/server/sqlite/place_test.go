package sqlite

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger"
	"claviger/trustee/server/storetest"
)

// TestNotInPlace: a store whose file was moved, removed or replaced accepts no change and is not ready. A copy of
// its records is made. If the file is put back, the store works again.
func TestNotInPlace(t *testing.T) {
	for name, remove := range map[string]func(path string) error{
		"moved": func(path string) error { return os.Rename(path, path+".away") },
		"removed": func(path string) error {
			for _, end := range []string{"", "-wal", "-shm"} {
				_ = os.Remove(path + end) // the -shm may not be there
			}
			return nil
		},
		"replaced": func(path string) error {
			other := path + ".other"
			if err := os.WriteFile(other, []byte("another store"), 0o600); err != nil {
				return err
			}
			return os.Rename(other, path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newFilledStore(t)
			check(t, a.Check(t.Context()))
			want := storetest.Digest(t, a)
			check(t, remove(a.db.Path()))
			for what, err := range map[string]error{"a change": a.SetAuth(t.Context(), "ORG", "late"),
				"the check": a.Check(t.Context())} {
				if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(),
					"while this server uses it") || !strings.Contains(err.Error(), ".rescued-") {
					t.Errorf("%s: %v", what, err)
				}
			}
			kept, _ := filepath.Glob(a.db.Path() + ".rescued-*") // the pattern is valid
			if len(kept) != 1 {
				t.Fatalf("%q", kept)
			}
			if st, err := os.Stat(kept[0]); err != nil || st.Mode() != 0o600 {
				t.Errorf("the copy: %v, %v", st.Mode(), err)
			}
			if files, err := filepath.Glob(filepath.Join(filepath.Dir(kept[0]), ".*")); err != nil || len(files) > 0 {
				t.Errorf("temporary files: %q, %v", files, err)
			}
			b, err := Open(t.Context(), kept[0], false)
			check(t, err)
			defer b.Close()
			if storetest.Digest(t, b) != want {
				t.Error("the copy does not hold all records")
			}
			if name == "moved" {
				check(t, os.Rename(a.db.Path()+".away", a.db.Path()))
				check(t, a.SetAuth(t.Context(), "ORG", "back"))
				check(t, a.Check(t.Context()))
			}
		})
	}
}

// TestRescueTriesAgain: if the copy of a store that was moved cannot be made, the next check tries again.
func TestRescueTriesAgain(t *testing.T) {
	a := newFilledStore(t)
	path := a.db.Path()
	dir := filepath.Dir(path)
	check(t, os.Rename(dir, dir+".away"))
	refused := func(want string) {
		t.Helper()
		failures := a.Failures()
		err := a.Check(t.Context())
		if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), want) ||
			a.Failures() == failures {
			t.Errorf("%v, want %q", err, want)
		}
	}
	refused("it could not be copied")
	check(t, os.Rename(dir+".away", dir))
	check(t, os.Rename(path, path+".away"))
	refused("a copy of all that this server holds is " + path + ".rescued-")
	check(t, os.Rename(path+".away", path))
	check(t, a.Check(t.Context()))
	check(t, os.Remove(a.place.rescued))
	check(t, os.Rename(path, path+".away"))
	refused(".rescued-") // there is one copy
	if kept, err := filepath.Glob(path + ".rescued-*"); err != nil || len(kept) > 0 {
		t.Errorf("%q, %v", kept, err)
	}
	check(t, os.Rename(path+".away", path))
}
