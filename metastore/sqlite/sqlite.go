// Package sqlite is the metastore of one node: one SQLite file, opened by package
// sqlitedb. What a method has returned from survives a power cut.
//
// It keeps delegation tokens beside the keys, so jobs survive a restart. It notices a
// file that was replaced or overwritten (place.go) by comparing the content (sum.go).
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/sqlitedb"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	// SchemaVersion is the number of the newest file in migrations.
	SchemaVersion = 5
	// applicationID marks the file as ours in SQLite's header: "CLAV".
	applicationID = 0x434c4156
	// busyTimeout is how long a write waits for another process's write.
	busyTimeout = 5 * time.Second
)

// Store is a metastore in one SQLite file.
type Store struct {
	db    *sqlitedb.DB
	place place

	byName    *sql.Stmt
	byVersion *sql.Stmt

	mu     sync.Mutex
	closed bool     // guarded by mu
	claims []func() // release them; guarded by mu
	keeps  []func() // end what looks after the file; guarded by mu

	writes writes
}

var _ metastore.Store = (*Store)(nil)

// config is how the metastore in the file path is kept.
func config(path string) sqlitedb.Config {
	return sqlitedb.Config{
		What: "metastore", Readers: 4, Busy: busyTimeout, KeepWAL: true,
		Damaged: "restore the file from a backup (claviger metastore restore); the keys in the HSM are not touched " +
			"by this, and claviger hsm adopt brings back what the backup does not know",
		Schema: sqlitedb.Schema{
			ApplicationID: applicationID, Migrations: migrations, Version: SchemaVersion,
			Back: fmt.Sprintf("put the copy that was kept at the upgrade (%s.schema-%d, or the newest that is named "+
				"so) in its place while no server runs", path, SchemaVersion),
			Before: sqlitedb.KeepCopy(sqlitedb.Copies{
				Seal: seal, Except: map[string]string{"setting": "name = '" + metastore.SettingBackup + "'"},
			}),
		},
	}
}

// Open opens the store in the file path, which it makes, with mode 0600, where
// there is none; the folder must exist. It brings an older schema up to date,
// and refuses a newer one, a damaged file and a file that is not a metastore,
// each with an error that names the file and the cure.
//
// A new store is there whole or not at all, however this process ends. One of an older
// schema is brought up to date. A copy of it as it was stays beside it, named by its schema
// (claviger.db.schema-3, or -3-2 where a copy of another content has that name), for the
// program that wrote it.
func Open(ctx context.Context, path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, claviger.Errorf("metastore/sqlite.Open", claviger.Invalid, "", "metastore: %w", err)
	}
	c := config(path)
	if err := sqlitedb.Create(ctx, path, c); err != nil {
		return nil, err
	}
	return open(ctx, path, c)
}

// open opens the store in the file path, which is there.
func open(ctx context.Context, path string, c sqlitedb.Config) (*Store, error) {
	db, err := sqlitedb.Open(ctx, path, c)
	if err != nil {
		return nil, err
	}
	s := storeOf(db, path)
	err = s.prepare(ctx)
	if err == nil {
		var now mark
		if now, err = markOf(path); err == nil {
			s.place.file.Store(&now)
		}
	}
	if err != nil {
		return nil, errors.Join(s.fail("metastore/sqlite.Open", "", err), s.Close())
	}
	return s, nil
}

// storeOf makes a store of a database, whose file is path.
func storeOf(db *sqlitedb.DB, path string) *Store {
	s := &Store{db: db}
	s.place.path, s.place.real, s.place.wrote = path, path, make(chan struct{}, 1)
	s.place.log = slog.New(slog.DiscardHandler)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		s.place.real = real
	}
	return s
}

func (s *Store) prepare(ctx context.Context) (err error) {
	if s.byName, err = s.db.Reader.PrepareContext(ctx, selectByName); err != nil {
		return err
	}
	s.byVersion, err = s.db.Reader.PrepareContext(ctx, selectByVersion)
	return err
}

// URI is "sqlite://" and the absolute path, as the configuration has it.
func (s *Store) URI() string { return "sqlite://" + s.db.Path() }

// Check reads the schema's version.
func (s *Store) Check(ctx context.Context) error {
	const op = "metastore/sqlite.Check"
	if err := s.usable(op); err != nil {
		return err
	}
	_, err := sqlitedb.VersionOf(ctx, s.db.Reader)
	return s.fail(op, "", err)
}

// Close waits for calls under way, moves the WAL into the database file and
// gives up the locks that are still held. A second Close does nothing.
func (s *Store) Close() error {
	s.mu.Lock()
	keeps := s.keeps
	s.keeps, s.closed = nil, true
	s.mu.Unlock()
	for _, end := range keeps {
		end()
	}
	for _, st := range []*sql.Stmt{s.byName, s.byVersion} {
		if st != nil {
			_ = st.Close() // closing the pool below closes them anyhow
		}
	}
	err := s.db.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, release := range s.claims {
		release()
	}
	s.claims = nil
	return err
}

// LogTo has the store write there what it notices while nothing is asked of it. It is for
// before the store is used.
func (s *Store) LogTo(log *slog.Logger) { s.place.log = log }

// usable is the check at the head of every method that reads.
func (s *Store) usable(op string) error {
	if err := s.db.Usable(op); err != nil {
		return err
	}
	return s.inPlace(op, "", false)
}

// fail makes an error of ours of what SQLite said. A file that was taken away explains
// what cannot be read.
func (s *Store) fail(op, key string, err error) error {
	var own *claviger.Error
	if sqlitedb.Damaged(err) && !errors.As(err, &own) {
		if err := s.inPlace(op, key, false); err != nil {
			return err
		}
	}
	return s.db.Fail(op, key, err)
}

// update runs f in one transaction of the writing connection.
func (s *Store) update(ctx context.Context, op, key string, f func(*sql.Tx) error) (err error) {
	if err := s.db.Usable(op); err != nil {
		return err
	}
	began := time.Now()
	defer func() { s.writes.note(began, err) }()
	if err := s.inPlace(op, key, true); err != nil {
		return err
	}
	atLeast := s.place.changes.Load() + 1
	var n int64
	err = s.db.Update(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, nextChange).Scan(&n); err != nil {
			return err
		}
		if !s.counted(n, atLeast) {
			return s.inPlace(op, key, true)
		}
		return nil
	})
	if err != nil {
		return s.fail(op, key, err)
	}
	s.place.saw(n)
	select {
	case s.place.wrote <- struct{}{}:
	default: // it is looked at soon anyhow
	}
	// Another file may have come meanwhile, of which the change is no part.
	return s.inPlace(op, key, true)
}

// millis and when are how times are stored: milliseconds since 1970, UTC.
func millis(t time.Time) int64 { return t.UnixMilli() }
func when(ms int64) time.Time  { return time.UnixMilli(ms).UTC() }
