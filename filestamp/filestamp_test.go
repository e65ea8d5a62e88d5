package filestamp

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestOf checks that each kind of change gives another stamp, although time and size stay the same.
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
	stamp := func() Stamp {
		t.Helper()
		s, err := Of(path)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := stamp(); s.Exists() || s != (Stamp{}) {
		t.Errorf("no file: %+v", s)
	}
	write(path, "alice")
	before := stamp()
	if !before.Exists() || !before.ModTime.Equal(at) || stamp() != before {
		t.Errorf("%+v, then %+v", before, stamp())
	}
	for what, change := range map[string]func(){
		"written in place": func() { write(path, "carol") },
		"renamed over": func() {
			write(path+".new", "carol")
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		},
		"mode changed": func() {
			if err := os.Chmod(path, 0o640); err != nil {
				t.Fatal(err)
			}
		},
		"removed": func() {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		write(path, "alice")
		before := stamp()
		time.Sleep(20 * time.Millisecond) // the kernel's clock for file times advances in ticks
		change()
		if stamp() == before {
			t.Errorf("%s: the stamp is the same", what)
		}
	}
	write(path, "alice")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := OfOpen(f); err != nil || s != stamp() {
		t.Errorf("the open file: %+v, %v", s, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OfOpen(f); err == nil {
		t.Error("OfOpen accepted a closed file")
	}
	if _, err := Of(filepath.Join(dir, "file\x00")); err == nil {
		t.Error("Of accepted a name that no file can have")
	}
}
