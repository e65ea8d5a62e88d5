package audit

import (
	"fmt"
	"io"
	"os"
	"sync"
)

// File is a log file that is only ever appended to. It may be moved away while
// it is open; Reopen then begins a new one.
type File struct {
	path string

	mu   sync.Mutex
	f    *os.File
	torn bool // the last write left a piece of a line
}

var _ io.WriteCloser = (*File)(nil)

// OpenFile opens a log file for appending, and makes it (readable to owner and
// group) where there is none.
func OpenFile(path string) (*File, error) {
	f, err := openAppend(path)
	if err != nil {
		return nil, err
	}
	return &File{path: path, f: f}, nil
}

func openAppend(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("the audit log cannot be opened: %w; make its folder, writable for the user that this process runs as", err)
	}
	return f, nil
}

// Write appends one line. After a write that ended half way (a full disk) the
// next one begins on a line of its own.
func (l *File) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.torn {
		if _, err := l.f.Write([]byte{'\n'}); err != nil {
			return 0, err
		}
		l.torn = false
	}
	n, err := l.f.Write(line)
	l.torn = err != nil && n > 0
	return n, err
}

// Reopen opens the path anew, as after a rotation. If it can't, writing goes on
// where it was.
func (l *File) Reopen() error {
	f, err := openAppend(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	old := l.f
	l.f, l.torn = f, false
	l.mu.Unlock()
	return old.Close()
}

// Close closes the file.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
