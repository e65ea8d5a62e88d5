// Package sqlite is the metastore of one node: one SQLite file, opened by package sqlitedb. A change survives a power
// cut after the method has returned.
//
// The store keeps delegation tokens beside the keys, so running jobs survive a restart of the server. It detects that
// its file was moved, replaced or overwritten (guard.go), and compares the file's content if its time has changed
// (sum.go).
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
	// checkLater is the size of a file, in bytes, from which on OpenNode leaves the check of the pages to Claim. The
	// check reads about 300 MB a second, and a file has about 600 bytes for a key of three versions.
	checkLater = 4 << 20
	// busyTimeout is how long a write waits for the write of another process.
	busyTimeout = 5 * time.Second
)

// pagesCure is the cure of a damaged file.
const pagesCure = "restore the file from a backup (claviger metastore restore); this does not change the keys in " +
	"the HSM; then claviger hsm adopt adds the keys that the backup does not have"

// Store is a metastore in one SQLite file.
type Store struct {
	db    *sqlitedb.DB
	guard guard

	byName    *sql.Stmt
	byVersion *sql.Stmt

	mu     sync.Mutex
	closed bool     // guarded by mu
	claims []func() // each releases a claim; guarded by mu
	stops  []func() // each ends the checks of the file; guarded by mu

	writes writes
}

var _ metastore.Store = (*Store)(nil)

// config returns the settings of the database in the file path.
func config(path string) sqlitedb.Config {
	return sqlitedb.Config{
		What: "metastore", Readers: 4, Busy: busyTimeout, KeepWAL: true,
		Damaged: pagesCure,
		Schema: sqlitedb.Schema{
			ApplicationID: applicationID, Migrations: migrations, Version: SchemaVersion,
			Back: fmt.Sprintf("put the copy that the upgrade kept (%s.schema-%d, or the newest copy with this name "+
				"and a number) in its place while no server runs", path, SchemaVersion),
			Before: sqlitedb.KeepCopy(sqlitedb.Copies{
				Sanitize: sanitize, Except: map[string]string{"setting": "name = '" + metastore.SettingBackup + "'"},
			}),
		},
	}
}

// Open opens the store in the file path. If the file does not exist, Open makes it, with mode 0600; the folder must
// exist. Open upgrades an older schema. It refuses a newer schema, a damaged file and a file that is not a metastore;
// the error names the file and the cure.
//
// A new store exists completely or not at all, also if the process is killed meanwhile. Before an upgrade, Open keeps a
// copy of the file for the older release. The copy is beside the file, and its name has the schema:
// claviger.db.schema-3, or claviger.db.schema-3-2 if a copy with other content has that name.
func Open(ctx context.Context, path string) (*Store, error) { return openOrMake(ctx, path, 0) }

// OpenNode is Open for a server. It does not check each page of a large file, because that takes long with many keys:
// the pages are checked after Claim, beside the work of the server. If the file is damaged, nothing is read or written
// any more.
func OpenNode(ctx context.Context, path string) (*Store, error) {
	return openOrMake(ctx, path, checkLater)
}

// openOrMake is Open. The pages of a file of at least later bytes are checked later, unless later is 0.
func openOrMake(ctx context.Context, path string, later int64) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, claviger.Errorf("metastore/sqlite.Open", claviger.Invalid, "", "metastore: %w", err)
	}
	c := config(path)
	if err := sqlitedb.Create(ctx, path, c); err != nil {
		return nil, err
	}
	c.CheckLater = later
	return open(ctx, path, c)
}

// open opens the store in the file path, which must exist.
func open(ctx context.Context, path string, c sqlitedb.Config) (*Store, error) {
	db, err := sqlitedb.Open(ctx, path, c)
	if err != nil {
		return nil, err
	}
	s := storeOf(db, path)
	err = s.prepare(ctx)
	if err == nil {
		var now fileState
		if now, err = stateOf(path); err == nil { // from here on the guard checks the file
			s.guard.file.Store(&now)
		}
	}
	if err != nil {
		return nil, errors.Join(s.fail("metastore/sqlite.Open", "", err), s.Close())
	}
	return s, nil
}

// storeOf returns a store with a database whose file is path.
func storeOf(db *sqlitedb.DB, path string) *Store {
	s := &Store{db: db}
	s.guard.path, s.guard.real, s.guard.changed = path, path, make(chan struct{}, 1)
	s.guard.log = slog.New(slog.DiscardHandler) // see LogTo
	if real, err := filepath.EvalSymlinks(path); err == nil {
		s.guard.real = real
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

// URI returns "sqlite://" and the absolute path, as in the configuration.
func (s *Store) URI() string { return "sqlite://" + s.db.Path() }

// Check reads the version of the schema.
func (s *Store) Check(ctx context.Context) error {
	const op = "metastore/sqlite.Check"
	if err := s.usable(op); err != nil {
		return err
	}
	_, err := sqlitedb.VersionOf(ctx, s.db.Reader)
	return s.fail(op, "", err)
}

// Close waits for running calls, moves the -wal into the file, and frees the locks and claims that are still held. A
// second Close does nothing.
func (s *Store) Close() error {
	s.mu.Lock()
	stops := s.stops
	s.stops, s.closed = nil, true
	s.mu.Unlock()
	for _, stop := range stops {
		stop()
	}
	err := s.db.Close() // closes the prepared statements too
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, release := range s.claims {
		release()
	}
	s.claims = nil
	return err
}

// LogTo sets the log for faults that the regular checks of the file find. Call it before the store is used.
func (s *Store) LogTo(log *slog.Logger) { s.guard.log = log }

// usable returns an error if the store is closed or its file was overwritten. Every method that reads calls it first.
func (s *Store) usable(op string) error {
	if err := s.db.Usable(op); err != nil {
		return err
	}
	return s.checkPlace(op, "", false)
}

// fail turns an error of SQLite into a *claviger.Error. If SQLite calls the file damaged, and the file was overwritten,
// the error says that instead.
func (s *Store) fail(op, key string, err error) error {
	var own *claviger.Error
	if sqlitedb.Damaged(err) && !errors.As(err, &own) {
		if err := s.checkPlace(op, key, false); err != nil {
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
	defer func() { s.writes.record(began, err) }()
	if err := s.checkPlace(op, key, true); err != nil {
		return err
	}
	atLeast := s.guard.changes.Load() + 1
	var n int64
	err = s.db.Update(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, nextChange).Scan(&n); err != nil {
			return err
		}
		if !s.checkCount(n, atLeast) {
			return s.checkPlace(op, key, true)
		}
		return nil
	})
	if err != nil {
		return s.fail(op, key, err)
	}
	s.guard.recordCount(n)
	select {
	case s.guard.changed <- struct{}{}:
	default: // a check is already due
	}
	// The file may have been replaced during the transaction. Then the file that is there now lacks the change.
	return s.checkPlace(op, key, true)
}

// Times are stored as milliseconds since 1970, UTC.
func millis(t time.Time) int64      { return t.UnixMilli() }
func fromMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
