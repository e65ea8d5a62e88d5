// Package sqlite is the metastore of one node: one SQLite file, in WAL mode and
// with synchronous=FULL, so that what a method has returned from survives a
// power cut.
//
// One connection writes and a few read. Beside the database file lie SQLite's
// own "-wal" and "-shm" files while it is open, and "<file>.lock", which
// carries the named locks.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"claviger"
	"claviger/durable"
	"claviger/metastore"
	"claviger/owner"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	// SchemaVersion is the number of the newest file in migrations.
	SchemaVersion = 5
	// applicationID marks the file as ours in SQLite's header: "CLAV".
	applicationID = 0x434c4156
	// readers is how many lookups run side by side; each is a connection of about
	// 100 KiB.
	readers = 4
	// busyTimeout is how long a write waits for another process's write.
	busyTimeout = 5 * time.Second
)

// Store is a metastore in one SQLite file.
type Store struct {
	path string
	// lockFile is beside the file itself, also where path leads to it by a link.
	lockFile string
	inMemory bool // see OpenEmpty; then path is not there
	place    place

	write  *sql.DB // exactly one connection
	read   *sql.DB // up to readers connections, which cannot write
	closed atomic.Bool

	byName    *sql.Stmt
	byVersion *sql.Stmt

	mu     sync.Mutex
	locks  map[*os.File]struct{} // held now; guarded by mu
	claims []func()              // release them; guarded by mu
	keeps  []func()              // end what looks after the file; guarded by mu

	writes writes
}

var _ metastore.Store = (*Store)(nil)

// Open opens the store in the file path, which it makes, with mode 0600, where
// there is none; the folder must exist. It brings an older schema up to date,
// and refuses a newer one, a damaged file and a file that is not a metastore,
// each with an error that names the file and the cure.
//
// A new store is there whole or not at all, however this process ends. One of an older
// schema is brought up to date. A copy of it as it was stays beside it, named by its schema
// (claviger.db.schema-3, or -3-2 where a copy of another content has that name), for the
// program that wrote it.
func Open(ctx context.Context, path string) (*Store, error) { return open(ctx, path, true) }

// open is Open; keep says whether the copy is made.
func open(ctx context.Context, path string, keep bool) (*Store, error) {
	const op = "sqlite.Open"
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "metastore %q: %w", path, err)
	}
	if err := create(ctx, abs); err != nil {
		return nil, claviger.E(op, claviger.Unavailable, "", err)
	}
	s := storeAt(abs)
	if s.write, err = sql.Open("sqlite", dsn(abs, "_txlock=immediate", "_pragma=synchronous(FULL)", "_pragma=foreign_keys(1)", "_pragma=wal_autocheckpoint(0)")); err != nil {
		return nil, s.fail(op, "", err)
	}
	s.write.SetMaxOpenConns(1)
	if s.read, err = sql.Open("sqlite", dsn(abs, "_pragma=query_only(1)")); err != nil {
		_ = s.write.Close()
		return nil, s.fail(op, "", err)
	}
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	err = s.open(ctx, keep)
	if err == nil {
		var now mark
		if now, err = markOf(abs); err == nil {
			s.place.file.Store(&now)
		}
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func storeAt(path string) *Store {
	s := &Store{path: path, lockFile: path + ".lock", locks: make(map[*os.File]struct{})}
	s.place.path, s.place.real, s.place.wrote = path, path, make(chan struct{}, 1)
	s.place.log = slog.New(slog.DiscardHandler)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		s.lockFile, s.place.real = real+".lock", real
	}
	return s
}

// create makes an empty store of mode 0600 where there is none. SQLite gives its -wal and
// -shm files the same mode.
func create(ctx context.Context, path string) error {
	dir := filepath.Dir(path)
	if st, err := os.Stat(dir); err != nil {
		return fmt.Errorf("metastore %s: its folder %s cannot be used: %w; make the folder, owned by the user that the server runs as, mode 0700", path, dir, err)
	} else if !st.IsDir() {
		return fmt.Errorf("metastore %s: %s is not a folder", path, dir)
	}
	st, err := os.Stat(path)
	switch {
	case err == nil && !st.Mode().IsRegular():
		return fmt.Errorf("metastore %s is not a regular file: name a file, or a path where a new one can be made", path)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("metastore: %w", err)
	}
	// A store is not made through a link: where its target is on a disk that is not mounted
	// now, the store is there, and this would be another.
	if target, err := os.Readlink(path); err == nil {
		return fmt.Errorf("metastore %s is a symbolic link to %s, which is not there: mount the disk that has it; for a new metastore name that path itself", path, target)
	}
	work, err := newWork(path, "new")
	if err != nil {
		return fmt.Errorf("metastore %s: %w; the folder must be writable for the user that the server runs as", path, err)
	}
	defer work.discard()
	if err := build(ctx, work.path); err != nil {
		return fmt.Errorf("metastore %s cannot be made: %w", path, err)
	}
	if err := durable.Publish(work.path, path); !errors.As(err, new(*durable.AlreadyError)) { // else another process was faster
		return err
	}
	return nil
}

// build makes an empty store of this program's schema of an empty file.
func build(ctx context.Context, path string) (err error) {
	s := storeAt(path)
	if s.write, err = sql.Open("sqlite", dsn(path, "_txlock=immediate")); err != nil {
		return err
	}
	s.write.SetMaxOpenConns(1)
	s.read = s.write // see OpenReadOnly
	defer func() { err = errors.Join(err, s.Close()) }()
	return s.migrate(ctx, 0, false)
}

// denied is why this process may not open one of the store's files, nil where it
// may. It opens none: to close one again would end SQLite's locks of it.
func (s *Store) denied() error {
	mode := uint32(unix.R_OK)
	if s.write != nil {
		mode |= unix.W_OK
	}
	for _, path := range []string{s.path, s.path + "-wal", s.path + "-shm"} {
		if err := unix.Access(path, mode); errors.Is(err, fs.ErrPermission) {
			return &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
	return nil
}

func dsn(path string, params ...string) string { return dsnOf(path, busyTimeout, params...) }

func dsnOf(path string, busy time.Duration, params ...string) string {
	// A URI, so that a '?' or '%' in the path is data and nothing else.
	u := (&url.URL{Scheme: "file", Path: path}).String() + fmt.Sprintf("?_pragma=busy_timeout(%d)", busy.Milliseconds())
	for _, p := range params {
		u += "&" + p
	}
	return u
}

func (s *Store) open(ctx context.Context, keep bool) error {
	const op = "sqlite.Open"
	version, err := s.version(ctx)
	if err != nil {
		return s.fail(op, "", err)
	}
	if version > SchemaVersion {
		return claviger.Errorf(op, claviger.Unavailable, "", "metastore %s has schema version %d, this program knows versions up to %d: a newer claviger has written it; run that version or a newer one, or put the copy that was kept at the upgrade (%[1]s.schema-%[3]d, or the newest that is named so) in its place while no server runs",
			s.path, version, SchemaVersion)
	}
	if version < SchemaVersion {
		if err := s.migrate(ctx, version, keep); err != nil {
			return err
		}
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	// Not before we know that the file is ours: the mode is written into it.
	if _, err := s.write.ExecContext(ctx, "PRAGMA journal_mode = WAL"); err != nil {
		return s.fail(op, "", err)
	}
	return s.fail(op, "", s.prepare(ctx))
}

// whole refuses a file that is damaged: changes that went into it could not be read
// again. It reads every page.
func (s *Store) whole(ctx context.Context) error {
	const op = "sqlite.Open"
	first, err := firstFault(ctx, s.write, "quick_check")
	if err != nil {
		return s.fail(op, "", err)
	}
	if first != "" {
		return claviger.Errorf(op, claviger.Unavailable, "", "metastore %s is damaged (%s); restore the file from a backup (claviger metastore restore); the keys in the HSM are not touched by this, and claviger hsm adopt brings back what the backup does not know",
			s.path, first)
	}
	return nil
}

func (s *Store) prepare(ctx context.Context) (err error) {
	if s.byName, err = s.read.PrepareContext(ctx, selectByName); err != nil {
		return err
	}
	s.byVersion, err = s.read.PrepareContext(ctx, selectByVersion)
	return err
}

// version returns the schema's version, 0 for a new file. It is asked at each
// start, so it is two small queries and not goose's own, slower, inspection.
func (s *Store) version(ctx context.Context) (int64, error) {
	var app, tables int64
	err := s.write.QueryRowContext(ctx, `SELECT (SELECT application_id FROM pragma_application_id), (SELECT count(*) FROM sqlite_schema)`).Scan(&app, &tables)
	if err != nil {
		return 0, err
	}
	if app == 0 && tables == 0 {
		return 0, nil
	}
	if app != applicationID {
		return 0, claviger.Errorf("sqlite.Open", claviger.Unavailable, "", "metastore %s is an SQLite database of another program (application id %#x, ours is %#x): name another file", s.path, app, applicationID)
	}
	var version int64
	err = s.write.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&version)
	var e *driver.Error
	if errors.As(err, &e) && e.Code() == sqlite3.SQLITE_ERROR { // no such table: we were killed right after marking the file as ours
		return 0, nil
	}
	return version, err
}

// migrate brings the schema up to date from version, in one process at a time.
func (s *Store) migrate(ctx context.Context, version int64, keep bool) error {
	const op = "sqlite.Open"
	unlock, err := s.Lock(ctx, "schema")
	if err != nil {
		return err
	}
	defer unlock()
	// A server of an older version would work on with what it does not know.
	if who, err := s.Owners(ctx); err != nil || len(who) > 0 {
		return claviger.Errorf(op, claviger.Unavailable, "", "the schema of metastore %w, and cannot be brought up to date meanwhile; stop that process first",
			errors.Join(err, &owner.InUseError{Store: s.URI(), Owners: who}))
	}
	if keep && version > 0 {
		if err := s.keepCopy(ctx, version); err != nil {
			return claviger.Errorf(op, claviger.Unavailable, "",
				"the schema of metastore %s is not brought up to date, for the copy that is kept of it, %[1]s.schema-%d, could not be made: %w; make room, and let this user write into the folder", s.path, version, err)
		}
	}
	if _, err := s.write.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", applicationID)); err != nil {
		return s.fail(op, "", err)
	}
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return s.fail(op, "", err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, s.write, sub)
	if err != nil {
		return s.fail(op, "", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return s.fail(op, "", fmt.Errorf("bringing the schema up to date: %w", err))
	}
	return nil
}

// URI is "sqlite://" and the absolute path, as the configuration has it.
func (s *Store) URI() string { return "sqlite://" + s.path }

// Check reads the schema's version.
func (s *Store) Check(ctx context.Context) error {
	const op = "sqlite.Check"
	if err := s.usable(op); err != nil {
		return err
	}
	var v int64
	return s.fail(op, "", s.read.QueryRowContext(ctx, `SELECT max(version_id) FROM goose_db_version`).Scan(&v))
}

// Close waits for calls under way, moves the WAL into the database file and
// gives up the locks that are still held. A second Close does nothing.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.mu.Lock()
	keeps := s.keeps
	s.keeps = nil
	s.mu.Unlock()
	for _, end := range keeps {
		end()
	}
	for _, st := range []*sql.Stmt{s.byName, s.byVersion} {
		if st != nil {
			_ = st.Close() // closing the pool below closes them anyhow
		}
	}
	// Readers first: the last connection to close moves the WAL, and readers may
	// not write.
	err := errors.Join(s.read.Close(), s.write.Close())
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.locks {
		_ = f.Close()
	}
	clear(s.locks)
	for _, release := range s.claims {
		release()
	}
	s.claims = nil
	if err != nil {
		return claviger.Errorf("sqlite.Close", claviger.Unavailable, "", "metastore %s: %w", s.path, err)
	}
	return nil
}

// LogTo has the store write there what it notices while nothing is asked of it. It is for
// before the store is used.
func (s *Store) LogTo(log *slog.Logger) { s.place.log = log }

// isOpen is the check at the head of every method.
func (s *Store) isOpen(op string) error {
	if s.closed.Load() {
		return claviger.Errorf(op, claviger.Closed, "", "metastore %s is closed", s.path)
	}
	return nil
}

// usable is the check at the head of every method that reads.
func (s *Store) usable(op string) error {
	if err := s.isOpen(op); err != nil {
		return err
	}
	return s.inPlace(op, "", false)
}

// fail makes an error of ours of what SQLite said: with the file's name, in
// words that lead to the cure. nil stays nil, and our own errors stay as they
// are.
func (s *Store) fail(op, key string, err error) error {
	var own *claviger.Error
	if err == nil || errors.As(err, &own) {
		return err
	}
	if s.closed.Load() {
		return claviger.Errorf(op, claviger.Closed, key, "metastore %s is closed", s.path)
	}
	if ctxErr := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded); ctxErr {
		return claviger.Errorf(op, claviger.Unavailable, key, "metastore %s: %w", s.path, err)
	}
	var e *driver.Error
	if !errors.As(err, &e) {
		return claviger.Errorf(op, claviger.Internal, key, "metastore %s: %w", s.path, err)
	}
	// The low byte is the primary result code, the rest tells more:
	// https://www.sqlite.org/rescode.html
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return claviger.Errorf(op, claviger.Unavailable, key, "metastore %s cannot grow: the disk is full, or a quota is reached (%w); nothing was changed; make room in %s", s.path, err, filepath.Dir(s.path))
	case sqlite3.SQLITE_IOERR:
		return claviger.Errorf(op, claviger.Unavailable, key, "metastore %s: the disk or file system failed (%w); nothing was changed; see the kernel's log", s.path, err)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return claviger.Errorf(op, claviger.Unavailable, key, "metastore %s: another process has been writing to it for more than %v (%w); nothing was changed", s.path, busyTimeout, err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH:
		if denied := s.denied(); denied != nil { // SQLite does not say which file, nor why
			return claviger.Errorf(op, claviger.Unavailable, key, "metastore %s cannot be opened: %w; the file and its folder must belong to the user that the server runs as", s.path, denied)
		}
		return claviger.Errorf(op, claviger.Unavailable, key, "metastore %s cannot be written (%w); the file and its folder must belong to the user that the server runs as", s.path, err)
	case sqlite3.SQLITE_INTERRUPT: // what the driver makes of a context that ended in mid-call
		return claviger.Errorf(op, claviger.Unavailable, key, "metastore %s: interrupted: %w", s.path, context.Canceled)
	case sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT:
		if err := s.inPlace(op, key, false); err != nil { // that explains it
			return err
		}
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_NOTADB:
		return claviger.Errorf(op, claviger.Unavailable, key, "metastore %s is not an SQLite database, or its head is damaged (%w); restore the file from a backup, or name another", s.path, err)
	case sqlite3.SQLITE_CORRUPT:
		return claviger.Errorf(op, claviger.Unavailable, key, "metastore %s is damaged (%w); restore the file from a backup (sqlite3's .recover may save parts); the keys in the HSM are not touched by this", s.path, err)
	}
	return claviger.Errorf(op, claviger.Internal, key, "metastore %s: %w", s.path, err)
}

// update runs f in one transaction of the writing connection.
func (s *Store) update(ctx context.Context, op, key string, f func(*sql.Tx) error) (err error) {
	if err := s.isOpen(op); err != nil {
		return err
	}
	began := time.Now()
	defer func() { s.writes.note(began, err) }()
	if err := s.inPlace(op, key, true); err != nil {
		return err
	}
	atLeast := s.place.changes.Load() + 1
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return s.fail(op, key, err)
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	if err := f(tx); err != nil {
		return s.fail(op, key, err)
	}
	var n int64
	if err := tx.QueryRowContext(ctx, nextChange).Scan(&n); err != nil {
		return s.fail(op, key, err)
	}
	if !s.counted(n, atLeast) {
		return s.inPlace(op, key, true)
	}
	if err := tx.Commit(); err != nil {
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
func isUnique(err error) bool {
	var e *driver.Error
	return errors.As(err, &e) && (e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}
