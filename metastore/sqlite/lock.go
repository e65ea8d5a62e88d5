package sqlite

import (
	"context"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"claviger"
	"claviger/owner"
)

// Lock takes the named lock, see metastore.Store.
func (s *Store) Lock(ctx context.Context, name string) (unlock func(), err error) {
	if err := s.usable("metastore/sqlite.Lock"); err != nil {
		return nil, err
	}
	return s.db.Lock(ctx, name)
}

// TryLock takes the named lock if it is free, see metastore.Store.
func (s *Store) TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error) {
	if err := s.usable("metastore/sqlite.TryLock"); err != nil {
		return nil, false, err
	}
	return s.db.TryLock(ctx, name)
}

// Claim claims the store, see metastore.Claims. A store has one claim at a time, so alone makes no difference. While
// the claim is held, this process checks the file regularly.
func (s *Store) Claim(ctx context.Context, o owner.Owner, _ bool) (release func(), err error) {
	const op = "metastore/sqlite.Claim"
	if s.db.InMemory() {
		return func() {}, nil
	}
	if err := s.usable(op); err != nil {
		return nil, err
	}
	if err := s.refuseHardLinks(op); err != nil {
		return nil, err
	}
	free, err := owner.Claim(s.db.LockFile(), s.URI(), o)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "metastore %w", err)
	}
	stop, err := s.startChecks(ctx)
	if err != nil {
		free()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		stop()
		free()
		return nil, claviger.Errorf(op, claviger.Closed, "", "metastore %s is closed", s.db.Path())
	}
	s.claims, s.stops = append(s.claims, free), append(s.stops, stop)
	return func() { stop(); free() }, nil
}

// refuseHardLinks refuses a file that has several names (hard links). SQLite makes locks and -wal for each name, so two
// servers that use different names would both write to the file, and would not notice it.
func (s *Store) refuseHardLinks(op string) error {
	var st unix.Stat_t
	here, err := stateOf(s.guard.real)
	if err == nil {
		err = unix.Stat(s.guard.real, &st)
	}
	if err != nil || st.Nlink < 2 {
		return nil //nolint:nilerr // a missing file is an error of the reads that follow
	}
	dir := filepath.Dir(s.guard.real)
	others := "the others are in other folders: find them with find / -xdev -inum " + strconv.FormatUint(here.ino, 10)
	list, _ := os.ReadDir(dir) // if the folder cannot be read, the operator gets the find command
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		if m, err := stateOf(path); err == nil && m.sameFile(here) && e.Type().IsRegular() && path != s.guard.real {
			others = "one of them is " + path
			break
		}
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "metastore %s has %d names (hard links), and another server "+
		"could use it under another name; %s; stop all servers, remove the other names, and keep %[1]s with its -wal",
		s.db.Path(), st.Nlink, others)
}

// Owners returns the process that has the claim; nil if the store is not claimed.
func (s *Store) Owners(ctx context.Context) ([]owner.Owner, error) {
	const op = "metastore/sqlite.Owners"
	if s.db.InMemory() {
		return nil, nil
	}
	if err := s.usable(op); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "metastore %s: %w", s.db.Path(), err)
	}
	o, ok, err := owner.Of(s.db.LockFile())
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "metastore %s: %w", s.db.Path(), err)
	}
	if !ok {
		return nil, nil
	}
	return []owner.Owner{o}, nil
}
