// Package sqlitedb makes and opens the SQLite file of a store. The file is made completely or not at all, and only its
// owner can read it. It is in WAL mode with synchronous=FULL, so a committed transaction survives a power cut. One
// connection writes, and several read.
//
// While the file is open, SQLite's "-wal" and "-shm" files are beside it. The file "<file>.lock" has the named locks
// and the claim of package owner. Errors name the cure.
//
// One process at a time upgrades the schema, and keeps a copy of the older file (keep.go). The next process removes
// work files (work.go) that a killed process left.
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
	"syscall"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite" of database/sql

	"claviger"
	"claviger/owner"
	"claviger/shellword"
)

// Driver is the name of SQLite's driver in database/sql. A test may set the name of a driver that wraps it.
var Driver = "sqlite"

// Config has the settings of a database.
type Config struct {
	// What names the content in errors: "metastore".
	What string
	// Schema is the schema to which the file is upgraded.
	Schema Schema
	// Readers is how many connections read at the same time. Each takes about 100 KiB.
	Readers int
	// Busy is how long a write waits for another process's write.
	Busy time.Duration
	// Damaged is the cure of a damaged file, for errors.
	Damaged string
	// Shown is the path in errors; "" means the path of the file.
	Shown string
	// KeepWAL turns SQLite's automatic checkpoints off, because the store itself moves the -wal into the file.
	KeepWAL bool
	// CheckLater is the size in bytes at which a file is too large for Open to check its pages, which takes long. Then
	// Unchecked is true, and the store must call CheckPages. 0: Open always checks.
	CheckLater int64
	// Finish lets a transaction that has begun continue after its context has ended.
	Finish bool
}

// DB is a database. All methods may be called at the same time.
type DB struct {
	// Writer is one connection. Reader is several connections, which cannot write. Both are for
	// queries; changes go through Update.
	Writer, Reader *sql.DB

	cfg      Config
	path     string // absolute; it may contain links
	lockFile string // beside the file itself
	memory   bool   // see OpenMemory; then there is no file
	readOnly bool
	// unchecked: Open has not checked the pages.
	unchecked bool
	closed    atomic.Bool

	mu    sync.Mutex
	locks map[*os.File]struct{} // held now; guarded by mu
}

func newDB(path string, c Config) *DB {
	return &DB{cfg: c, path: path, lockFile: LockFile(path), locks: make(map[*os.File]struct{})}
}

// LockFile returns the path of the file with the locks of a database. If path is a link, the lock file is beside the
// target of the link.
func LockFile(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return path + ".lock"
}

// Open opens the database in the file path, which must exist, upgrades an older schema, and checks every page (see
// Config.CheckLater). It returns an error for a newer schema, a damaged file and the file of another program, and does
// not change them.
func Open(ctx context.Context, path string, c Config) (*DB, error) {
	const op = "sqlitedb.Open"
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "%s %q: %w", c.What, path, err)
	}
	d := newDB(abs, c)
	if err := d.connect(); err != nil {
		return nil, d.Fail(op, "", err)
	}
	if err := d.prepare(ctx); err != nil {
		return nil, errors.Join(d.Fail(op, "", err), d.Close())
	}
	return d, nil
}

func (d *DB) connect() (err error) {
	// mode=rw: SQLite must not make the file, because it would have a wrong mode.
	params := []string{"mode=rw", "_txlock=immediate", "_pragma=synchronous(FULL)", "_pragma=foreign_keys(1)"}
	if d.cfg.KeepWAL {
		params = append(params, "_pragma=wal_autocheckpoint(0)")
	}
	if d.Writer, err = Connect(d.path, d.cfg.Busy, params...); err != nil {
		return err
	}
	if d.Reader, err = sql.Open(Driver, URI(d.path, d.cfg.Busy, "mode=rw", "_pragma=query_only(1)")); err != nil {
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
	st, err := os.Stat(d.path)
	if err != nil { // it was removed since it was opened
		return claviger.Errorf("sqlitedb.Open", claviger.Unavailable, "", "%s: %w", d.cfg.named(d.path), err)
	}
	if d.unchecked = d.cfg.CheckLater > 0 && st.Size() >= d.cfg.CheckLater; !d.unchecked {
		fault, err := Fault(ctx, d.Writer, quickCheck)
		if err != nil {
			return err
		}
		if fault != "" {
			return claviger.Errorf("sqlitedb.Open", claviger.Unavailable, "", "%s is damaged (%s); %s",
				d.cfg.named(d.path), fault, d.cfg.Damaged)
		}
	}
	// This writes to the file, so it comes after the checks that the file is ours.
	_, err = d.Writer.ExecContext(ctx, "PRAGMA journal_mode = WAL")
	return err
}

// Unchecked reports whether Open has left the check of the pages to CheckPages.
func (d *DB) Unchecked() bool { return d.unchecked }

// CheckPages checks every page, beside other work. fault says how the file is damaged; "" if it is not.
func (d *DB) CheckPages(ctx context.Context) (fault string, err error) {
	fault, err = Fault(ctx, d.Reader, quickCheck)
	if Damaged(err) {
		return err.Error(), nil
	}
	return fault, d.Fail("sqlitedb.CheckPages", "", err)
}

// quickCheck is the check of a start. It does not compare indexes with their tables.
const quickCheck = "quick_check"

// OpenReadOnly opens an existing database, with any schema, and does not change the file. A server may have the file
// open. The right to read is enough, and no file is made, unless a killed process left a -wal: then SQLite makes the
// -shm beside it. Changes fail with kind Unavailable.
func OpenReadOnly(path string, c Config) (*DB, error) {
	const op = "sqlitedb.OpenReadOnly"
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "%s %q: %w", c.What, path, err)
	}
	if _, err := os.Stat(abs); err != nil {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "%s: %w", c.What, err)
	}
	d := newDB(abs, c)
	d.readOnly = true
	params := []string{"mode=ro"}
	if d.alone() {
		params = append(params, "immutable=1")
	} else if err := keepsOwners(abs, os.Geteuid()); err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "%s: %w", c.What, err)
	}
	if d.Writer, err = Connect(abs, c.Busy, params...); err != nil {
		return nil, d.Fail(op, "", err)
	}
	d.Reader = d.Writer // a second Close of a pool does nothing
	return d, nil
}

// keepsOwners returns an error if SQLite would change the owner of a file: a process of root gives the -wal and -shm
// that it opens to the owner of the database (robustFchown in SQLite's os_unix.c). Then the server cannot open them.
func keepsOwners(path string, uid int) error {
	if uid != 0 {
		return nil
	}
	database, err := os.Stat(path)
	if err != nil {
		return err
	}
	owner, ok := database.Sys().(*syscall.Stat_t)
	for _, beside := range []string{path + "-wal", path + "-shm"} {
		info, err := os.Stat(beside)
		if err != nil || !ok {
			continue
		}
		other, ok := info.Sys().(*syscall.Stat_t)
		if !ok || other.Uid == owner.Uid && other.Gid == owner.Gid {
			continue
		}
		right := other
		if right.Uid == 0 {
			right = owner
		}
		return fmt.Errorf("%s belongs to the user %d and the group %d, and %s to %d and %d; SQLite, when root runs "+
			"it, would change that, so it was not opened; cure: chown %d:%d %s, if that is the server's user", path,
			owner.Uid, owner.Gid, beside, other.Uid, other.Gid, right.Uid, right.Gid,
			shellword.Command(path, path+"-wal", path+"-shm"))
	}
	return nil
}

// alone reports whether no other process has the file open, so that all changes are in the file. Then the file can be
// opened as immutable. Otherwise a reader makes -wal and -shm, or fails if it has no right to make them.
func (d *DB) alone() bool {
	if _, err := os.Stat(d.path + "-wal"); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, used, err := owner.Of(d.lockFile)
	return err == nil && !used
}

// OpenMemory makes an empty database in memory. Errors name the file path, which does not exist. Close removes the
// content.
func OpenMemory(ctx context.Context, path string, c Config) (*DB, error) {
	const op = "sqlitedb.OpenMemory"
	d := newDB(path, c)
	d.memory = true
	var err error
	if d.Writer, err = sql.Open(Driver, ":memory:?_pragma=foreign_keys(1)"); err != nil {
		return nil, d.Fail(op, "", err)
	}
	d.Writer.SetMaxOpenConns(1) // each connection to ":memory:" has a database of its own
	d.Reader = d.Writer
	if err := d.upgrade(ctx); err != nil {
		return nil, errors.Join(d.Fail(op, "", err), d.Close())
	}
	return d, nil
}

// Connect opens one connection to the file path, outside of a DB. params are SQLite's URI parameters
// (https://www.sqlite.org/uri.html) and "_pragma=NAME(VALUE)".
func Connect(path string, busy time.Duration, params ...string) (*sql.DB, error) {
	db, err := sql.Open(Driver, URI(path, busy, params...))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// URI returns SQLite's URI of a file. A '?' or '%' in the path is a part of the name.
func URI(path string, busy time.Duration, params ...string) string {
	u := (&url.URL{Scheme: "file", Path: path}).String() + fmt.Sprintf("?_pragma=busy_timeout(%d)", busy.Milliseconds())
	for _, p := range params {
		u += "&" + p
	}
	return u
}

// Fault returns the first fault that a check of SQLite finds, or "". check is "integrity_check", or
// "quick_check", which does not compare indexes with their tables.
func Fault(ctx context.Context, db *sql.DB, check string) (fault string, err error) {
	err = db.QueryRowContext(ctx, "PRAGMA "+check+"(1)").Scan(&fault)
	if fault == "ok" {
		fault = ""
	}
	return fault, err
}

// Path returns the path of the file, as errors show it.
func (d *DB) Path() string { return d.cfg.shown(d.path) }

// InMemory reports whether the database is in memory, without a file.
func (d *DB) InMemory() bool { return d.memory }

// Update runs f in one transaction of the writing connection. The error is f's or SQLite's; Fail
// turns it into a *claviger.Error.
func (d *DB) Update(ctx context.Context, f func(ctx context.Context, tx *sql.Tx) error) error {
	conn, err := d.Writer.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // returns the connection to the pool
	if d.cfg.Finish {
		ctx = context.WithoutCancel(ctx)
	}
	return transact(ctx, conn, f)
}

// Snapshot runs f in one transaction that only reads. In WAL mode it sees the state at its first
// query, and blocks no other connection.
func (d *DB) Snapshot(ctx context.Context, f func(ctx context.Context, tx *sql.Tx) error) error {
	conn, err := d.Reader.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // returns the connection to the pool
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

// Close waits for running calls, moves the -wal into the file and frees the locks that are still
// held. A second Close does nothing.
func (d *DB) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	// The last connection that closes moves the -wal into the file. Readers may not write, so they close first.
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

// Usable returns an error of kind Closed after Close.
func (d *DB) Usable(op string) error {
	if d.closed.Load() {
		return claviger.Errorf(op, claviger.Closed, "", "%s is closed", d.cfg.named(d.path))
	}
	return nil
}
