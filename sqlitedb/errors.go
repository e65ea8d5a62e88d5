package sqlitedb

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"claviger"
)

// code returns SQLite's result code, or 0 if the error is not from SQLite. The low byte is the primary code:
// https://www.sqlite.org/rescode.html
func code(err error) int {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// Reported reports whether an error came from SQLite.
func Reported(err error) bool { return code(err) != 0 }

// NotUnique reports whether a write failed because another row has the same unique value.
func NotUnique(err error) bool {
	c := code(err)
	return c == sqlite3.SQLITE_CONSTRAINT_UNIQUE || c == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}

// ForeignKey reports whether a write failed because it refers to a row that does not exist.
func ForeignKey(err error) bool { return code(err) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY }

// Constraint reports whether a write failed because of a constraint of the schema, such as a foreign key.
func Constraint(err error) bool { return code(err)&0xff == sqlite3.SQLITE_CONSTRAINT }

// Damaged reports whether a file cannot be read as a database.
func Damaged(err error) bool {
	c := code(err) & 0xff
	return c == sqlite3.SQLITE_NOTADB || c == sqlite3.SQLITE_CORRUPT
}

// Full reports whether a write failed because the disk is full.
func Full(err error) bool { return code(err)&0xff == sqlite3.SQLITE_FULL }

// shown returns the path of a file, as errors show it.
func (c *Config) shown(path string) string {
	if c.Shown != "" {
		return c.Shown
	}
	return path
}

// named returns the subject of errors: "metastore /var/lib/claviger/claviger.db".
func (c *Config) named(path string) string { return c.What + " " + c.shown(path) }

// Fail turns an error of SQLite into one of ours, which names the file and the cure. nil stays nil,
// and our own errors stay as they are.
func (d *DB) Fail(op, key string, err error) error {
	var own *claviger.Error
	if err == nil || errors.As(err, &own) {
		return err
	}
	if closed := d.Usable(op); closed != nil {
		return claviger.Errorf(op, claviger.Closed, key, "%s is closed", d.cfg.named(d.path))
	}
	switch code(err) & 0xff {
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH:
		if denied := d.denied(); denied != nil { // SQLite does not say which file, nor why
			return claviger.Errorf(op, claviger.Unavailable, key, "%s cannot be opened: %w; "+
				"the file and its folder must belong to the user that the server runs as", d.cfg.named(d.path), denied)
		}
	}
	return d.cfg.Fail(d.path, op, key, err)
}

// denied returns an error if this process may not open one of the files. It opens none of them, because the close of a
// file would end SQLite's locks on it.
func (d *DB) denied() error {
	mode := uint32(unix.R_OK | unix.W_OK)
	if d.readOnly {
		mode = unix.R_OK
	}
	for _, path := range []string{d.path, d.path + "-wal", d.path + "-shm"} {
		if err := unix.Access(path, mode); errors.Is(err, fs.ErrPermission) {
			return &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
	return nil
}

// Fail is DB.Fail for a file that is used without a DB.
func (c Config) Fail(path, op, key string, err error) error {
	var own *claviger.Error
	if err == nil || errors.As(err, &own) {
		return err
	}
	what := c.named(path)
	fail := func(format string, args ...any) error {
		return claviger.Errorf(op, claviger.Unavailable, key, "%s "+format, append([]any{what}, args...)...)
	}
	switch code(err) & 0xff {
	case sqlite3.SQLITE_FULL:
		return fail("cannot grow: the disk is full, or a quota is reached (%w); nothing was changed; make room in %s",
			err, filepath.Dir(c.shown(path)))
	case sqlite3.SQLITE_IOERR:
		return fail("cannot be used: the disk or file system failed (%w); nothing was changed; see the kernel's log",
			err)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return fail("is busy: another process has been writing to it for more than %v (%w); nothing was changed",
			c.Busy, err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH:
		return fail("cannot be written (%w); the file and its folder must belong to the user that the server runs as",
			err)
	case sqlite3.SQLITE_INTERRUPT: // the driver's code for a context that ended during a call
		return fail("did not finish the call, because its context ended: %w", context.Canceled)
	case sqlite3.SQLITE_NOTADB:
		return fail("is not an SQLite database, or its header is damaged (%w); name the right file, or %s", err,
			c.Damaged)
	case sqlite3.SQLITE_CORRUPT:
		return fail("is damaged (%w); %s", err, c.Damaged)
	}
	kind := claviger.Internal
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		kind = claviger.Unavailable
	}
	return claviger.Errorf(op, kind, key, "%s: %w", what, err)
}
