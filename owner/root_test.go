package owner

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// nobody is a user without rights to anything.
const nobody = 65534

// TestRefuseRoot checks that RefuseRoot refuses files of another user, and missing files in a folder of another user.
// It must accept root's own files, and missing files in a sticky folder, in which every user writes.
func TestRefuseRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files to another user")
	}
	mine, theirs, sticky := t.TempDir(), t.TempDir(), t.TempDir()
	file := filepath.Join(mine, "file")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chown(file, nobody, nobody),
		os.Chown(theirs, nobody, nobody),
		os.Chown(sticky, nobody, nobody), os.Chmod(sticky, 0o777|os.ModeSticky)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ file, refused string }{
		{file, file},
		{filepath.Join(theirs, "missing"), theirs},
		{filepath.Join(mine, "missing"), ""},
		{filepath.Join(sticky, "missing"), ""},
		{filepath.Join(mine, "missing", "deeper"), ""},
	} {
		err := RefuseRoot(filepath.Join(mine, "first"), c.file)
		var root *RootError
		if c.refused == "" && err == nil {
			continue
		}
		if !errors.As(err, &root) || root.File != c.refused || !strings.Contains(err.Error(), "sudo -u 'nobody'") {
			t.Errorf("%s: %v", c.file, err)
		}
		if err := refuseRoot(nobody, []string{c.file}); err != nil {
			t.Errorf("%s, as another user: %v", c.file, err)
		}
	}
}
