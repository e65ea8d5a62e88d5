// Package filestamp finds out whether a file has changed, without reading it.
//
// Time and size are not enough: a deployment may give every file the same time, and a change of a file's mode changes
// neither. So a stamp also has the inode, and the time of the inode's last change, which no program can set.
package filestamp

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Stamp is the state of a file. If two stamps are equal, the file was not changed between them. The zero Stamp means
// that the file does not exist.
type Stamp struct {
	ModTime time.Time // in UTC
	size    int64
	device  uint64
	inode   uint64
	changed unix.Timespec
}

// Exists reports whether the file existed.
func (s Stamp) Exists() bool { return s != Stamp{} }

// Of returns the stamp of a file, through symbolic links. The error is an *fs.PathError. A file
// that does not exist is not an error.
func Of(path string) (Stamp, error) {
	s, err := stamp("stat", path, func(st *unix.Stat_t) error { return unix.Stat(path, st) })
	if errors.Is(err, fs.ErrNotExist) {
		return Stamp{}, nil
	}
	return s, err
}

// OfOpen returns the stamp of an open file.
func OfOpen(f *os.File) (Stamp, error) {
	return stamp("fstat", f.Name(), func(st *unix.Stat_t) error {
		return unix.Fstat(int(f.Fd()), st) //nolint:gosec // a descriptor is an int
	})
}

func stamp(op, path string, stat func(*unix.Stat_t) error) (Stamp, error) {
	var st unix.Stat_t
	for {
		err := stat(&st)
		switch {
		case errors.Is(err, unix.EINTR): // possible on a network file system
			continue
		case err != nil:
			return Stamp{}, &fs.PathError{Op: op, Path: path, Err: err}
		}
		return Stamp{
			ModTime: time.Unix(st.Mtim.Unix()).UTC(), size: st.Size,
			device: uint64(st.Dev), inode: st.Ino, changed: st.Ctim, //nolint:unconvert // Dev has other types elsewhere
		}, nil
	}
}
