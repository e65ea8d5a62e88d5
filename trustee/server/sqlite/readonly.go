package sqlite

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"claviger"
	"claviger/sqlitedb"
)

// OpenReadOnly opens an existing store for a caller that only reads, and does not change the file.
// release closes the store. A store with an older schema is copied into a folder for temporary files,
// and the copy is upgraded. Kind Invalid if the file is empty or not the store of a trustee.
func OpenReadOnly(ctx context.Context, path string) (_ *Store, release func() error, err error) {
	const op = "trustee/server/sqlite.OpenReadOnly"
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, nil, claviger.Errorf(op, claviger.Invalid, "", "the trustee's store: %w", err)
	case info.Size() == 0:
		return nil, nil, claviger.Errorf(op, claviger.Invalid, "", "%s is empty: it is not a trustee's store, and "+
			"nothing can be read from it. Copy the file again from its source", path)
	}
	db, err := sqlitedb.OpenReadOnly(path, config)
	if err != nil {
		return nil, nil, err
	}
	s := &Store{db: db}
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
	if err := s.db.CopyTo(ctx, name); err != nil {
		return nil, nil, errors.Join(s.fail(op, "", err), s.Close(), os.RemoveAll(dir))
	}
	if err := s.Close(); err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	temporary := config
	temporary.Schema.Before = nil // the original file is the copy
	c, err := open(ctx, name, temporary)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return c, func() error { return errors.Join(c.Close(), os.RemoveAll(dir)) }, nil
}

// known returns the version of the schema of a trustee's store.
func (s *Store) known(ctx context.Context) (int64, error) {
	version, err := s.db.Version(ctx)
	if err == nil && version == 0 {
		err = claviger.Errorf("trustee/server/sqlite.OpenReadOnly", claviger.Invalid, "",
			"%s is not a trustee's store, or an unfinished copy: name the file that a trustee's server left, or copy "+
				"it again", s.db.Path())
	}
	return version, err
}
