package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"claviger"
)

// OpenReadOnly opens a store that is there already, for who only looks: it makes no
// file, changes none, and needs no more than to read. A server may have it open
// meanwhile. Methods that write fail with kind Unavailable; so does the opening of a
// schema other than this program's.
func OpenReadOnly(ctx context.Context, path string) (*Store, error) {
	const op = "sqlite.OpenReadOnly"
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "metastore %q: %w", path, err)
	}
	if _, err := os.Stat(abs); err != nil {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "metastore: %w", err)
	}
	params := []string{"mode=ro", "_pragma=query_only(1)"}
	if _, err := os.Stat(abs + "-wal"); errors.Is(err, fs.ErrNotExist) {
		// Nobody has it open, so the file holds all of it. A reader would make -wal and
		// -shm otherwise, or fail where he may not.
		params = append(params, "immutable=1")
	}
	s := storeAt(abs)
	if s.write, err = sql.Open("sqlite", dsn(abs, params...)); err != nil {
		return nil, s.fail(op, "", err)
	}
	s.read = s.write // either closes it; a second Close of a pool does nothing
	s.read.SetMaxOpenConns(1)
	if err := s.openReadOnly(ctx); err != nil {
		_ = s.Close() // the error tells more
		return nil, err
	}
	return s, nil
}

func (s *Store) openReadOnly(ctx context.Context) error {
	const op = "sqlite.OpenReadOnly"
	version, err := s.version(ctx)
	if err == nil && version != SchemaVersion {
		err = claviger.Errorf(op, claviger.Unavailable, "", "metastore %s has schema version %d, this program reads version %d: %s", s.path, version, SchemaVersion, oddVersion(version))
	}
	if err == nil {
		err = s.prepare(ctx)
	}
	return s.fail(op, "", err)
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
	const op = "sqlite.OpenEmpty"
	s := &Store{path: path, inMemory: true, locks: make(map[*os.File]struct{})}
	s.place.wrote, s.place.log = make(chan struct{}, 1), slog.New(slog.DiscardHandler)
	var err error
	if s.write, err = sql.Open("sqlite", ":memory:?_pragma=foreign_keys(1)"); err != nil {
		return nil, s.fail(op, "", err)
	}
	s.write.SetMaxOpenConns(1) // each connection to ":memory:" has a database of its own
	s.read = s.write
	err = s.migrate(ctx, 0, false)
	if err == nil {
		err = s.prepare(ctx)
	}
	if err != nil {
		_ = s.Close()
		return nil, s.fail(op, "", err)
	}
	return s, nil
}
