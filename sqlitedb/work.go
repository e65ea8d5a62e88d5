package sqlitedb

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"golang.org/x/sys/unix"
)

// Work is a file beside another file, with a hidden name, until its content is complete. The process that writes it
// holds a lock on it, which the kernel frees when the process ends. So the next process recognizes the work files that
// killed processes have left, and removes them.
type Work struct {
	Path   string
	beside string
	lock   *os.File
}

// workNames matches the names of work files and of the files beside them.
var workNames = regexp.MustCompile(`^(\..+\.(?:backup|restore|new)-[A-Z2-7]{12})(-wal|-shm|-journal|\.lock)?$`)

// workLock is the position of the locked byte. It is not one of the bytes that SQLite locks, which are at 0x40000000
// (https://www.sqlite.org/fileformat.html#the_lock_byte_page).
const workLock = math.MaxInt64 - 1

// NewWork makes an empty work file of mode 0600 for the file beside. If root calls it, the work file gets the owner of
// the file beside, or of the folder, so that the server can read it. First NewWork removes the work files that killed
// processes have left in the folder. what is "backup", "restore" or "new".
func NewWork(beside, what string) (*Work, error) {
	sweep(filepath.Dir(beside))
	for {
		name := "." + filepath.Base(beside) + "." + what + "-" + rand.Text()[:12]
		w := &Work{Path: filepath.Join(filepath.Dir(beside), name), beside: beside}
		var err error
		if w.lock, err = os.OpenFile(w.Path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
			return nil, w.Named(err)
		}
		// Before the lock is taken, another process may remove the file, because it looks like a file of a killed
		// process. On a file system without locks, files are neither locked nor removed.
		if err := lockWork(w.lock); held(err) || !sameFile(w.lock, w.Path) {
			w.Discard()
			continue
		}
		if err := w.giveToOwner(beside); err != nil {
			w.Discard()
			return nil, w.Named(err)
		}
		return w, nil
	}
}

// Named replaces the name of the work file in an error by the name of the file beside, which the operator knows.
func (w *Work) Named(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) && p.Path == w.Path {
		return &fs.PathError{Op: p.Op, Path: w.beside, Err: p.Err}
	}
	return err
}

// giveToOwner gives the work file to the owner of the file beside, or of the folder.
func (w *Work) giveToOwner(beside string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	st, err := os.Stat(beside)
	if err != nil {
		st, err = os.Stat(filepath.Dir(beside))
	}
	if sys, ok := sysOf(st, err); ok {
		err = w.lock.Chown(int(sys.Uid), int(sys.Gid))
	}
	return err
}

// Discard removes the work file and the files that SQLite and the locks have made beside it. A file that was renamed
// stays.
func (w *Work) Discard() {
	removeWork(w.Path)
	w.Release()
}

// Release frees the lock of a work file that was renamed. Call it before the file is opened as a database, because
// Release closes a descriptor of the file, and a close ends SQLite's locks.
func (w *Work) Release() { _ = w.lock.Close() }

func removeWork(path string) {
	// The work file is last: if this process is killed, sweep finds the others by it.
	for _, suffix := range []string{"-wal", "-shm", "-journal", ".lock", ""} {
		_ = os.Remove(path + suffix) // most of these do not exist
	}
}

// sweep removes the work files in a folder that belong to this user, and that no process has locked. It ignores errors.
func sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		name := workNames.FindStringSubmatch(e.Name())
		switch {
		case name == nil || !e.Type().IsRegular():
		case name[2] == "":
			sweepOne(filepath.Join(dir, name[1]))
		default:
			sweepBeside(filepath.Join(dir, name[1]), filepath.Join(dir, name[0]))
		}
	}
}

// sweepBeside removes a file that was beside a work file, if the work file was renamed or removed. Then its process was
// killed, or is about to remove the file itself.
func sweepBeside(path, beside string) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return
	}
	if sys, ok := sysOf(os.Lstat(beside)); ok && (int(sys.Uid) == os.Geteuid() || os.Geteuid() == 0) {
		_ = os.Remove(beside)
	}
}

func sweepOne(path string) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	if lockWork(f) == nil && sameFile(f, path) && madeHere(f) {
		removeWork(path)
	}
}

// madeHere reports whether a file belongs to this user and has the content of an interrupted backup: nothing, zeros, or
// an SQLite database.
func madeHere(f *os.File) bool {
	st, err := f.Stat()
	sys, ok := sysOf(st, err)
	if !ok || int(sys.Uid) != os.Geteuid() && os.Geteuid() != 0 || st.Mode().Perm()&0o077 != 0 {
		return false
	}
	head := make([]byte, 16)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false
	}
	return n == 0 || bytes.Equal(head[:n], make([]byte, n)) || string(head[:n]) == "SQLite format 3\x00"
}

func lockWork(f *os.File) error {
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: workLock, Len: 1})
}

// held reports whether an error of lockWork says that another process has the lock.
func held(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) }

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

func sysOf(st fs.FileInfo, err error) (*syscall.Stat_t, bool) {
	if err != nil {
		return nil, false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return sys, ok
}
