package sqlite

import (
	"context"
	"database/sql"
	"strconv"

	"claviger"
	"claviger/metastore"
)

const (
	selectNext     = `SELECT coalesce(max(next), 0) FROM key_number WHERE name = ?`
	selectNumbered = `SELECT EXISTS (SELECT 1 FROM key_number WHERE name = ? AND first <= ? AND next > ?)`
)

// NextNumber returns the next number of a name, see metastore.Numbers.
func (s *Store) NextNumber(ctx context.Context, key string) (next int, err error) {
	const op = "metastore/sqlite.NextNumber"
	if err := s.usable(op); err != nil {
		return 0, err
	}
	err = s.db.Reader.QueryRowContext(ctx, selectNext, key).Scan(&next)
	return next, s.fail(op, key, err)
}

// SkipNumbers raises the next number of a name, see metastore.Numbers.
func (s *Store) SkipNumbers(ctx context.Context, key string, next int) error {
	const op = "metastore/sqlite.SkipNumbers"
	if next < 0 || next > claviger.MaxVersion {
		return claviger.Errorf(op, claviger.Invalid, key, "%d cannot be the number of a version: it must be from 0 "+
			"to %d", next, claviger.MaxVersion)
	}
	return s.update(ctx, op, key, func(tx *sql.Tx) error {
		var current int
		if err := tx.QueryRowContext(ctx, selectNext, key).Scan(&current); err != nil || current >= next {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO key_number (name, first, next) VALUES (?, ?, ?)`, key, next, next)
		return err
	})
}

// Numbered reports whether a version of that name got the number, see metastore.Numbers.
func (s *Store) Numbered(ctx context.Context, key string, n int) (given bool, err error) {
	const op = "metastore/sqlite.Numbered"
	if err := s.usable(op); err != nil {
		return false, err
	}
	err = s.db.Reader.QueryRowContext(ctx, selectNumbered, key, n, n).Scan(&given)
	return given, s.fail(op, key, err)
}

// assignNumbers gives the next numbers of a name to the refs that have no id.
func assignNumbers(ctx context.Context, tx *sql.Tx, op, name string, refs []metastore.Ref) error {
	for i := range refs {
		if refs[i].ID == "" {
			var next int
			if err := tx.QueryRowContext(ctx, selectNext, name).Scan(&next); err != nil {
				return err
			}
			if next > claviger.MaxVersion {
				return claviger.Errorf(op, claviger.Unsupported, name,
					"the numbers of this key's versions are used up at %d: make a key of another name",
					claviger.MaxVersion)
			}
			refs[i].ID = strconv.Itoa(next)
			if _, err := tx.ExecContext(ctx, `INSERT INTO version_unused (version) VALUES (?)`,
				claviger.VersionName(name, refs[i].ID)); err != nil {
				return err
			}
		}
		if err := recordNumber(ctx, tx, name, refs[i].ID); err != nil {
			return err
		}
	}
	return nil
}

// recordNumber records that a version of the name has that id. It does nothing for an id that is not a number.
func recordNumber(ctx context.Context, tx *sql.Tx, name, id string) error {
	n, ok := claviger.NumberOfID(id)
	if !ok {
		return nil
	}
	var given bool
	if err := tx.QueryRowContext(ctx, selectNumbered, name, n, n).Scan(&given); err != nil || given {
		return err
	}
	r, err := tx.ExecContext(ctx, `UPDATE key_number SET next = ? WHERE name = ? AND next = ?`, n+1, name, n)
	if err != nil {
		return err
	}
	if extended, err := r.RowsAffected(); err != nil || extended > 0 {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO key_number (name, first, next) VALUES (?, ?, ?)`, name, n, n+1)
	return err
}
