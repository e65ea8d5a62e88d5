package hsm_test

import (
	"os"
	"path/filepath"
	"testing"
)

// folder is the token's folder with the content of its files.
func (b *testSite) folder(t *testing.T) (path string, files map[string][]byte) {
	t.Helper()
	path = filepath.Dir(b.files(t)[0])
	list, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	files = map[string][]byte{}
	for _, f := range list {
		data, err := os.ReadFile(filepath.Join(path, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[f.Name()] = data
	}
	return path, files
}

func (b *testSite) putFolder(t *testing.T, files map[string][]byte) {
	t.Helper()
	path, now := b.folder(t)
	for name := range now {
		if err := os.Remove(filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(path, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOlderToken: a token was restored from a backup that lacks a key. No key is made on it, because restoring the
// newer backup would lose that key. If a restored token lacks no key, it is used as before.
func TestOlderToken(t *testing.T) {
	b := newSite(t)
	for _, key := range []string{"a", "b", "c"} {
		b.create(t, key)
	}
	_, old := b.folder(t)
	mustClose(t, b.mustOpen(t)) // from here on the copy of the token is not the newest
	b.putFolder(t, old)
	p := b.mustOpen(t)
	create(t, p, "d")
	mustClose(t, p)
	_, whole := b.folder(t)

	b.putFolder(t, old)
	for range 2 {
		p = b.mustOpen(t)
		wantStopped(t, p, "a", "is older than metastore", "d@0")
		keystream(t, p, "a@0")
		mustClose(t, p)
	}
	b.putFolder(t, whole)
	p = b.mustOpen(t)
	create(t, p, "e")
	mustClose(t, p)
	if list := objects(t, b.mustOpen(t)); len(list) != 5 {
		t.Errorf("%+v", list)
	}

	// The newer backup is lost, and the key is given up.
	b.putFolder(t, old)
	b.rebind(t)
	p = b.mustOpen(t)
	create(t, p, "f")
	mustClose(t, p)
}
