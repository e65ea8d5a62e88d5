package sqlite_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/sqlite"
)

// TestOpenReadOnly reads a store that another Store has open for writing, and a closed store in a folder in which this
// process may not write.
func TestOpenReadOnly(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	path := filepath.Join(dir, "a b%?.db")
	if _, err := sqlite.OpenReadOnly(ctx, path); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "no such file") {
		t.Errorf("a store that does not exist: %v", err)
	}
	if files := list(t, dir); len(files) != 0 {
		t.Errorf("OpenReadOnly made %q", files)
	}
	s, err := sqlite.Open(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	add := func(name string) {
		t.Helper()
		key := metastore.Key{Metadata: claviger.Metadata{Name: name, Cipher: "AES/CTR/NoPadding", BitLength: 128,
			Created: time.Now(), Attributes: map[string]string{}},
			List: []metastore.Version{{ID: name, Object: name, Created: time.Now(), Check: make([]byte, 8)}}}
		if err := s.Insert(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	wantNames := func(want ...string) {
		t.Helper()
		r, err := sqlite.OpenReadOnly(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.Names(ctx)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
		if keys, err := r.Get(ctx, want...); err != nil || keys[0] == nil {
			t.Errorf("%v, %v", keys, err)
		}
		if err := r.SetSetting(ctx, "x", "y"); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("a write: %v", err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	add("k1")
	wantNames("k1") // the store is open, and the key is only in the -wal
	add("k2")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before := list(t, dir)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	wantNames("k1", "k2")
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if after := list(t, dir); !slices.Equal(before, after) {
		t.Errorf("files %q before, %q after", before, after)
	}
}

// list returns the names of a folder's files with their times.
func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e.Name()+" "+info.ModTime().String())
	}
	return out
}
