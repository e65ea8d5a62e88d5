package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"claviger/durable"
)

// Rotation says when a log file is renamed and a new file is started. The zero value means never; logrotate may
// rotate the file, and then SIGHUP calls Reopen.
type Rotation struct {
	Size  int64         // rotate a file of at least this size, in bytes; 0: no limit
	Every time.Duration // rotate a file of at least this age; 0: no limit
	Keep  int           // how many rotated files are kept; 0: all
}

// rotatedLayout is the end of a rotated file's name: the time (UTC) of the rotation. So a name never changes again,
// and names sort by time.
const rotatedLayout = "20060102T150405.000Z"

// checkEvery is the interval at which a File checks whether its path still names the open file.
const checkEvery = time.Second

// File is a log file to which lines are only appended. It may be moved or removed while it is open; then
// RotateIfNeeded or Reopen begins a new file.
type File struct {
	path      string
	rotation  Rotation
	exclusive bool

	mu      sync.Mutex
	f       durable.File
	started time.Time // the age for Rotation.Every begins here
	checked time.Time // when RotateIfNeeded last compared the path with the open file
	moved   bool      // Reopen was called since the last RotateIfNeeded
	torn    bool      // the last write left a part of a line
}

var _ io.WriteCloser = (*File)(nil)

// OpenFile opens a log file for appending. If the file does not exist, it is made, readable for owner and group.
func OpenFile(path string, r Rotation) (*File, error) {
	return openFile(&File{path: path, rotation: r})
}

// OpenExclusiveFile is OpenFile, but fails if another process has opened the file with it.
func OpenExclusiveFile(path string, r Rotation) (*File, error) {
	return openFile(&File{path: path, rotation: r, exclusive: true})
}

func openFile(l *File) (*File, error) {
	f, err := l.open()
	if err != nil {
		return nil, err
	}
	l.use(f)
	return l, nil
}

// use makes f the file to write to. The age of an existing file counts from its last change, so a restart does not
// reset it to 0.
func (l *File) use(f durable.File) {
	l.f, l.torn, l.started, l.checked = f, false, time.Now(), time.Now()
	if st, err := f.Stat(); err == nil && st.Size() > 0 {
		l.started = st.ModTime()
	}
}

func (l *File) open() (durable.File, error) {
	f, err := durable.OpenLog(l.path, 0o640)
	if err != nil {
		return nil, fmt.Errorf("the audit log cannot be opened: %w; make its folder, writable for the user that this "+
			"process runs as", err)
	}
	if l.exclusive {
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("another process writes to the audit log %s (%w); give each server its own file",
				l.path, err)
		}
	}
	return f, nil
}

// Path is the path of the file.
func (l *File) Path() string { return l.path }

// Write appends lines. If only a part was written (for example on a full disk), Write removes that part; if it cannot
// be removed, the next Write begins a new line.
func (l *File) Write(lines []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.torn {
		if _, err := l.f.Write([]byte{'\n'}); err != nil {
			return 0, err
		}
		l.torn = false
	}
	n, err := l.f.Write(lines)
	if err != nil && n > 0 {
		l.torn = true
		if st, statErr := l.f.Stat(); statErr == nil && st.Size() >= int64(n) &&
			l.f.Truncate(st.Size()-int64(n)) == nil {
			n, l.torn = 0, false
		}
	}
	return n, err
}

// Sync waits until all written lines are on the disk.
func (l *File) Sync() error {
	l.mu.Lock()
	f := l.f
	l.mu.Unlock()
	return f.Sync()
}

// RotateIfNeeded begins a new file if the rotation demands it, or if the path no longer names the open file. newFile
// is true if the next Write goes to another file than the last Write. If newFile is false and err is not nil, the path
// may not name the open file. Call RotateIfNeeded before each Write; most calls do nothing.
func (l *File) RotateIfNeeded(now time.Time) (newFile bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	newFile, l.moved = l.moved, false
	if now.Sub(l.checked) < checkEvery {
		return newFile, nil
	}
	l.checked = now
	open, err := l.f.Stat()
	if err != nil {
		return newFile, err
	}
	if named, err := os.Stat(l.path); errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(open, named) {
		if err := l.reopen(); err != nil {
			l.checked = time.Time{} // check again before the next line
			return false, err
		}
		return true, nil
	}
	r := l.rotation
	if open.Size() == 0 || (r.Size == 0 || open.Size() < r.Size) && (r.Every == 0 || now.Sub(l.started) < r.Every) {
		return newFile, nil
	}
	rotated := l.path + "." + now.UTC().Format(rotatedLayout)
	if _, err := os.Lstat(rotated); err == nil {
		return newFile, nil // there was a rotation in this millisecond: rotate at a later call
	}
	if err := durable.Rename(l.path, rotated); err != nil {
		return newFile, fmt.Errorf("the audit log cannot be rotated: %w", err)
	}
	if err := l.reopen(); err != nil {
		l.checked = time.Time{}
		return false, err
	}
	return true, l.prune()
}

// Reopen opens the path again, for example after a rotation by logrotate. If that fails, File still writes to the old
// file.
func (l *File) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.reopen(); err != nil {
		return err
	}
	l.moved = true
	return nil
}

func (l *File) reopen() error {
	if st, err := os.Stat(l.path); err == nil {
		if open, err := l.f.Stat(); err == nil && os.SameFile(st, open) {
			return nil // it was not moved; opening it again would fail on our own lock
		}
	}
	f, err := l.open()
	if err != nil {
		return err
	}
	old := l.f
	l.use(f)
	return errors.Join(old.Sync(), old.Close())
}

// prune removes the oldest rotated files, except the last Rotation.Keep.
func (l *File) prune() error {
	if l.rotation.Keep <= 0 {
		return nil
	}
	names, err := l.rotated()
	if err != nil {
		return err
	}
	for len(names) > l.rotation.Keep {
		if err := durable.Remove(names[0]); err != nil {
			return fmt.Errorf("an old audit log cannot be removed: %w", err)
		}
		names = names[1:]
	}
	return nil
}

// rotated returns the files that RotateIfNeeded has rotated, the oldest first: ReadDir sorts names.
func (l *File) rotated() ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(l.path))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		end, ok := strings.CutPrefix(e.Name(), filepath.Base(l.path)+".")
		if _, err := time.Parse(rotatedLayout, end); ok && err == nil {
			names = append(names, filepath.Join(filepath.Dir(l.path), e.Name()))
		}
	}
	return names, nil
}

// Close closes the file.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
