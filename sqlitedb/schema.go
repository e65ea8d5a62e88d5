package sqlitedb

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"

	"claviger"
)

// Schema is a store's schema.
type Schema struct {
	// ApplicationID marks the file as the store's in SQLite's header.
	ApplicationID uint32
	// Migrations are goose's files, in the folder "migrations"; Version is the number of the
	// newest.
	Migrations fs.FS
	Version    int64
	// Back tells an operator how to go back to the schema of this program, for errors.
	Back string
	// Before is called before an older schema is upgraded, while no other process upgrades it; nil does nothing. Its
	// error prevents the upgrade. KeepCopy returns such a function.
	Before func(ctx context.Context, d *DB, from int64) error
}

// Version returns the version of the schema, or 0 for a new file. Kind Invalid for the file of another program.
//
// Version is called at each start, so it uses two small queries, which are faster than goose.
func (d *DB) Version(ctx context.Context) (int64, error) {
	const op = "sqlitedb.Version"
	var app uint32
	var tables int
	var made bool
	err := d.Writer.QueryRowContext(ctx, `SELECT (SELECT application_id FROM pragma_application_id), count(*),
		count(*) FILTER (WHERE name = 'goose_db_version') > 0 FROM sqlite_schema`).Scan(&app, &tables, &made)
	if err != nil {
		return 0, d.Fail(op, "", err)
	}
	if want := d.cfg.Schema.ApplicationID; app != want && (app != 0 || tables > 0) {
		return 0, claviger.Errorf(op, claviger.Invalid, "",
			"%s is an SQLite database of another program (application id %#x, ours is %#x): name another file",
			d.cfg.named(d.path), app, want)
	}
	if !made { // the file is new, or its process was killed right after it had set the application id
		return 0, nil
	}
	version, err := VersionOf(ctx, d.Writer)
	return version, d.Fail(op, "", err)
}

// VersionOf returns the version of the schema in a file that has one.
func VersionOf(ctx context.Context, db *sql.DB) (version int64, err error) {
	err = db.QueryRowContext(ctx,
		`SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&version)
	return version, err
}

// upgrade upgrades the schema, in one process at a time.
func (d *DB) upgrade(ctx context.Context) error {
	if old, err := d.older(ctx); err != nil || !old {
		return err
	}
	unlock, err := d.Lock(ctx, "schema")
	if err != nil {
		return err
	}
	defer unlock()
	if old, err := d.older(ctx); err != nil || !old { // another process has upgraded it
		return err
	}
	from, err := d.Version(ctx)
	if err != nil {
		return err
	}
	if before := d.cfg.Schema.Before; before != nil && from > 0 {
		if err := before(ctx, d, from); err != nil {
			return err
		}
	}
	mark := fmt.Sprintf("PRAGMA application_id = %d", d.cfg.Schema.ApplicationID)
	if _, err := d.Writer.ExecContext(ctx, mark); err != nil {
		return err
	}
	files, err := fs.Sub(d.cfg.Schema.Migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, d.Writer, files, goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("upgrade of the schema: %w", err)
	}
	return nil
}

// older reports whether the schema must be upgraded. It returns an error for a newer schema.
func (d *DB) older(ctx context.Context) (bool, error) {
	known := d.cfg.Schema.Version
	version, err := d.Version(ctx)
	if err != nil {
		return false, err
	}
	if version > known {
		return false, claviger.Errorf("sqlitedb.Open", claviger.Unavailable, "",
			"%s has schema version %d, this program knows versions up to %d: a newer claviger has written it; "+
				"run that version or a newer one, or %s", d.cfg.named(d.path), version, known, d.cfg.Schema.Back)
	}
	return version < known, nil
}
