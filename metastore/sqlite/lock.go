package sqlite

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"claviger"
	"claviger/owner"
)

// lockPoll is how often a waiting Lock tries again. The kernel's waiting form,
// F_OFD_SETLKW, could not be given up when the context ends.
const lockPoll = 25 * time.Millisecond

// Lock takes the named lock, and waits for it until ctx is done.
//
// A lock is one byte of the file "<database>.lock", locked through an open file
// description of its own (F_OFD_SETLK), so that two holders exclude each other
// within a process as well as between processes, and that the kernel frees it
// when its holder dies.
func (s *Store) Lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		unlock, ok, err := s.TryLock(ctx, name)
		if err != nil || ok {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, claviger.Errorf("sqlite.Lock", claviger.Unavailable, "", "lock %q of metastore %s is held by another process or task: %w", name, s.path, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// TryLock takes the named lock if it is free.
func (s *Store) TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error) {
	const op = "sqlite.TryLock"
	if err := s.usable(op); err != nil {
		return nil, false, err
	}
	if err := ctx.Err(); err != nil {
		return nil, false, claviger.Errorf(op, claviger.Unavailable, "", "lock %q of metastore %s: %w", name, s.path, err)
	}
	if s.inMemory { // nobody else has it
		return func() {}, true, nil
	}
	f, err := os.OpenFile(s.lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, claviger.Errorf(op, claviger.Unavailable, "", "lock %q: %w; the folder must be writable for the user that the server runs as", name, err)
	}
	ok, err = lockByte(f, name)
	if err != nil || !ok {
		_ = f.Close()
		if err != nil {
			err = claviger.Errorf(op, claviger.Unavailable, "", "lock %q on %s: %w; the file system must support file locks", name, f.Name(), err)
		}
		return nil, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		_ = f.Close()
		return nil, false, s.isOpen(op)
	}
	s.locks[f] = struct{}{}
	return func() { s.unlock(f) }, true, nil
}

func (s *Store) unlock(f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, held := s.locks[f]; held { // else Close, or an earlier call, was faster
		delete(s.locks, f)
		_ = f.Close() // which frees the lock
	}
}

// lockByte locks the byte that stands for the name: a 62-bit hash of it. Two
// names with one byte would exclude each other, which is safe.
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

// Claim takes the store for a process. There is one claim at a time.
func (s *Store) Claim(ctx context.Context, o owner.Owner, _ bool) (release func(), err error) {
	const op = "sqlite.Claim"
	if s.inMemory {
		return func() {}, nil
	}
	if err := s.usable(op); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "metastore %s: %w", s.path, err)
	}
	if err := s.oneName(op); err != nil {
		return nil, err
	}
	free, err := owner.Claim(s.lockFile, s.URI(), o)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "metastore %w", err)
	}
	end, err := s.keep(ctx)
	if err != nil {
		free()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		end()
		free()
		return nil, s.isOpen(op)
	}
	s.claims, s.keeps = append(s.claims, free), append(s.keeps, end)
	return func() { end(); free() }, nil
}

// oneName refuses a file that has several names (hard links). Locks and -wal are beside each
// name, so that two servers would write to one file unnoticed.
func (s *Store) oneName(op string) error {
	var st unix.Stat_t
	here, err := markOf(s.place.real)
	if err == nil {
		err = unix.Stat(s.place.real, &st)
	}
	if err != nil || st.Nlink < 2 {
		return nil //nolint:nilerr // that the file is not there is told by those who read it
	}
	dir := filepath.Dir(s.place.real)
	others := "they are in other folders: find them by find / -xdev -inum " + strconv.FormatUint(here.ino, 10)
	list, _ := os.ReadDir(dir) // where it cannot be read find tells
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		if m, err := markOf(path); err == nil && m.sameFile(here) && e.Type().IsRegular() && path != s.place.real {
			others = "one is " + path
			break
		}
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "metastore %s has %d names (hard links), under each of which another server could use it; "+
		"%s; remove the other names, with no server running, and keep %[1]s with its -wal", s.path, st.Nlink, others)
}

// Owners returns the process that has the store, if one has.
func (s *Store) Owners(ctx context.Context) ([]owner.Owner, error) {
	const op = "sqlite.Owners"
	if s.inMemory {
		return nil, nil
	}
	if err := s.usable(op); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "metastore %s: %w", s.path, err)
	}
	o, ok, err := owner.Of(s.lockFile)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "metastore %s: %w", s.path, err)
	}
	if !ok {
		return nil, nil
	}
	return []owner.Owner{o}, nil
}
