package sqlitedb

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestWorkErrorNamesNoWorkFile checks that an error of NewWork names the file that the operator gave.
func TestWorkErrorNamesNoWorkFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "monday.db")
	w, err := NewWork(path, "backup")
	if err == nil {
		w.Discard()
		t.Fatal("NewWork made a file in a folder that does not exist")
	}
	if want := "open " + path + ": no such file or directory"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

// TestLeftovers checks that NewWork removes the work files that killed processes have left in the same folder, and
// removes nothing else.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, mode fs.FileMode, text string) string {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	magic := "SQLite format 3\x00 and so on"
	put(".monday.db.backup-ABCDEFGHIJKL", 0o600, magic)
	put(".monday.db.backup-ABCDEFGHIJKL-journal", 0o600, "any")
	put(".tuesday.db.new-ABCDEFGHIJKM", 0o600, "")
	put(".tuesday.db.restore-ABCDEFGHIJKN", 0o600, "\x00\x00\x00")
	put(".friday.db.new-ABCDEFGHIJKO.lock", 0o600, "") // its work file was renamed
	keep := []string{
		put(".another.backup-ABCDEFGHIJKL", 0o600, "a text of another program"),
		put(".another.backup-ABCDEFGHIJKM", 0o640, magic),
		put(".short.backup-ABC", 0o600, magic),
		put("seen.backup-ABCDEFGHIJKL", 0o600, magic),
	}
	alive, err := NewWork(filepath.Join(dir, "wednesday.db"), "backup")
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Discard()
	keep = append(keep, filepath.Base(alive.Path))
	if st, err := os.Stat(alive.Path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	next, err := NewWork(filepath.Join(dir, "thursday.db"), "new")
	if err != nil {
		t.Fatal(err)
	}
	put(filepath.Base(next.Path)+"-wal", 0o600, "any")
	next.Discard()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	slices.Sort(keep)
	if !slices.Equal(got, keep) {
		t.Errorf("%q, want %q", got, keep)
	}
}
