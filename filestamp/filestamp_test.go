package filestamp

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestOf: each way in which a file can become another one is seen, with its time and size
// as they were.
func TestOf(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	at := time.Unix(1_000_000_000, 0)
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	look := func() Stamp {
		t.Helper()
		s, err := Of(path)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := look(); s.Exists() || s != (Stamp{}) {
		t.Errorf("no file: %+v", s)
	}
	write(path, "alice")
	before := look()
	if !before.Exists() || !before.ModTime.Equal(at) || look() != before {
		t.Errorf("%+v, then %+v", before, look())
	}
	for what, change := range map[string]func(){
		"written in place": func() { write(path, "carol") },
		"renamed over": func() {
			write(path+".new", "carol")
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		},
		"a right that was given": func() {
			if err := os.Chmod(path, 0o640); err != nil {
				t.Fatal(err)
			}
		},
		"gone": func() {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		write(path, "alice")
		before := look()
		time.Sleep(20 * time.Millisecond) // a kernel's clock of files has ticks
		change()
		if look() == before {
			t.Errorf("%s: not seen", what)
		}
	}
	if _, err := Of(filepath.Join(dir, "file\x00")); err == nil {
		t.Error("a name that no file can have is no error")
	}
}
