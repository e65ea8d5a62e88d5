package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"claviger/durable"
	"claviger/durable/durabletest"
)

// content returns a function that reads a file; the result is "none" if the file does not exist.
func content(name string) func(string) (string, error) {
	return func(dir string) (string, error) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return "none", nil
		}
		return string(data), err
	}
}

func put(name, text string) func(string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
}

var cases = map[string]durabletest.Case{
	"Create": {
		Do:    func(dir string) error { return durable.Create(filepath.Join(dir, "f"), []byte("new"), 0o600) },
		State: content("f"),
	},
	"Publish": {
		Do: func(dir string) error {
			if err := put("other", "new")(dir); err != nil { // another library writes this file
				return err
			}
			return durable.Publish(filepath.Join(dir, "other"), filepath.Join(dir, "f"))
		},
		State: content("f"),
	},
	"Replace": {
		Setup: put("f", "old"),
		Do:    func(dir string) error { return durable.Replace(filepath.Join(dir, "f"), []byte("new"), 0o600) },
		State: content("f"),
	},
	"Rename": {
		Setup: put("f", "old"),
		Do: func(dir string) error {
			f := filepath.Join(dir, "f")
			if _, err := os.Stat(f); errors.Is(err, fs.ErrNotExist) {
				return durable.SyncFolder(dir) // it was moved before
			}
			return durable.Rename(f, filepath.Join(dir, "g"))
		},
		State: content("g"),
	},
	"Remove": {
		Setup: put("f", "old"),
		Do:    func(dir string) error { return durable.Remove(filepath.Join(dir, "f"), filepath.Join(dir, "absent")) },
		State: content("f"),
	},
	"MakeFolder": {
		Do: func(dir string) error {
			if err := durable.MakeFolder(filepath.Join(dir, "a", "b"), 0o700); err != nil {
				return err
			}
			return durable.Create(filepath.Join(dir, "a", "b", "f"), []byte("new"), 0o600)
		},
		State: content("a/b/f"),
		// If a/b exists already, a second attempt syncs only a/b, and not the folders above it.
		NoRetry: true,
	},
	"OpenLog": {
		Do: func(dir string) error {
			f, err := durable.OpenLog(filepath.Join(dir, "log"), 0o600)
			if err != nil {
				return err
			}
			_, err = f.Write([]byte("line\n"))
			if err == nil {
				err = f.Sync()
			}
			return errors.Join(err, f.Close())
		},
		// After a power cut the log may end in the middle of a line, and may be empty.
		Between: []string{""},
		State: func(dir string) (string, error) {
			text, err := content("log")(dir)
			if strings.HasPrefix(text, "line\n") {
				text = "line" // a second attempt writes the line again
			}
			return text, err
		},
	},
}

// TestDurable: each function survives faults and power cuts at each step.
func TestDurable(t *testing.T) {
	for name, c := range cases {
		t.Run(name, func(t *testing.T) { durabletest.Run(t, c) })
	}
}

// TestSuiteFindsMistakes checks that the suite finds the mistake of each of these writers.
func TestSuiteFindsMistakes(t *testing.T) {
	writeTo := func(f durable.File, sync bool) error {
		_, err := f.Write([]byte("new"))
		if err == nil && sync {
			err = f.Sync()
		}
		return errors.Join(err, f.Close())
	}
	for name, do := range map[string]func(dir string) error{
		"content not synced": func(dir string) error {
			f, err := durable.OpenLog(filepath.Join(dir, "tmp"), 0o600)
			if err == nil {
				err = writeTo(f, false)
			}
			if err != nil {
				return err
			}
			return durable.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, "f"))
		},
		"written in place": func(dir string) error {
			f, err := durable.OpenLog(filepath.Join(dir, "f"), 0o600)
			if err == nil {
				err = f.Truncate(0)
			}
			if err != nil {
				return err
			}
			return writeTo(f, true)
		},
		"error of a sync ignored": func(dir string) error {
			p, err := durable.Prepare(filepath.Join(dir, "f"), 0o600, func(w io.Writer) error {
				_, err := w.Write([]byte("new"))
				return err
			})
			if err == nil {
				_ = p.Replace()
			}
			return err
		},
		"old file removed first": func(dir string) error {
			if err := durable.Remove(filepath.Join(dir, "f")); err != nil {
				return err
			}
			return durable.Create(filepath.Join(dir, "f"), []byte("new"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := durabletest.Case{Setup: put("f", "old"), Do: do, State: content("f")}
			if faults := durabletest.Faults(t, c); len(faults) == 0 {
				t.Error("the suite finds no fault")
			} else {
				t.Log(len(faults), faults[0])
			}
		})
	}
}

// TestCreateKeeps: Create never replaces a file, not even one that appears while it works.
func TestCreateKeeps(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := durable.Create(path, []byte("first"), 0o640); err != nil {
		t.Fatal(err)
	}
	err := durable.Create(path, []byte("second"), 0o600)
	var already *durable.AlreadyError
	if !errors.As(err, &already) || already.Path != path || !errors.Is(err, fs.ErrExist) {
		t.Errorf("error is %v", err)
	}
	// Another process may make the file after the first check of Create.
	p, err := durable.Prepare(path, 0o600, func(w io.Writer) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Create(); !errors.As(err, &already) {
		t.Errorf("error is %v", err)
	}
	if err := p.Discard(); err != nil {
		t.Error(err)
	}
	if data, _ := os.ReadFile(path); string(data) != "first" {
		t.Errorf("the file holds %q", data)
	}
	wantFiles(t, dir, "f")
}

// wantFiles demands that a folder has these files, and no others.
func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if fmt.Sprint(names) != fmt.Sprint(want) {
		t.Errorf("the folder holds %q, want %q", names, want)
	}
}

// noLinks is a file system without hard links.
type noLinks struct{ durable.OS }

func (*noLinks) Link(from, to string) error {
	return &os.LinkError{Op: "link", Old: from, New: to, Err: syscall.EPERM}
}

// TestCreateWithoutLinks: the same holds on a file system without hard links.
func TestCreateWithoutLinks(t *testing.T) {
	dir := t.TempDir()
	defer durable.Mount(dir, new(noLinks))()
	path := filepath.Join(dir, "f")
	if err := durable.Create(path, []byte("first"), 0o640); err != nil {
		t.Fatal(err)
	}
	p, err := durable.Prepare(path, 0o600, func(io.Writer) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	var already *durable.AlreadyError
	if err := errors.Join(p.Create(), p.Discard()); !errors.As(err, &already) {
		t.Errorf("error is %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "first" {
		t.Errorf("the file holds %q", data)
	}
	wantFiles(t, dir, "f")
}

// full is a file system on a full disk.
type full struct{ durable.OS }

type fullFile struct{ durable.File }

func (*full) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	f, err := os.OpenFile(name, flag, mode)
	return fullFile{f}, err
}

func (fullFile) Sync() error {
	return &fs.PathError{Op: "sync", Path: "/x/.f.tmp-ABC", Err: syscall.ENOSPC}
}

// TestMessages checks that an error names the file, and not the temporary file, and that the temporary file is removed.
func TestMessages(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	defer durable.Mount(dir, new(full))()
	for _, err := range []error{
		durable.Create(path, nil, 0o600), durable.Replace(path, nil, 0o600),
		durable.Create(filepath.Join(dir, "absent", "f"), nil, 0o600),
	} {
		if err == nil || !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "tmp-") {
			t.Errorf("error is %v", err)
		}
	}
	wantFiles(t, dir)
}

// TestOwner checks that a file still belongs to its owner after root has replaced it.
func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, 12345, 12346)); err != nil {
		t.Fatal(err)
	}
	if err := durable.Replace(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 12345 || sys.Gid != 12346 {
		t.Errorf("the file belongs to %d:%d now", sys.Uid, sys.Gid)
	}
	if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, []byte("new")) {
		t.Errorf("the file holds %q: %v", data, err)
	}
}
