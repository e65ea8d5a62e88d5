package secret_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/secret"
)

// TestExposedCode: a file with code, and the folders above both ends of a symbolic link to it, may be written by root
// and the user alone. The sticky bit of a folder, the group of root and the owner's own group let no other user write.
func TestExposedCode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to a group")
	}
	const daemon = 1 // the user daemon and the group daemon, on every Linux
	for name, c := range map[string]struct {
		change func(dir string) error // of the folder dir with the folder lib and the file lib/hsm.so
		want   string
	}{
		"as installed": {func(string) error { return nil }, ""},
		"file written by everybody": {chmod("lib/hsm.so", 0o666),
			"module DIR/lib/hsm.so may be written by everybody (mode 0666), who can harm; " +
				"cure: chmod o-w DIR/lib/hsm.so"},
		"file written by a group": {func(dir string) error {
			return errors.Join(os.Chown(dir+"/lib/hsm.so", 0, daemon), chmod("lib/hsm.so", 0o775)(dir))
		}, "module DIR/lib/hsm.so may be written by the group daemon (mode 0775), who can harm; " +
			"cure: chmod g-w DIR/lib/hsm.so"},
		"file written by the group of root": {chmod("lib/hsm.so", 0o775), ""},
		"folder written by everybody": {chmod("lib", 0o777),
			"folder DIR/lib may be written by everybody (mode 0777), who can replace module DIR/lib/hsm.so; " +
				"cure: chmod o-w DIR/lib"},
		"sticky folder": {chmod("lib", 0o777|os.ModeSticky), ""},
		"folder above written by a group": {func(dir string) error {
			return errors.Join(os.Chown(dir, 0, daemon), os.Chmod(dir, 0o775)) //nolint:gosec // the fault of the test
		}, "folder DIR may be written by the group daemon (mode 0775), which can replace module DIR/lib/hsm.so; " +
			"cure: chmod g-w DIR"},
		"folder of a user with a group of the same name": {func(dir string) error {
			return errors.Join(os.Chown(dir, daemon, daemon), os.Chmod(dir, 0o775)) //nolint:gosec // as above
		}, ""},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			top := t.TempDir()
			dir := filepath.Join(top, "hsm")
			err := errors.Join(os.Chmod(top, 0o700), os.MkdirAll(dir+"/lib", 0o700),
				os.WriteFile(dir+"/lib/hsm.so", nil, 0o600), c.change(dir))
			if err != nil {
				t.Fatal(err)
			}
			f := secret.File{Path: dir + "/lib/hsm.so", Kind: "module", Risk: "who can harm"}
			got := strings.ReplaceAll(strings.Join(secret.Self().ExposedCode(f), "; "), dir, "DIR")
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			link := filepath.Join(t.TempDir(), "link.so")
			if err := os.Symlink(f.Path, link); err != nil {
				t.Fatal(err)
			}
			f.Path = link
			if found := len(secret.Self().ExposedCode(f)) > 0; found != (c.want != "") {
				t.Errorf("by a symbolic link: %v", secret.Self().ExposedCode(f))
			}
		})
	}
}

func chmod(name string, mode os.FileMode) func(string) error {
	return func(dir string) error { return os.Chmod(filepath.Join(dir, name), mode) }
}
