// Package sqlitedb is an SQLite file as our stores use one: made whole or not at all,
// readable by its owner alone, in WAL mode and with synchronous=FULL, so that a
// committed transaction survives a power cut. One connection writes and a few read.
//
// Beside the file lie SQLite's own "-wal" and "-shm" files while it is open, and
// "<file>.lock", which carries the named locks and the claim of package owner.
//
// One process at a time brings the schema up to date. A work file (work.go) that a
// killed process left is removed by the next process. Errors name the cure.
package sqlitedb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite" of database/sql

	"claviger"
	"claviger/owner"
)

// Config says what a database holds and how it is used.
type Config struct {
	// What is kept in the file, in the words of errors: "metastore".
	What string
	// Schema is what the file is brought up to.
	Schema Schema
	// Readers is how many questions are answered side by side; each is a connection of
	// about 100 KiB.
	Readers int
	// Busy is how long a write waits for another process's write.
	Busy time.Duration
	// Damaged is what an operator does about a damaged file.
	Damaged string
	// Shown is the path in errors; "" is the file's own.
	Shown string
	// KeepWAL leaves it to the store to move the -wal into the file.
	KeepWAL bool
	// Finish: a transaction that has begun is not broken off when its context ends.
	Finish bool
}

// DB is a database. All methods may be called at the same time.
type DB struct {
	// Writer is one connection; Reader is several, which cannot write. They are for
	// questions; changes go through Update.
	Writer, Reader *sql.DB

	cfg      Config
	path     string // absolute; it may lead to the file by links
	lockFile string // beside the file itself
	memory   bool   // see OpenMemory; then path is not there
	readOnly bool
	closed   atomic.Bool

	mu    sync.Mutex
	locks map[*os.File]struct{} // held now; guarded by mu
}

func at(path string, c Config) *DB {
	return &DB{cfg: c, path: path, lockFile: LockFile(path), locks: make(map[*os.File]struct{})}
}

// LockFile is the file with the locks of the database in the file path: beside the file
// itself, also where path leads to it by a link.
func LockFile(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return path + ".lock"
}

// Open opens the database in the file path, which must be there. It brings an older
// schema up to date, and reads every page. It refuses a newer schema, a damaged file and another program's file, and
// changes nothing of those.
func Open(ctx context.Context, path string, c Config) (*DB, error) {
	const op = "sqlitedb.Open"
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "%s %q: %w", c.What, path, err)
	}
	d := at(abs, c)
	if err := d.connect(); err != nil {
		return nil, d.Fail(op, "", err)
	}
	if err := d.prepare(ctx); err != nil {
		return nil, errors.Join(d.Fail(op, "", err), d.Close())
	}
	return d, nil
}

func (d *DB) connect() (err error) {
	// rw: SQLite makes no file of its own, which would have another mode.
	params := []string{"mode=rw", "_txlock=immediate", "_pragma=synchronous(FULL)", "_pragma=foreign_keys(1)"}
	if d.cfg.KeepWAL {
		params = append(params, "_pragma=wal_autocheckpoint(0)")
	}
	if d.Writer, err = Connect(d.path, d.cfg.Busy, params...); err != nil {
		return err
	}
	if d.Reader, err = sql.Open("sqlite", URI(d.path, d.cfg.Busy, "mode=rw", "_pragma=query_only(1)")); err != nil {
		return errors.Join(err, d.Writer.Close())
	}
	d.Reader.SetMaxOpenConns(d.cfg.Readers)
	d.Reader.SetMaxIdleConns(d.cfg.Readers)
	return nil
}

func (d *DB) prepare(ctx context.Context) error {
	if err := d.upgrade(ctx); err != nil {
		return err
	}
	fault, err := Fault(ctx, d.Writer, "quick_check")
	if err != nil {
		return err
	}
	if fault != "" {
		return claviger.Errorf("sqlitedb.Open", claviger.Unavailable, "", "%s is damaged (%s); %s",
			d.cfg.named(d.path), fault, d.cfg.Damaged)
	}
	// Not before we know that the file is ours: the mode is written into it.
	_, err = d.Writer.ExecContext(ctx, "PRAGMA journal_mode = WAL")
	return err
}

// OpenReadOnly opens a database that is there already, whatever its schema: it makes no
// file, changes none, and needs no more than to read. A server may have it open meanwhile.
// Changes fail with kind Unavailable.
func OpenReadOnly(path string, c Config) (*DB, error) {
	const op = "sqlitedb.OpenReadOnly"
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "%s %q: %w", c.What, path, err)
	}
	if _, err := os.Stat(abs); err != nil {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "%s: %w", c.What, err)
	}
	d := at(abs, c)
	d.readOnly = true
	params := []string{"mode=ro"}
	if d.alone() {
		params = append(params, "immutable=1")
	}
	if d.Writer, err = Connect(abs, c.Busy, params...); err != nil {
		return nil, d.Fail(op, "", err)
	}
	d.Reader = d.Writer // a second Close of a pool does nothing
	return d, nil
}

// alone tells that no process has the file open, so that it holds all that was written. A
// reader of a file that is not immutable would make -wal and -shm, or fail where it may not.
func (d *DB) alone() bool {
	if _, err := os.Stat(d.path + "-wal"); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, used, err := owner.Of(d.lockFile)
	return err == nil && !used
}

// OpenMemory makes an empty database that is kept in memory and stands for the file path,
// which is not there. What is written to it is gone with Close.
func OpenMemory(ctx context.Context, path string, c Config) (*DB, error) {
	const op = "sqlitedb.OpenMemory"
	d := at(path, c)
	d.memory = true
	var err error
	if d.Writer, err = sql.Open("sqlite", ":memory:?_pragma=foreign_keys(1)"); err != nil {
		return nil, d.Fail(op, "", err)
	}
	d.Writer.SetMaxOpenConns(1) // each connection to ":memory:" has a database of its own
	d.Reader = d.Writer
	if err := d.upgrade(ctx); err != nil {
		return nil, errors.Join(d.Fail(op, "", err), d.Close())
	}
	return d, nil
}

// Connect opens one connection to the file path beside those of a DB, with SQLite's URI
// parameters (https://www.sqlite.org/uri.html) and "_pragma=NAME(VALUE)".
func Connect(path string, busy time.Duration, params ...string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", URI(path, busy, params...))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// URI names a file for SQLite. A '?' or '%' in the path is a part of the name.
func URI(path string, busy time.Duration, params ...string) string {
	u := (&url.URL{Scheme: "file", Path: path}).String() + fmt.Sprintf("?_pragma=busy_timeout(%d)", busy.Milliseconds())
	for _, p := range params {
		u += "&" + p
	}
	return u
}

// Fault is what a check of SQLite finds first, "" where all is well. check is
// "integrity_check", or "quick_check", which leaves out the comparison of indexes with
// their tables.
func Fault(ctx context.Context, db *sql.DB, check string) (fault string, err error) {
	err = db.QueryRowContext(ctx, "PRAGMA "+check+"(1)").Scan(&fault)
	if fault == "ok" {
		fault = ""
	}
	return fault, err
}

// Path is the file's path, as errors show it.
func (d *DB) Path() string { return d.cfg.shown(d.path) }

// InMemory tells that there is no file.
func (d *DB) InMemory() bool { return d.memory }

// Update runs f in one transaction of the writing connection. The error is f's or
// SQLite's; Fail makes one of ours of it.
func (d *DB) Update(ctx context.Context, f func(ctx context.Context, tx *sql.Tx) error) error {
	conn, err := d.Writer.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // it goes back to the pool
	if d.cfg.Finish {
		ctx = context.WithoutCancel(ctx)
	}
	return transact(ctx, conn, f)
}

// Snapshot runs f in one transaction that only reads. In WAL mode it sees the state of
// its first question, and holds up nobody.
func (d *DB) Snapshot(ctx context.Context, f func(ctx context.Context, tx *sql.Tx) error) error {
	conn, err := d.Reader.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // it goes back to the pool
	return transact(ctx, conn, f)
}

func transact(ctx context.Context, conn *sql.Conn, f func(ctx context.Context, tx *sql.Tx) error) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	if err := f(ctx, tx); err != nil {
		return err
	}
	return tx.Commit()
}

// Close waits for calls under way, moves the -wal into the file and gives up the locks
// that are still held. A second Close does nothing.
func (d *DB) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	// Readers first: the last connection to close moves the -wal, and readers may not
	// write.
	err := errors.Join(d.Reader.Close(), d.Writer.Close())
	d.mu.Lock()
	defer d.mu.Unlock()
	for f := range d.locks {
		_ = f.Close()
	}
	clear(d.locks)
	if err != nil {
		return claviger.Errorf("sqlitedb.Close", claviger.Unavailable, "", "%s: %w", d.cfg.named(d.path), err)
	}
	return nil
}

// Usable is kind Closed after Close.
func (d *DB) Usable(op string) error {
	if d.closed.Load() {
		return claviger.Errorf(op, claviger.Closed, "", "%s is closed", d.cfg.named(d.path))
	}
	return nil
}
