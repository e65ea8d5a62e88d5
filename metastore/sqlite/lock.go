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

// Lock takes the named lock, and waits for it until ctx is done.
func (s *Store) Lock(ctx context.Context, name string) (unlock func(), err error) {
	if err := s.usable("metastore/sqlite.Lock"); err != nil {
		return nil, err
	}
	return s.db.Lock(ctx, name)
}

// TryLock takes the named lock if it is free.
func (s *Store) TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error) {
	if err := s.usable("metastore/sqlite.TryLock"); err != nil {
		return nil, false, err
	}
	return s.db.TryLock(ctx, name)
}

// Claim takes the store for a process. There is one claim at a time.
func (s *Store) Claim(ctx context.Context, o owner.Owner, _ bool) (release func(), err error) {
	const op = "metastore/sqlite.Claim"
	if s.db.InMemory() {
		return func() {}, nil
	}
	if err := s.usable(op); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "metastore %s: %w", s.db.Path(), err)
	}
	if err := s.oneName(op); err != nil {
		return nil, err
	}
	free, err := owner.Claim(s.db.LockFile(), s.URI(), o)
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
	if s.closed {
		end()
		free()
		return nil, claviger.Errorf(op, claviger.Closed, "", "metastore %s is closed", s.db.Path())
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
	return claviger.Errorf(op, claviger.Unavailable, "", "metastore %s has %d names (hard links), under each of "+
		"which another server could use it; %s; remove the other names, with no server running, and keep %[1]s with "+
		"its -wal", s.db.Path(), st.Nlink,
		others)
}

// Owners returns the process that has the store, if one has.
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
