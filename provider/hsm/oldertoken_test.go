package hsm_test

import (
	"os"
	"path/filepath"
	"testing"
)

// tokenFiles returns the path of the token's folder, and the content of each file in it.
func (b *testSite) tokenFiles(t *testing.T) (path string, files map[string][]byte) {
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

// restoreToken replaces the files of the token.
func (b *testSite) restoreToken(t *testing.T, files map[string][]byte) {
	t.Helper()
	path, current := b.tokenFiles(t)
	for name := range current {
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

// TestOlderToken: a token was restored from a backup that lacks a key. No new key is made on it, because the new key
// would be lost if the newer backup is restored later. If a restored token lacks no key, it is used as before.
func TestOlderToken(t *testing.T) {
	b := newSite(t)
	for _, key := range []string{"a", "b", "c"} {
		b.create(t, key)
	}
	_, older := b.tokenFiles(t)
	mustClose(t, b.mustOpen(t)) // this start writes a newer incarnation to the token than the copy older has
	b.restoreToken(t, older)
	p := b.mustOpen(t)
	create(t, p, "d")
	mustClose(t, p)
	_, newer := b.tokenFiles(t)

	b.restoreToken(t, older)
	for range 2 {
		p = b.mustOpen(t)
		wantStopped(t, p, "a", "is older than metastore", "d@0")
		keystream(t, p, "a@0")
		mustClose(t, p)
	}
	b.restoreToken(t, newer)
	p = b.mustOpen(t)
	create(t, p, "e")
	mustClose(t, p)
	if list := objects(t, b.mustOpen(t)); len(list) != 5 {
		t.Errorf("%+v", list)
	}

	// The newer backup is lost, so an operator gives up the key d.
	b.restoreToken(t, older)
	b.rebind(t)
	p = b.mustOpen(t)
	create(t, p, "f")
	mustClose(t, p)
}
