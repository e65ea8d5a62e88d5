package main

import (
	"os"
	"path/filepath"
	"testing"
)

// stranger is a user without rights to anything: nobody.
const stranger = 65534

// programOf makes a folder that every user may enter, which t.TempDir is not, with this
// program in it, for a test that runs it as another user. why is what only root can do.
func programOf(t *testing.T, why string) (base, program string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can " + why)
	}
	base, err := os.MkdirTemp("", "claviger-stranger")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	if err := os.Chmod(base, 0o755); err != nil { //nolint:gosec // another user runs the program in it
		t.Fatal(err)
	}
	program = filepath.Join(base, "claviger") // testscript's main goes by this name
	copyFile(t, program, "/proc/self/exe", 0o755)
	return base, program
}

// give makes all under root a user's.
func give(t *testing.T, root string, user int) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, user, user)
	})
	if err != nil {
		t.Fatal(err)
	}
}
