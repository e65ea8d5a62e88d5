package sqlitedb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"

	"claviger"
	"claviger/durable"
	"claviger/owner"
)

// Copies says how to make the copy that is kept before the upgrade of a schema.
type Copies struct {
	// Sanitize removes secrets from a copy, and marks the copy; nil changes nothing. It is called with the path of the
	// copy before the copy gets its name.
	Sanitize func(ctx context.Context, path string) error
	// Except has, by table, an SQL condition for the rows that Sanitize writes into each copy. Two copies that differ
	// only in these rows are equal.
	Except map[string]string
}

// KeepCopy is for Schema.Before. It keeps a copy of the file for the older release, with the schema in its name
// (claviger.db.schema-3), so that an operator can go back. If a copy with other content has that name, the new copy
// gets a number (claviger.db.schema-3-2). If a copy with the same content exists, from an upgrade that was interrupted,
// KeepCopy makes no second one.
//
// KeepCopy prevents the upgrade, with kind Unavailable, if another process uses the file, or if it cannot make the
// copy.
func KeepCopy(k Copies) func(ctx context.Context, d *DB, from int64) error {
	return func(ctx context.Context, d *DB, from int64) error {
		const op = "sqlitedb.KeepCopy"
		o, used, err := owner.Of(d.lockFile)
		if err == nil && used {
			err = &owner.InUseError{Store: d.cfg.named(d.path), Owners: []owner.Owner{o}}
		}
		if err != nil {
			return claviger.Errorf(op, claviger.Unavailable, "",
				"%w; its schema cannot be upgraded meanwhile: stop that process first", err)
		}
		name := fmt.Sprintf("%s.schema-%d", d.path, from)
		if err := k.keep(ctx, d, name); err != nil {
			return claviger.Errorf(op, claviger.Unavailable, "",
				"%s: its schema was not upgraded, because the copy %s could not be made: %w; "+
					"make room, and let this user write into the folder", d.cfg.named(d.path), name, err)
		}
		return nil
	}
}

// keep makes the copy under a work name, and then gives it the first name that is free.
func (k Copies) keep(ctx context.Context, d *DB, name string) error {
	work, err := NewWork(name, "backup")
	if err != nil {
		return err
	}
	defer work.Discard()
	if err := d.CopyTo(ctx, work.Path); err != nil {
		return copyError(name, err)
	}
	if k.Sanitize != nil {
		if err := k.Sanitize(ctx, work.Path); err != nil {
			return copyError(name, err)
		}
	}
	if err := checkIntegrity(ctx, work.Path); err != nil {
		return err
	}
	for n, free := 2, name; ; n, free = n+1, fmt.Sprint(name, "-", n) {
		err := durable.Publish(work.Path, free)
		if !errors.As(err, new(*durable.AlreadyError)) {
			return err
		}
		if k.same(ctx, work.Path, free) {
			return nil
		}
	}
}

// CopyTo writes the content of the database at one moment into the empty file path.
func (d *DB) CopyTo(ctx context.Context, path string) error {
	_, err := d.Writer.ExecContext(ctx, "VACUUM INTO ?", path)
	return err
}

// copyError names the folder of the copy if a disk is full, because SQLite writes only to the copy.
func copyError(name string, err error) error {
	if Full(err) {
		return fmt.Errorf("the disk of %s is full, or a quota is reached (%w)", filepath.Dir(name), err)
	}
	return err
}

// checkIntegrity checks every page, index and reference of a file that no process has open.
func checkIntegrity(ctx context.Context, path string) (err error) {
	db, err := Connect(path, 0, "mode=ro", "immutable=1")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	fault, err := Fault(ctx, db, "integrity_check")
	if err != nil {
		return err
	}
	var broken bool
	err = db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pragma_foreign_key_check)`).Scan(&broken)
	switch {
	case err != nil:
		return err
	case fault != "":
		return fmt.Errorf("it is damaged: %s", fault)
	case broken:
		return errors.New("it is damaged: rows refer to rows that are missing")
	}
	return nil
}

// same reports whether two copies with the same schema have the same rows. The result is false if a file cannot be
// read.
func (k Copies) same(ctx context.Context, a, b string) bool {
	db, err := Connect(a, 0, "mode=ro", "immutable=1") // one connection, to which b is attached
	if err != nil {
		return false
	}
	defer func() { _ = db.Close() }() // nothing was written
	if _, err := db.ExecContext(ctx, `ATTACH ? AS other`, URI(b, 0, "mode=ro", "immutable=1")); err != nil {
		return false
	}
	tables, err := tablesOf(ctx, db)
	if err != nil || len(tables) == 0 {
		return false
	}
	for _, table := range tables {
		where := ""
		if except := k.Except[table]; except != "" {
			where = " WHERE NOT (" + except + ")"
		}
		rowsA, rowsB := `SELECT * FROM main."`+table+`"`+where, `SELECT * FROM other."`+table+`"`+where
		var differ bool
		err := db.QueryRowContext(ctx,
			`SELECT EXISTS (`+rowsA+` EXCEPT `+rowsB+`) OR EXISTS (`+rowsB+` EXCEPT `+rowsA+`)`).Scan(&differ)
		if err != nil || differ {
			return false
		}
	}
	return true
}

func tablesOf(ctx context.Context, db *sql.DB) (tables []string, err error) {
	rows, err := db.QueryContext(ctx,
		`SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'`)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		tables = append(tables, name)
	}
	return tables, rows.Err()
}
