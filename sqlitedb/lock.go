package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"claviger"
	"claviger/owner"
)

// lockRetryInterval is how often a waiting Lock tries again. A context cannot end F_OFD_SETLKW, the call of the kernel
// that waits.
const lockRetryInterval = 25 * time.Millisecond

// LockFile returns the path of the file with the database's locks.
func (d *DB) LockFile() string { return d.lockFile }

// Lock takes the named lock, and waits for it until ctx is done.
//
// A lock is one locked byte of the file "<database>.lock". Each lock has its own open file description (F_OFD_SETLK),
// so two holders exclude each other also within a process. The kernel frees the lock when the process of its holder
// ends.
func (d *DB) Lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		unlock, ok, err := d.TryLock(ctx, name)
		if err != nil || ok {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, claviger.Errorf("sqlitedb.Lock", claviger.Unavailable, "",
				"lock %q of %s is held by another process or task: %w", name, d.cfg.named(d.path), context.Cause(ctx))
		case <-time.After(lockRetryInterval):
		}
	}
}

// TryLock takes the named lock if it is free.
func (d *DB) TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error) {
	const op = "sqlitedb.TryLock"
	if err := d.Usable(op); err != nil {
		return nil, false, err
	}
	if err := ctx.Err(); err != nil {
		return nil, false, claviger.Errorf(op, claviger.Unavailable, "", "lock %q of %s: %w", name, d.cfg.named(d.path),
			err)
	}
	if d.memory { // no other process can use the database
		return func() {}, true, nil
	}
	f, err := owner.Open(d.lockFile)
	if err != nil {
		return nil, false, claviger.Errorf(op, claviger.Unavailable, "",
			"lock %q: %w; the folder must be writable for the user that the server runs as", name, err)
	}
	ok, err = lockByte(f, name)
	if err != nil || !ok {
		_ = f.Close()
		if err != nil {
			err = claviger.Errorf(op, claviger.Unavailable, "",
				"lock %q on %s: %w; the file system must support file locks", name, f.Name(), err)
		}
		return nil, false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.Usable(op); err != nil {
		_ = f.Close()
		return nil, false, err
	}
	d.locks[f] = struct{}{}
	return func() { d.unlock(f) }, true, nil
}

func (d *DB) unlock(f *os.File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, held := d.locks[f]; held { // otherwise Close or an earlier call has freed it
		delete(d.locks, f)
		_ = f.Close() // which frees the lock
	}
}

// lockByte locks the byte for a name, whose position is a 62-bit hash of the name. If two names had the same byte,
// their locks would exclude each other, which is safe.
func lockByte(f *os.File, name string) (ok bool, err error) {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: int64(h.Sum64() >> 2), Len: 1}
	for {
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
			return false, nil
		case errors.Is(err, unix.EINTR):
			continue
		default:
			return false, fmt.Errorf("F_OFD_SETLK: %w", err)
		}
	}
}
