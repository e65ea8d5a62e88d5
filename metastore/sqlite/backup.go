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

// Facts describe the file of a store.
type Facts struct {
	File   string    `json:"file"`
	Schema int64     `json:"schema"`
	Made   time.Time `json:"made,omitzero"` // when Backup made the file; zero if the file is not a backup
	// The token to which the store belongs.
	TokenSerial string `json:"tokenSerial,omitempty"`
	TokenLabel  string `json:"tokenLabel,omitempty"`
	Keys        int    `json:"keys"`
	Versions    int    `json:"versions"`
	Deleted     int    `json:"deletedKeys"`
	Pending     int    `json:"pendingSteps"`
	Runs        int    `json:"migrationRuns"`
}

// Backup writes a copy of the store in the file from into the file to, which it never overwrites. Servers may use the
// store meanwhile. The copy has the content of one moment and mode 0600, and exists completely or not at all. It has no
// delegation tokens and no master keys: they are secrets, and a restored copy would bring back cancelled tokens.
func Backup(ctx context.Context, from, to string) (f Facts, err error) {
	if _, err := os.Lstat(to); err == nil {
		return f, &durable.AlreadyError{Path: to}
	}
	if from, err = filepath.Abs(from); err != nil {
		return f, err
	}
	if err := checkHeader(from, from); err != nil {
		return f, err
	}
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

// copyInto writes a copy of the store from, without tokens, into the file work. The file gets the name to later, and
// errors use that name.
func copyInto(ctx context.Context, from, to, work string) (f Facts, err error) {
	db, err := sqlitedb.Connect(from, busyTimeout, "mode=rw")
	if err != nil {
		return f, err
	}
	_, err = db.ExecContext(ctx, "VACUUM INTO ?", work)
	if err = errors.Join(err, db.Close()); err != nil {
		return f, config(from).Fail(from, "metastore/sqlite.Backup", "", outputError(to, err))
	}
	if err := sanitize(ctx, work); err != nil {
		return f, fmt.Errorf("the copy of %s: %w", from, outputError(to, err))
	}
	if f, err = inspect(ctx, work, to); err != nil {
		return f, fmt.Errorf("the copy of %s: %w", from, err)
	}
	return f, nil
}

// outputError names the backup if the disk is full, because SQLite writes to this file only.
func outputError(to string, err error) error {
	if !sqlitedb.Full(err) {
		return err
	}
	return claviger.Errorf("metastore/sqlite.Backup", claviger.Unavailable, "",
		"the backup %s cannot be written: its disk is full, or a quota is reached (%w); no backup was made; make "+
			"room in %s, or name a file on another disk", to, err, filepath.Dir(to))
}

// sanitize removes the secrets from a copy, and marks the copy as a backup.
func sanitize(ctx context.Context, work string) (err error) {
	// secure_delete: SQLite overwrites the deleted rows in the file.
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

// Inspect checks that a file is complete and undamaged, that it is a metastore, and that this program knows its schema.
// It changes nothing. A server may have the file open.
func Inspect(ctx context.Context, path string) (f Facts, err error) {
	shown := path
	if path, err = filepath.Abs(path); err != nil {
		return f, err
	}
	f, err = inspect(ctx, path, path)
	f.File = shown
	return f, err
}

// inspect is Inspect. Facts and errors have the name shown for the file.
func inspect(ctx context.Context, path, shown string) (f Facts, err error) {
	f.File = shown
	if err := checkHeader(path, shown); err != nil {
		return f, err
	}
	c := config(path)
	c.Shown = shown
	db, err := sqlitedb.OpenReadOnly(path, c)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if f.Schema, err = db.Version(ctx); err == nil && f.Schema > SchemaVersion {
		return f, fmt.Errorf("%s has schema version %d, this program knows versions up to %d: "+
			"a newer claviger has written it; run that version or a newer one", shown, f.Schema, SchemaVersion)
	}
	if err == nil {
		err = integrity(ctx, db.Reader)
	}
	if err == nil {
		err = f.count(ctx, db.Reader)
	}
	return f, db.Fail("metastore/sqlite.Inspect", "", err)
}

// integrity checks every page, index and reference of the file.
func integrity(ctx context.Context, db *sql.DB) error {
	first, err := sqlitedb.Fault(ctx, db, "integrity_check")
	if err != nil {
		return err
	}
	if first != "" {
		return fmt.Errorf("it is damaged: %s; %s", first, damagedCure)
	}
	var broken bool
	if err := db.QueryRowContext(ctx,
		`SELECT EXISTS (SELECT 1 FROM pragma_foreign_key_check)`).Scan(&broken); err != nil {
		return err
	}
	if broken {
		return errors.New("it is damaged: it has versions that belong to no key; " + damagedCure)
	}
	return nil
}

const damagedCure = "if it is a store, restore it from a backup; if it is a backup, make another one; neither " +
	"changes the keys in the HSM"

// count counts the rows. A table that an older schema does not have counts as empty.
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

// checkHeader reads the first 100 bytes of a file, and refuses a file that is not a metastore or is truncated. Errors
// have the name shown for the file. https://www.sqlite.org/fileformat.html#the_database_header
func checkHeader(path, shown string) error {
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
		return fmt.Errorf("%s is not a regular file: name the file of a metastore", shown)
	}
	header := make([]byte, 100)
	if _, err := io.ReadFull(f, header); err != nil || string(header[:16]) != "SQLite format 3\x00" {
		return fmt.Errorf("%s is not a metastore: it is not an SQLite database, or its header is damaged; name a file "+
			"that claviger metastore backup has written", shown)
	}
	if id := binary.BigEndian.Uint32(header[68:]); id != applicationID {
		return fmt.Errorf("%s is not a metastore but the SQLite database of another program (application id %#x, ours "+
			"is %#x); name a file that claviger metastore backup has written", shown, id, applicationID)
	}
	page := int64(binary.BigEndian.Uint16(header[16:]))
	if page == 1 {
		page = 65536
	}
	pages := int64(binary.BigEndian.Uint32(header[28:]))
	// If these two counters differ, an old SQLite has written the file, and the count of pages may be wrong.
	valid := binary.BigEndian.Uint32(header[24:]) == binary.BigEndian.Uint32(header[92:])
	if valid && st.Size() < page*pages {
		return fmt.Errorf("%s is truncated: it has %d bytes, and its header says %d; copy it again, or take another "+
			"backup", shown, st.Size(), page*pages)
	}
	return nil
}

// Staged is a copy of a backup. It is beside a store, and Replace puts it in the store's place.
type Staged struct {
	// Store is the copy, in this program's schema.
	Store *Store
	Facts Facts
	work  *sqlitedb.Work
	path  string
}

// Stage copies a backup to a file beside the store in the file path, upgrades the copy, and checks it. It does not
// change the store. A file that Backup has not made may be incomplete, if it was copied without its -wal while a server
// used it. Stage refuses such a file unless plain is true; then it copies a -wal beside the file too.
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
			"the changes in its -wal; use a file of claviger metastore backup, or, if no server used the store when "+
			"it was copied or the -wal is beside the copy, add --plain-copy", from)
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
			return nil, work.Named(err)
		}
	}
	c := config(from)
	c.Shown, c.Schema.Before = from, nil // the upgrade needs to keep no copy, because the backup stays
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

// SkipNumbersOf raises the next number of each name above all numbers that another store has given. EDEKs may name
// versions that are not in the backup, and no number may be given twice.
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

// Discard removes the copy, unless Replace has put it in the store's place.
func (s *Staged) Discard() error {
	err := s.Store.Close()
	s.work.Discard()
	return err
}

// Replace puts the copy in the store's place. The old store stays beside it, complete, under the name aside ("" if
// there was none). The caller must have a claim on the store. After a power cut either the old store or the copy is in
// place.
func (s *Staged) Replace(ctx context.Context) (aside string, err error) {
	if err := s.Store.Close(); err != nil { // moves its -wal into the file
		return "", err
	}
	if err := durable.SyncFile(s.work.Path); err != nil {
		return "", s.work.Named(err)
	}
	if _, err := os.Lstat(s.path); err == nil {
		aside = s.path + ".replaced-" + time.Now().UTC().Format("20060102T150405.000Z")
		if err := s.putAside(ctx, aside); err != nil {
			return "", err
		}
	}
	err = durable.Rename(s.work.Path, s.path)
	// Release closes a descriptor of the file. A later close would end SQLite's locks, if the store is open again.
	s.work.Release()
	return aside, err
}

// putAside gives the old store a second name, and removes the old names of its -wal and -shm. Otherwise SQLite would
// apply the -wal to the new file.
func (s *Staged) putAside(ctx context.Context, aside string) error {
	if old, err := sqlitedb.Connect(s.path, busyTimeout, "mode=rw"); err == nil {
		// The checkpoint moves all changes into the file. It fails if the file is damaged; then -wal and file stay as
		// they are.
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

// ClaimFile claims the store in a file that may be damaged, or may not exist.
func ClaimFile(path string, o owner.Owner) (release func(), err error) {
	release, err = owner.Claim(sqlitedb.LockFile(path), "metastore sqlite://"+path, o)
	if err != nil {
		return nil, claviger.E("metastore/sqlite.ClaimFile", claviger.Unavailable, "", err)
	}
	return release, nil
}
