package softhsmtest

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"claviger/internal/softhsm"
)

// Small makes a token as New does, and puts its files on a small file system. fill fills that file system, and free
// makes room again.
func Small(t testing.TB) (token softhsm.Token, fill, free func()) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "softhsm")
	tokens := filepath.Join(dir, "tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", tokens, "tmpfs", 0, "size=512k"); err != nil {
		t.Skipf("no file system of a small size can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(tokens, syscall.MNT_DETACH) })
	filler := filepath.Join(tokens, "filler")
	fill = func() {
		f, err := os.Create(filler) //nolint:gosec // a file of a test
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		_ = f.Close() // the file system is full
	}
	free = func() {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
	return NewIn(t, dir, "claviger-test"), fill, free
}
