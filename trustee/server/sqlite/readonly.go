package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"claviger"
)

// OpenReadOnly opens a store that is there already, for a caller who only reads: it
// changes nothing of the file. release closes it. A store with an older schema is copied into
// a folder for temporary files, and that copy is brought up to date. Kind Invalid where
// the file is empty, or no trustee's store.
func OpenReadOnly(ctx context.Context, path string) (_ *Store, release func() error, err error) {
	const op = "sqlite.OpenReadOnly"
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, nil, claviger.Errorf(op, claviger.Invalid, "", "the trustee's store: %w", err)
	case info.Size() == 0:
		return nil, nil, claviger.Errorf(op, claviger.Invalid, "", "%s is empty: it is no trustee's store, and nothing can be read from it. Copy the file anew from where it was made", path)
	}
	s, err := readOnly(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	version, err := s.known(ctx)
	if err == nil && version == schemaVersion {
		s.place.opened = info
		return s, s.Close, nil
	}
	var dir string
	if err == nil {
		dir, err = os.MkdirTemp("", "claviger-trustee-*")
	}
	if err != nil {
		return nil, nil, errors.Join(s.fail(op, "", err), s.Close())
	}
	name := filepath.Join(dir, "store")
	_, err = s.read.ExecContext(ctx, "VACUUM INTO ?", name)
	if err = errors.Join(err, s.Close()); err != nil {
		return nil, nil, errors.Join(s.fail(op, "", err), os.RemoveAll(dir))
	}
	c, err := Open(ctx, name, false)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return c, func() error { return errors.Join(c.Close(), os.RemoveAll(dir)) }, nil
}

func readOnly(ctx context.Context, path string) (*Store, error) {
	const op = "sqlite.OpenReadOnly"
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, claviger.E(op, claviger.Invalid, "", err)
	}
	dsn := (&url.URL{Scheme: "file", Path: abs}).String() + fmt.Sprintf("?mode=ro&_pragma=busy_timeout(%d)", busyTimeout.Milliseconds())
	if _, err := os.Stat(abs + "-wal"); errors.Is(err, fs.ErrNotExist) {
		// Nobody has it open, so the file holds all of it. Else a reader makes -wal and -shm.
		dsn += "&immutable=1"
	}
	s := &Store{path: abs}
	if s.write, err = sql.Open("sqlite", dsn); err != nil {
		return nil, s.fail(op, "", err)
	}
	s.read = s.write // a second Close of a pool does nothing
	return s, nil
}

// known returns the schema's version of a trustee's store.
func (s *Store) known(ctx context.Context) (version int64, err error) {
	var id int
	if err := s.read.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return 0, err
	}
	if version, err = s.version(ctx); err != nil {
		return 0, err
	}
	if id != applicationID || version == 0 {
		return 0, claviger.Errorf("sqlite.OpenReadOnly", claviger.Invalid, "", "%s is no trustee's store, or its copy was broken off: name the file that a trustee's server left, or copy it anew", s.path)
	}
	return version, nil
}
