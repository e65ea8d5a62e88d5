package sqlite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"claviger"
	"claviger/sqlitedb"
)

// OpenReadOnly opens an existing store for reading, and does not change its file; see sqlitedb.OpenReadOnly. A server
// may have the store open. Methods that write fail with kind Unavailable. OpenReadOnly itself fails with this kind if
// the schema is not this program's.
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
			path, version, SchemaVersion, versionCure(version))
	}
	if err == nil {
		err = s.prepare(ctx)
	}
	if err != nil {
		return nil, errors.Join(s.fail(op, "", err), s.Close())
	}
	return s, nil
}

func versionCure(version int64) string {
	if version < SchemaVersion {
		return "start the server once; it upgrades the file"
	}
	return fmt.Sprintf("run the claviger that has written version %d", version)
}

// OpenEmpty returns an empty store in memory, for a command that only reads and finds no file at path. Close removes
// everything that was written to it.
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
