package sqlite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"claviger"
	"claviger/sqlitedb"
)

// OpenReadOnly opens a store that is there already, for a caller who only reads: it makes
// no file, changes none, and needs no more than to read. A server may have it open
// meanwhile. Methods that write fail with kind Unavailable; so does the opening of a
// schema other than this program's.
func OpenReadOnly(ctx context.Context, path string) (*Store, error) {
	const op = "metastore/sqlite.OpenReadOnly"
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "metastore: %w", err)
	}
	db, err := sqlitedb.OpenReadOnly(path, config(path))
	if err != nil {
		return nil, err
	}
	s := storeOf(db, path)
	version, err := db.Version(ctx)
	if err == nil && version != SchemaVersion {
		err = claviger.Errorf(op, claviger.Unavailable, "",
			"metastore %s has schema version %d, this program reads version %d: %s",
			path, version, SchemaVersion, oddVersion(version))
	}
	if err == nil {
		err = s.prepare(ctx)
	}
	if err != nil {
		return nil, errors.Join(s.fail(op, "", err), s.Close())
	}
	return s, nil
}

func oddVersion(version int64) string {
	if version < SchemaVersion {
		return "start the server once, which brings it up to date"
	}
	return fmt.Sprintf("run the claviger that has written version %d", version)
}

// OpenEmpty returns an empty store that is kept in memory and stands for the file
// path, which is not there. It is for who only looks; what is written to it is gone
// with Close.
func OpenEmpty(ctx context.Context, path string) (*Store, error) {
	db, err := sqlitedb.OpenMemory(ctx, path, config(path))
	if err != nil {
		return nil, err
	}
	s := storeOf(db, path)
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(s.fail("metastore/sqlite.OpenEmpty", "", err), s.Close())
	}
	return s, nil
}
