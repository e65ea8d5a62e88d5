package audit

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger/durable"
)

// TestAgeOfFile: the age of a file counts from its last change before it was opened. A new or empty file has the age 0.
func TestAgeOfFile(t *testing.T) {
	for text, want := range map[string]bool{"": false, "old\n": true} {
		path := filepath.Join(t.TempDir(), "audit.json")
		yesterday := time.Now().Add(-25 * time.Hour)
		err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chtimes(path, yesterday, yesterday))
		if err != nil {
			t.Fatal(err)
		}
		f, err := OpenFile(path, Rotation{Every: 24 * time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, "new\n"); err != nil {
			t.Fatal(err)
		}
		if newFile, err := f.RotateIfNeeded(time.Now().Add(time.Minute)); newFile != want || err != nil {
			t.Errorf("a file with %q from yesterday: a new file: %t, %v", text, newFile, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestRefusedFileIsClosed: a file that another process has locked is not left open.
func TestRefusedFileIsClosed(t *testing.T) {
	dir, disk := t.TempDir(), &stepDisk{}
	defer durable.Mount(dir, disk)()
	path := filepath.Join(dir, "audit.json")
	f, err := OpenExclusiveFile(path, Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenExclusiveFile(path, Rotation{}); err == nil || disk.open != 1 {
		t.Errorf("opened twice: %v, %d files are open", err, disk.open)
	}
	if err := f.Close(); err != nil || disk.open != 0 {
		t.Errorf("Close: %v, %d files are open", err, disk.open)
	}
}

// blindDisk cannot read the state of its files.
type blindDisk struct{ halfDisk }

func (d *blindDisk) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	f, err := d.halfDisk.OpenFile(name, flag, mode)
	return blindFile{f}, err
}

type blindFile struct{ durable.File }

func (blindFile) Stat() (fs.FileInfo, error) { return nil, syscall.EIO }

// TestTornTwice: if a part of a line cannot be removed, no write adds to it, also not after several full disks.
func TestTornTwice(t *testing.T) {
	stuck, blind := &halfDisk{}, &blindDisk{}
	stuck.stuck.Store(true)
	for disk, d := range map[*halfDisk]durable.FS{stuck: stuck, &blind.halfDisk: blind} {
		dir := t.TempDir()
		unmount := durable.Mount(dir, d)
		f, err := OpenFile(filepath.Join(dir, "audit.json"), Rotation{})
		if err != nil {
			t.Fatal(err)
		}
		disk.full.Store(true)
		for _, text := range []string{"first", "second", "third"} {
			if _, err := io.WriteString(f, text); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("a full disk: %v", err)
			}
		}
		disk.full.Store(false)
		if _, err := io.WriteString(f, "last\n"); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		unmount()
		if got, err := os.ReadFile(f.Path()); string(got) != "fi\nlast\n" || err != nil {
			t.Errorf("%T: %q, %v", d, got, err)
		}
	}
}

// TestFolderIsMissing: the files of a missing folder cannot be listed.
func TestFolderIsMissing(t *testing.T) {
	f := &File{path: filepath.Join(t.TempDir(), "none", "audit.json"), rotation: Rotation{Keep: 1}}
	_, tailErr := f.tail()
	for name, err := range map[string]error{"prune": f.prune(), "tail": tailErr} {
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type guardedLogger interface {
	Logger
	Guard
}

// TestFolderIsMoved: while the folder of a log is moved away, no line is written, and operations that must be audited
// are refused. When the folder is back, a new file has all lines.
func TestFolderIsMoved(t *testing.T) {
	for name, open := range map[string]func(t *testing.T, f *File) guardedLogger{
		"Hadoop": func(_ *testing.T, f *File) guardedLogger { return newHadoop(f, 0, time.Now) },
		"chain": func(t *testing.T, f *File) guardedLogger {
			t.Helper()
			c, err := OpenChain(t.Context(), ChainConfig{Node: "n", File: f, HeadEvery: time.Hour,
				Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "log")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			f, err := OpenFile(filepath.Join(dir, "audit.log"), Rotation{})
			if err != nil {
				t.Fatal(err)
			}
			f.checked = time.Now().Add(time.Hour) // no check until the test allows it
			l := open(t, f)
			if err := os.Rename(dir, dir+"-1"); err != nil {
				t.Fatal(err)
			}
			l.Log(t.Context(), event("before"))
			waitFor(t, func() bool { return logged(t, dir+"-1/audit.log", "before") })
			f.mu.Lock()
			f.checked = time.Time{} // a second has passed
			f.mu.Unlock()
			l.Log(t.Context(), event("during"))
			if err := l.Begin(t.Context(), Event{Op: CreateKey}); !errors.Is(err, os.ErrNotExist) || l.Err() == nil {
				t.Errorf("Begin without a folder: %v, Err: %v", err, l.Err())
			}
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := l.Begin(t.Context(), Event{Op: CreateKey}); err != nil {
				t.Errorf("Begin with a folder: %v", err)
			}
			if logged(t, dir+"-1/audit.log", "during") || !logged(t, f.Path(), "during") {
				t.Error("the line was not written to the new file only")
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// logged reports whether a file has a line about a key.
func logged(t *testing.T, path, key string) bool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(text, []byte(key))
}

// TestUnreadable: each function that reads a log or a head returns the error of reading, and leaves no file open.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func(path string) error{
		"tail":  func(path string) error { _, err := tailOf(path); return err },
		"order": func(path string) error { _, err := inOrder([]string{path}); return err },
		"verify": func(path string) error {
			return (&verifier{seal: newSealer(nil)}).file(path)
		},
		"open": func(path string) error {
			f, err := openLog(path)
			if err == nil {
				err = f.Close()
			}
			return err
		},
		"head": func(path string) error { _, _, err := HeadFile(path).Load(t.Context()); return err },
	} {
		if err := read(dir); !errors.Is(err, syscall.EISDIR) {
			t.Errorf("%s of a folder: %v", name, err)
		}
		if err := read(filepath.Join(file, "x")); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s of a file below a file: %v", name, err)
		}
		err := read(file)
		if name == "head" && (err == nil || !strings.HasPrefix(err.Error(), file+": it is not the head")) {
			t.Errorf("%s of another text: %v", name, err)
		}
		if left := openFiles(t); slices.ContainsFunc(left, func(p string) bool { return strings.HasPrefix(p, dir) }) {
			t.Errorf("%s: files are left open: %q", name, left)
		}
	}
}
