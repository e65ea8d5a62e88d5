package postgres

import (
	"context"
	"strconv"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/metastore"
)

const (
	selectNext     = `SELECT coalesce(max(next), 0) FROM key_number WHERE name = $1`
	selectNumbered = `SELECT EXISTS (SELECT 1 FROM key_number WHERE name = $1 AND first <= $2 AND next > $2)`
)

// NextNumber returns the next number of a name, see metastore.Numbers.
func (s *Store) NextNumber(ctx context.Context, key string) (next int, err error) {
	err = s.db.Read(ctx, "metastore/postgres.NextNumber", key, func(ctx context.Context) error {
		if !storable(key) {
			return nil
		}
		return s.db.Pool().QueryRow(ctx, selectNext, key).Scan(&next)
	})
	return next, err
}

// SkipNumbers raises the next number of a name, see metastore.Numbers.
func (s *Store) SkipNumbers(ctx context.Context, key string, next int) error {
	const op = "metastore/postgres.SkipNumbers"
	if next < 0 || next > claviger.MaxVersion {
		return claviger.Errorf(op, claviger.Invalid, key, "%d cannot be the number of a version: it must be from 0 "+
			"to %d", next, claviger.MaxVersion)
	}
	return s.update(ctx, op, key, pgx.Serializable, func(ctx context.Context, tx pgx.Tx) error {
		var now int
		if err := tx.QueryRow(ctx, selectNext, key).Scan(&now); err != nil || now >= next {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO key_number (name, first, next) VALUES ($1, $2, $2)`, key, next)
		return err
	})
}

// Numbered reports whether a version of that name got the number, see metastore.Numbers.
func (s *Store) Numbered(ctx context.Context, key string, n int) (given bool, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Numbered", key, func(ctx context.Context) error {
		if !storable(key) || n < 0 || n > claviger.MaxVersion {
			return nil
		}
		return s.db.Pool().QueryRow(ctx, selectNumbered, key, n).Scan(&given)
	})
	return given, err
}

// assignNumbers gives the next numbers of a name to the refs that have no id, and records the numbers of all refs.
func assignNumbers(ctx context.Context, tx pgx.Tx, op, name string, refs []metastore.Ref) error {
	for i := range refs {
		if refs[i].ID == "" {
			var next int
			if err := tx.QueryRow(ctx, selectNext, name).Scan(&next); err != nil {
				return err
			}
			if next > claviger.MaxVersion {
				return claviger.Errorf(op, claviger.Unsupported, name,
					"the numbers of this key's versions are used up at %d: make a key of another name",
					claviger.MaxVersion)
			}
			refs[i].ID = strconv.Itoa(next)
			if _, err := tx.Exec(ctx, `INSERT INTO version_unused (version) VALUES ($1)`,
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
func recordNumber(ctx context.Context, tx pgx.Tx, name, id string) error {
	n, ok := claviger.NumberOfID(id)
	if !ok {
		return nil
	}
	var given bool
	if err := tx.QueryRow(ctx, selectNumbered, name, n).Scan(&given); err != nil || given {
		return err
	}
	tag, err := tx.Exec(ctx, `UPDATE key_number SET next = $3 WHERE name = $1 AND next = $2`, name, n, n+1)
	if err != nil || tag.RowsAffected() > 0 {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO key_number (name, first, next) VALUES ($1, $2, $3)`, name, n, n+1)
	return err
}
