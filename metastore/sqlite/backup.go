package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"claviger"
	"claviger/durable"
	"claviger/metastore"
	"claviger/owner"
	"claviger/sqlitedb"
)

// Facts are what a file tells of itself.
type Facts struct {
	File   string    `json:"file"`
	Schema int64     `json:"schema"`
	Made   time.Time `json:"made,omitzero"` // by Backup; zero: it is no backup
	// The token that the store belongs to.
	TokenSerial string `json:"tokenSerial,omitempty"`
	TokenLabel  string `json:"tokenLabel,omitempty"`
	Keys        int    `json:"keys"`
	Versions    int    `json:"versions"`
	Deleted     int    `json:"deletedKeys"`
	Pending     int    `json:"pendingSteps"`
	Runs        int    `json:"migrationRuns"`
}

// Backup writes a copy of the store in the file from into the file to, which it
// never overwrites. Servers go on meanwhile; the copy is of one moment, whole or
// not there, mode 0600. It holds no delegation tokens and none of the keys that
// made them: they are secrets, and a copy would bring back what was cancelled.
func Backup(ctx context.Context, from, to string) (f Facts, err error) {
	if _, err := os.Lstat(to); err == nil {
		return f, &durable.AlreadyError{Path: to}
	}
	if from, err = filepath.Abs(from); err != nil {
		return f, err
	}
	if err := checkHead(from); err != nil {
		return f, err
	}
	return backup(ctx, from, to)
}

// backup is Backup of a file that may be open in this process: it opens and closes the
// file by SQLite alone, for any other close would end SQLite's locks of the file.
func backup(ctx context.Context, from, to string) (f Facts, err error) {
	work, err := sqlitedb.NewWork(to, "backup")
	if err != nil {
		return f, err
	}
	defer work.Discard()
	if f, err = copyInto(ctx, from, to, work.Path); err != nil {
		return f, err
	}
	return f, durable.Publish(work.Path, to)
}

// copyInto writes a sealed copy of the store from into the file work, which is to be
// named to.
func copyInto(ctx context.Context, from, to, work string) (f Facts, err error) {
	db, err := sqlitedb.Connect(from, busyTimeout, "mode=rw")
	if err != nil {
		return f, err
	}
	_, err = db.ExecContext(ctx, "VACUUM INTO ?", work)
	if err = errors.Join(err, db.Close()); err != nil {
		return f, config(from).Fail(from, "metastore/sqlite.Backup", "", unwritten(to, err))
	}
	if err := seal(ctx, work); err != nil {
		return f, fmt.Errorf("the copy of %s: %w", from, unwritten(to, err))
	}
	if f, err = Inspect(ctx, work); err != nil {
		return f, fmt.Errorf("the copy of %s: %w", from, err)
	}
	f.File = to
	return f, nil
}

// unwritten names the backup where the disk is full: of the two files, SQLite writes to
// that one alone.
func unwritten(to string, err error) error {
	if !sqlitedb.Full(err) {
		return err
	}
	return claviger.Errorf("metastore/sqlite.Backup", claviger.Unavailable, "",
		"the backup %s cannot be written: its disk is full, or a quota is reached (%w); no backup was made; make "+
			"room in %s, or name a file on another disk", to, err, filepath.Dir(to))
}

// seal takes the secrets out of a copy, and marks it.
func seal(ctx context.Context, work string) (err error) {
	// secure_delete: what is deleted is overwritten.
	db, err := sqlitedb.Connect(work, busyTimeout, "_pragma=secure_delete(1)", "_pragma=journal_mode(DELETE)")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for table, empty := range map[string]string{"delegation": `DELETE FROM delegation`,
		"master_key": `DELETE FROM master_key`} {
		has, err := hasTable(ctx, db, table)
		if err == nil && has {
			_, err = db.ExecContext(ctx, empty)
		}
		if err != nil {
			return err
		}
	}
	_, err = db.ExecContext(ctx,
		`INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value`,
		metastore.SettingBackup, time.Now().UTC().Format(time.RFC3339))
	return err
}

func hasTable(ctx context.Context, db *sql.DB, name string) (has bool, err error) {
	err = db.QueryRowContext(ctx, `SELECT count(*) > 0 FROM sqlite_schema WHERE type = 'table' AND name = ?`,
		name).Scan(&has)
	return has, err
}

// Inspect checks a file: that it is whole, a metastore, and of a schema that this
// program knows. It changes nothing; a server may have the file open.
func Inspect(ctx context.Context, path string) (f Facts, err error) {
	f.File = path
	if path, err = filepath.Abs(path); err != nil {
		return f, err
	}
	if err := checkHead(path); err != nil {
		return f, err
	}
	db, err := sqlitedb.OpenReadOnly(path, config(path))
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if f.Schema, err = db.Version(ctx); err == nil && f.Schema > SchemaVersion {
		return f, fmt.Errorf("%s has schema version %d, this program knows versions up to %d: "+
			"a newer claviger has written it; run that version or a newer one", path, f.Schema, SchemaVersion)
	}
	if err == nil {
		err = integrity(ctx, db.Reader)
	}
	if err == nil {
		err = f.count(ctx, db.Reader)
	}
	return f, db.Fail("metastore/sqlite.Inspect", "", err)
}

// integrity has SQLite look at every page, index and reference.
func integrity(ctx context.Context, db *sql.DB) error {
	first, err := sqlitedb.Fault(ctx, db, "integrity_check")
	if err != nil {
		return err
	}
	if first != "" {
		return fmt.Errorf("it is damaged: %s; a store is restored from a backup, a backup is taken anew; the keys "+
			"in the HSM are not touched by this", first)
	}
	var broken bool
	if err := db.QueryRowContext(ctx,
		`SELECT EXISTS (SELECT 1 FROM pragma_foreign_key_check)`).Scan(&broken); err != nil {
		return err
	}
	if broken {
		return errors.New("it is damaged: versions belong to no key; a store is restored from a backup, a backup is " +
			"taken anew; the keys in the HSM are not touched by this")
	}
	return nil
}

// count reads the figures. A table that an older schema lacks counts nothing.
func (f *Facts) count(ctx context.Context, db *sql.DB) error {
	for table, n := range map[string]*int{"ez_key": &f.Keys, "key_version": &f.Versions, "deleted_key": &f.Deleted,
		"intent": &f.Pending} {
		has, err := hasTable(ctx, db, table)
		if err == nil && has {
			err = db.QueryRowContext(ctx, "SELECT count(*) FROM "+table).Scan(n)
		}
		if err != nil {
			return err
		}
	}
	if err := db.QueryRowContext(ctx, "SELECT count(DISTINCT run) FROM journal").Scan(&f.Runs); err != nil {
		return err
	}
	made := ""
	for name, value := range map[string]*string{"hsm.token.serial": &f.TokenSerial, "hsm.token.label": &f.TokenLabel,
		metastore.SettingBackup: &made} {
		err := db.QueryRowContext(ctx, "SELECT value FROM setting WHERE name = ?", name).Scan(value)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
	}
	if made == "" {
		return nil
	}
	at, err := time.Parse(time.RFC3339, made)
	f.Made = at
	return err
}

// checkHead refuses a file that is no whole metastore, by the first 100 bytes:
// https://www.sqlite.org/fileformat.html#the_database_header
func checkHead(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: name the file of a metastore", path)
	}
	head := make([]byte, 100)
	if _, err := io.ReadFull(f, head); err != nil || string(head[:16]) != "SQLite format 3\x00" {
		return fmt.Errorf("%s is no metastore: it is not an SQLite database, or its head is damaged; name a file "+
			"that claviger metastore backup has written", path)
	}
	if id := binary.BigEndian.Uint32(head[68:]); id != applicationID {
		return fmt.Errorf("%s is no metastore but the SQLite database of another program (application id %#x, ours "+
			"is %#x); name a file that claviger metastore backup has written", path, id, applicationID)
	}
	page := int64(binary.BigEndian.Uint16(head[16:]))
	if page == 1 {
		page = 65536
	}
	pages := int64(binary.BigEndian.Uint32(head[28:]))
	fresh := binary.BigEndian.Uint32(head[24:]) == binary.BigEndian.Uint32(head[92:]) // else the count may be old
	if fresh && st.Size() < page*pages {
		return fmt.Errorf("%s is cut short: it has %d bytes, and its head says %d; copy it again, or take another "+
			"backup", path, st.Size(), page*pages)
	}
	return nil
}

// Staged is a backup that waits beside a store to take its place.
type Staged struct {
	// Store holds what the backup holds, in this program's schema.
	Store *Store
	Facts Facts
	work  *sqlitedb.Work
	path  string
}

// Stage copies a backup beside the store in the file path, brings the copy up to
// date, and checks it; nothing of the store is touched. Of a file that Backup has
// not made nobody knows whether it is whole: it may have been copied from under a
// server, without its -wal; plain takes it nevertheless, with the -wal that is
// beside it.
func Stage(ctx context.Context, from, path string, plain bool) (s *Staged, err error) {
	if from, err = filepath.Abs(from); err != nil {
		return nil, err
	}
	facts, err := Inspect(ctx, from)
	if err != nil {
		return nil, err
	}
	if facts.Made.IsZero() && !plain {
		return nil, fmt.Errorf("%s was not written by claviger metastore backup: a copy of the file alone may lack "+
			"what its -wal held; take a file of metastore backup, or, if no server had the store when it was copied "+
			"or the -wal is beside it, say --plain-copy", from)
	}
	work, err := sqlitedb.NewWork(path, "restore")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			work.Discard()
		}
	}()
	parts := []string{""}
	if facts.Made.IsZero() {
		parts = append(parts, "-wal")
	}
	for _, part := range parts {
		if err := copyFile(from+part, work.Path+part); err != nil && (part == "" || !errors.Is(err, fs.ErrNotExist)) {
			return nil, err
		}
	}
	c := config(from)
	c.Shown, c.Schema.Before = from, nil // from is the copy
	store, err := open(ctx, work.Path, c)
	if err != nil {
		return nil, err
	}
	s = &Staged{Store: store, Facts: facts, work: work, path: path}
	if _, err = store.exec(ctx, "metastore/sqlite.Stage", `DELETE FROM setting WHERE name = ?`,
		metastore.SettingBackup); err == nil {
		err = store.fail("metastore/sqlite.Stage", "", integrity(ctx, store.db.Writer))
	}
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return s, nil
}

// SkipNumbersOf raises the numbers of versions above all that another store has
// given: EDEKs may name versions that the backup does not know, and a number is
// never used twice.
func (s *Staged) SkipNumbersOf(ctx context.Context, other *Store) error {
	next, err := other.nextNumbers(ctx)
	if err != nil {
		return other.fail("metastore/sqlite.SkipNumbersOf", "", err)
	}
	for name, n := range next {
		if err := s.Store.SkipNumbers(ctx, name, min(n, claviger.MaxVersion)); err != nil {
			return err
		}
	}
	return nil
}

// nextNumbers returns the next number of each name.
func (s *Store) nextNumbers(ctx context.Context) (next map[string]int, err error) {
	rows, err := s.db.Reader.QueryContext(ctx, `SELECT name, max(next) FROM key_number GROUP BY name`)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	next = map[string]int{}
	for rows.Next() {
		var name string
		var n int
		if err := rows.Scan(&name, &n); err != nil {
			return nil, err
		}
		next[name] = n
	}
	return next, rows.Err()
}

// Discard removes the copy, unless it has taken the store's place.
func (s *Staged) Discard() error {
	err := s.Store.Close()
	s.work.Discard()
	return err
}

// Replace puts the copy in the store's place. The store that was there stays
// beside it, whole, under the name that is returned ("" for none). The caller has
// a claim on the store. A power cut leaves the one store or the other.
func (s *Staged) Replace(ctx context.Context) (aside string, err error) {
	if err := s.Store.Close(); err != nil { // moves its -wal into the file
		return "", err
	}
	if err := durable.SyncFile(s.work.Path); err != nil {
		return "", err
	}
	if _, err := os.Lstat(s.path); err == nil {
		aside = s.path + ".replaced-" + time.Now().UTC().Format("20060102T150405.000Z")
		if err := s.putAside(ctx, aside); err != nil {
			return "", err
		}
	}
	err = durable.Rename(s.work.Path, s.path)
	// Now, since the store may be opened next: to close the file would end SQLite's locks.
	s.work.Release()
	return aside, err
}

// putAside gives the store that is to be replaced a second name, and takes its
// -wal away: SQLite would play it into the new file.
func (s *Staged) putAside(ctx context.Context, aside string) error {
	if old, err := sqlitedb.Connect(s.path, busyTimeout, "mode=rw"); err == nil {
		// So that the file alone holds all. One that is damaged is kept as it is.
		_, _ = old.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
		_ = old.Close()
	}
	if err := durable.SyncFile(s.path); err != nil {
		return err
	}
	if err := durable.Link(s.path, aside); err != nil {
		return err
	}
	if _, err := os.Lstat(s.path + "-wal"); err == nil {
		if err := durable.SyncFile(s.path + "-wal"); err != nil {
			return err
		}
		if err := durable.Link(s.path+"-wal", aside+"-wal"); err != nil {
			return err
		}
	}
	return durable.Remove(s.path+"-wal", s.path+"-shm")
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Occupy claims the store in a file that need not be whole, or there.
func Occupy(path string, o owner.Owner) (release func(), err error) {
	release, err = owner.Claim(sqlitedb.LockFile(path), "metastore sqlite://"+path, o)
	if err != nil {
		return nil, claviger.E("metastore/sqlite.Occupy", claviger.Unavailable, "", err)
	}
	return release, nil
}
