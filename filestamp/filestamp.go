// Package filestamp tells whether a file is another one than before, without reading it.
//
// Times and sizes alone do not: a deployment may give every file one time, and a right to
// read that is given to a file leaves both as they are. So the inode counts, and the time
// at which it was changed last, which nobody can set.
package filestamp

import (
	"errors"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// Stamp is what a file looked like. Two that are equal are of one file that nobody has
// touched in between. The zero Stamp is of a file that is not there.
type Stamp struct {
	ModTime time.Time // in UTC
	size    int64
	device  uint64
	inode   uint64
	changed unix.Timespec
}

// Exists tells whether there was a file.
func (s Stamp) Exists() bool { return s != Stamp{} }

// Of looks at a file, through symbolic links. The error is an *fs.PathError; a file that is
// not there is none.
func Of(path string) (Stamp, error) {
	var st unix.Stat_t
	for {
		err := unix.Stat(path, &st)
		switch {
		case errors.Is(err, unix.EINTR): // on a network file system
			continue
		case errors.Is(err, fs.ErrNotExist):
			return Stamp{}, nil
		case err != nil:
			return Stamp{}, &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		return Stamp{
			ModTime: time.Unix(st.Mtim.Unix()).UTC(), size: st.Size,
			device: uint64(st.Dev), inode: st.Ino, changed: st.Ctim, //nolint:unconvert // Dev has another type elsewhere
		}, nil
	}
}
