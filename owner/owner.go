// Package owner records which process has claimed a file. For example a server claims its store, because only one
// process at a time may change it. Several processes can also share a file.
//
// A claim is a lock on a file beside the store (F_OFD_SETLK). The kernel frees the lock when the process ends, also
// after SIGKILL, so no claim is left over.
package owner

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Owner is a process that uses a store.
type Owner struct {
	// ID is random for each start of a process, because containers on two hosts may have the same
	// host name and PID. Hex; "" if it is not known.
	ID string `json:"id,omitempty"`
	// What is the command, for example "claviger kms".
	What  string    `json:"what"`
	Host  string    `json:"host"`
	PID   int       `json:"pid"`
	Since time.Time `json:"since"`
	// Conf is the configuration folder of the process.
	Conf string `json:"conf,omitempty"`
}

// processID returns the ID of this process. It is short, because the name of a claim in PostgreSQL has at most 63
// bytes.
var processID = sync.OnceValue(func() string {
	id := make([]byte, 6)
	_, _ = rand.Read(id) // it cannot fail
	return hex.EncodeToString(id)
})

// Self describes this process.
func Self(what, conf string) Owner {
	host, err := os.Hostname()
	if err != nil {
		host = "this host"
	}
	return Owner{ID: processID(), What: what, Host: host, PID: os.Getpid(),
		Since: time.Now().UTC().Truncate(time.Second), Conf: conf}
}

func (o Owner) String() string {
	s := fmt.Sprintf("%s, process %d on %s, since %s", o.What, o.PID, o.Host, o.Since.UTC().Format(time.RFC3339))
	if o.Conf != "" {
		s += ", with --conf " + o.Conf
	}
	return s
}

// InUseError says that another process has a claim already.
type InUseError struct {
	Store  string // the URI of the store, or the path of the file
	Owners []Owner
}

func (e *InUseError) Error() string {
	names := make([]string, len(e.Owners))
	for i, o := range e.Owners {
		names[i] = o.String()
	}
	by := strings.Join(names, "; ")
	if by == "" {
		by = "another process"
	}
	return e.Store + " is in use by " + by
}

// claimed is the position of the byte that a claim locks. A metastore has its named locks in the same file, at lower
// positions.
const claimed = math.MaxInt64 - 1

// maxRecord is the maximal length of the record in a lock file, in bytes.
const maxRecord = 4 << 10

// Claim claims the file for this process, until release is called or the process ends. store names the store in errors.
// If another process has a claim, the error is an *InUseError.
func Claim(file, store string, o Owner) (release func(), err error) {
	return claim(file, store, o, unix.F_WRLCK)
}

// Share is Claim for several processes that share the file. It excludes Claim, but not other calls of Share. The lock
// file names the process that called Share last.
func Share(file, store string, o Owner) (release func(), err error) {
	return claim(file, store, o, unix.F_RDLCK)
}

func claim(file, store string, o Owner, kind int16) (release func(), err error) {
	f, err := Open(file)
	if errors.Is(err, errLink) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w; %s", err, cure(file))
	}
	err = setLock(f, unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: claimed, Len: 1})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		in := &InUseError{Store: store}
		if other, rerr := read(f); rerr == nil {
			in.Owners = []Owner{other}
		}
		return nil, errors.Join(in, f.Close())
	}
	if err == nil {
		err = record(f, o)
	} else {
		err = fmt.Errorf("lock %s: %w; the file system must support file locks", file, err)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		if last, err := read(f); err == nil && last == o {
			_ = f.Truncate(0) // the record would name a process that has ended
		}
		_ = f.Close() // frees the lock; a second call does nothing
	}, nil
}

// cure says what an operator can do if a lock file cannot be opened.
func cure(file string) string {
	info, err := os.Stat(file)
	if err != nil {
		return "the user that the server runs as must be able to make files in its folder"
	}
	name := "another user"
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		name = strconv.FormatUint(uint64(sys.Uid), 10)
		if u, err := user.LookupId(name); err == nil {
			name = u.Username
		}
	}
	return fmt.Sprintf("the lock file belongs to %s (mode %04o), and the user that the server runs as must own it",
		name, info.Mode().Perm())
}

// errLink is the error for a lock file that is a symbolic link.
var errLink = errors.New("it is a symbolic link, and a lock file must not be one; remove it")

// Open opens a lock file. If it does not exist, Open makes it with mode 0600. A file that root makes gets the owner of
// the folder, so that the owner's server can open it. Open follows no symbolic link: the owner of the folder could have
// root overwrite any file.
func Open(file string) (*os.File, error) {
	const flags = os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW
	f, err := os.OpenFile(file, flags|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		f, err = os.OpenFile(file, flags, 0o600)
		if errors.Is(err, unix.ELOOP) {
			err = &fs.PathError{Op: "open", Path: file, Err: errLink}
		}
		return f, err
	}
	if err != nil || os.Geteuid() != 0 {
		return f, err
	}
	st, err := os.Stat(filepath.Dir(file))
	if err == nil {
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			err = f.Chown(int(sys.Uid), int(sys.Gid))
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func record(f *os.File, o Owner) error {
	data, err := json.Marshal(o)
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(append(data, '\n'), 0)
	}
	return err
}

func read(f *os.File) (o Owner, err error) {
	data, err := io.ReadAll(io.NewSectionReader(f, 0, maxRecord))
	if err != nil {
		return o, err
	}
	return o, json.Unmarshal(data, &o)
}

// Of returns the process that has claimed the file; ok is false if there is none. Of needs only the right to read, and
// makes no file.
func Of(file string) (o Owner, ok bool, err error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return o, false, nil
	}
	if err != nil {
		return o, false, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: claimed, Len: 1}
	if err := setLock(f, unix.F_OFD_GETLK, &lock); err != nil {
		return o, false, fmt.Errorf("lock %s: %w", file, err)
	}
	if lock.Type == unix.F_UNLCK {
		return o, false, nil
	}
	if o, err = read(f); err != nil { // the record is being written, or a process that shared the file has removed it
		o = Owner{What: "another process"}
	}
	return o, true, nil
}

func setLock(f *os.File, cmd int, lock *unix.Flock_t) error {
	lock.Whence = io.SeekStart
	for {
		err := unix.FcntlFlock(f.Fd(), cmd, lock)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
