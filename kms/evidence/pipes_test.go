package evidence

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"claviger/migrate/evidence"
	"claviger/terminal"
)

// TestPipes: if a named pipe without a writer, a device or a folder is given instead of a file to read, the commands
// refuse it at once. As the file to write, it is refused and not replaced.
func TestPipes(t *testing.T) {
	dir := t.TempDir()
	pipe, key := filepath.Join(dir, "pipe"), filepath.Join(dir, "report.key")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := evidence.MakeKey(key); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{pipe, "/dev/null", dir} {
		_, verdictErr := readVerdict(file)
		_, keyErr := (&Options{Out: filepath.Join(dir, "report.zip"), Key: file}).prepare()
		for what, err := range map[string]error{
			"report":     verify(file, key+".pub", terminal.To(nil)),
			"public key": verify(key, file, terminal.To(nil)),
			"verdict":    verdictErr,
			"key":        keyErr,
		} {
			if err == nil || !strings.Contains(err.Error(), "a pipe, device or folder cannot be read") {
				t.Errorf("%s %s: %v", what, file, err)
			}
		}
		if err := verify(file, "", terminal.To(nil)); err == nil || strings.Contains(err.Error(), "names the key") {
			t.Errorf("%s without a public key: %v", file, err)
		}
		o := Options{Out: file, Key: key, Overwrite: true}
		if _, err := o.prepare(); err == nil || !strings.Contains(err.Error(), "replaces only a report") {
			t.Errorf("--out %s: %v", file, err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().IsRegular() {
			t.Errorf("%s was replaced: %v, %v", file, info, err)
		}
	}
}
