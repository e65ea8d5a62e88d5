package softhsmtest

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"claviger/internal/softhsm"
)

// Small is New, for a token whose files lie on a disk of their own. fill takes all room that
// is left there, and free gives it back.
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
		f, err := os.Create(filler) //nolint:gosec // of a test
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		_ = f.Close() // it is full
	}
	free = func() {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
	return In(t, dir, "claviger-test"), fill, free
}
