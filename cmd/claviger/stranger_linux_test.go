package main

import (
	"os"
	"path/filepath"
	"testing"
)

// stranger is the uid of nobody, a user without rights.
const stranger = 65534

// programOf makes a folder that every user can enter, unlike t.TempDir, with this program in it. It is for a test that
// runs the program as another user. why says what only root can do.
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
	program = filepath.Join(base, "claviger") // testscript's main runs under this name
	copyFile(t, program, "/proc/self/exe", 0o755)
	return base, program
}

// give gives all files below root to a user.
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
