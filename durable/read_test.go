package durable_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"claviger/durable"
)

// TestReadRegular: only a regular file of the right size is read, and no named pipe is opened.
func TestReadRegular(t *testing.T) {
	dir := t.TempDir()
	file, pipe, link := filepath.Join(dir, "file"), filepath.Join(dir, "pipe"), filepath.Join(dir, "link")
	for _, err := range []error{os.WriteFile(file, []byte("text"), 0o600), syscall.Mkfifo(pipe, 0o600),
		os.Symlink("pipe", link)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if data, err := durable.ReadRegular(file, 4); err != nil || string(data) != "text" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := durable.ReadRegular(file, 3); err == nil || !strings.Contains(err.Error(), "more than 3 bytes") {
		t.Errorf("a file that is too large: %v", err)
	}
	for _, path := range []string{pipe, link, dir, os.DevNull} {
		if _, err := durable.ReadRegular(path, 4); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := durable.OpenRegular(filepath.Join(dir, "none")); !os.IsNotExist(err) {
		t.Errorf("no file: %v", err)
	}
}
