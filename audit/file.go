package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"claviger/durable"
)

// Rotation says when a log file is renamed and a new file is started. The zero value means never; logrotate may
// rotate the file, and then SIGHUP calls Reopen.
type Rotation struct {
	Size  int64         // bytes from which on a file is put aside; 0: any
	Every time.Duration // its age then; 0: any
	Keep  int           // how many files put aside are kept; 0: all
}

// rotatedLayout is the end of the name of a file that was put aside: the time
// (UTC) at which it was, so that names don't change any more and sort by time.
const rotatedLayout = "20060102T150405.000Z"

// checkEvery is the interval at which a File checks whether its path still names the open file.
const checkEvery = time.Second

// File is a log file that is only ever appended to. It may be moved away or
// removed while it is open; Turn and Reopen then begin a new one.
type File struct {
	path      string
	rotation  Rotation
	exclusive bool

	mu     sync.Mutex
	f      durable.File
	begun  time.Time
	looked time.Time
	moved  bool // Reopen was called since the last Turn
	torn   bool // the last write left a piece of a line
}

var _ io.WriteCloser = (*File)(nil)

// OpenFile opens a log file for appending, and makes it (readable to owner and
// group) where there is none.
func OpenFile(path string, r Rotation) (*File, error) {
	return openFile(&File{path: path, rotation: r})
}

// OpenExclusiveFile is OpenFile for a file that no other process may append to
// at the same time; where one does, it fails.
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

// use begins to write into f. A file that was there is as old as its last
// change, so that a restart does not make it young.
func (l *File) use(f durable.File) {
	l.f, l.torn, l.begun, l.looked = f, false, time.Now(), time.Now()
	if st, err := f.Stat(); err == nil && st.Size() > 0 {
		l.begun = st.ModTime()
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
			return nil, fmt.Errorf("the audit log %s is being written by another process (%w); give each server a "+
				"file of its own", l.path, err)
		}
	}
	return f, nil
}

// Path is where the file lies.
func (l *File) Path() string { return l.path }

// Write appends lines. Where it fails half way (a full disk) the half is taken
// back, or if that can't be done the next write begins on a line of its own.
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

// Sync waits until what was written is on the disk.
func (l *File) Sync() error {
	l.mu.Lock()
	f := l.f
	l.mu.Unlock()
	return f.Sync()
}

// Turn begins a new file where the rotation says so, or where the path does not
// lead to the open one any more; turned tells that what is written next goes
// into another file than what was written before. Where it has not turned and
// failed, the open file is one that nobody finds by the path. It is to be called
// before each Write, and costs nothing most of the time.
func (l *File) Turn(now time.Time) (turned bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	turned, l.moved = l.moved, false
	if now.Sub(l.looked) < checkEvery {
		return turned, nil
	}
	l.looked = now
	open, err := l.f.Stat()
	if err != nil {
		return turned, err
	}
	if there, err := os.Stat(l.path); errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(open, there) {
		if err := l.reopen(); err != nil {
			l.looked = time.Time{} // look again before the next line
			return false, err
		}
		return true, nil
	}
	r := l.rotation
	if open.Size() == 0 || (r.Size == 0 || open.Size() < r.Size) && (r.Every == 0 || now.Sub(l.begun) < r.Every) {
		return turned, nil
	}
	aside := l.path + "." + now.UTC().Format(rotatedLayout)
	if _, err := os.Lstat(aside); err == nil {
		return turned, nil // twice within a millisecond: the next time
	}
	if err := durable.Rename(l.path, aside); err != nil {
		return turned, fmt.Errorf("the audit log cannot be put aside: %w", err)
	}
	if err := l.reopen(); err != nil {
		l.looked = time.Time{}
		return false, err
	}
	return true, l.prune()
}

// Reopen opens the path anew, as after a rotation by somebody else. If it can't,
// writing goes on where it was.
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
			return nil // it was not moved, and its lock is ours
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

// prune removes the oldest of the files that were put aside.
func (l *File) prune() error {
	if l.rotation.Keep <= 0 {
		return nil
	}
	names, err := l.aside()
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

// aside are the files that Turn has put aside, the oldest first.
func (l *File) aside() ([]string, error) {
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
	slices.Sort(names)
	return names, nil
}

// Close closes the file.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
