package owner

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
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
		if !errors.As(err, &root) || root.File != c.refused || !strings.Contains(err.Error(), "sudo -u nobody ") {
			t.Errorf("%s: %v", c.file, err)
		}
		if err := refuseRoot(nobody, []string{c.file}); err != nil {
			t.Errorf("%s, as another user: %v", c.file, err)
		}
	}
}

// TestGiveFromRoot: root gives away a file that it has made, and no file behind a link that was put in its place.
func TestGiveFromRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"store", "backup", "other"} {
		if err := os.WriteFile(in(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(in("store"), nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("other", in("symlink")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(in("other"), in("link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(in("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, given := range map[string]bool{"backup": true, "symlink": false, "link": false, "pipe": false} {
		if err := GiveFromRoot(in(name), in("store")); (err == nil) != given {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, want := range map[string]uint32{"backup": nobody, "other": 0, "pipe": 0} {
		st, err := os.Stat(in(name))
		if err != nil {
			t.Fatal(err)
		}
		if sys := st.Sys().(*syscall.Stat_t); sys.Uid != want || sys.Gid != want {
			t.Errorf("%s belongs to %d:%d, want %d", name, sys.Uid, sys.Gid, want)
		}
	}
}
