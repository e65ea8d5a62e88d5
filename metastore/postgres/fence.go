package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/metastore"
)

var errFenced = errors.New("nothing is changed")

// updateFenced runs f in one transaction, after fence has allowed it. f must not change a key; update is for keys.
func (s *Store) updateFenced(ctx context.Context, op, key string, f func(context.Context, pgx.Tx) error) error {
	return s.db.Update(ctx, op, key, pgx.ReadCommitted, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.fence(ctx, tx, op, key); err != nil {
			return err
		}
		return f(ctx, tx)
	})
}

// write runs one statement in updateFenced, and returns the number of changed rows.
func (s *Store) write(ctx context.Context, op, key, statement string, args ...any) (rows int, err error) {
	err = s.updateFenced(ctx, op, key, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, statement, args...)
		rows = int(tag.RowsAffected())
		return err
	})
	if err != nil {
		return 0, err
	}
	return rows, nil
}

// fence returns an error if another process has an exclusive claim (see Claim), if the store was moved, or if a newer
// program has upgraded it and does not work beside this one.
//
// The claim of a node is a session. The session ends if the database restarts, if the node stops for a while, or if the
// network fails; then another process may get an exclusive claim. So each change takes the lock of the claims again, in
// its own transaction.
func (s *Store) fence(ctx context.Context, tx pgx.Tx, op, key string) error {
	free := s.exclusive.Load() // the exclusive claim is this process's own
	var moved, oldest string
	batch := &pgx.Batch{} // all queries in one round trip
	if !free {
		batch.Queue(`SELECT pg_try_advisory_xact_lock_shared($1)`,
			claimLock).QueryRow(func(row pgx.Row) error { return row.Scan(&free) })
	}
	for name, value := range map[string]*string{metastore.SettingMoved: &moved, metastore.SettingOldest: &oldest} {
		batch.Queue(`SELECT value FROM setting WHERE name = $1`, name).QueryRow(func(row pgx.Row) error {
			if err := row.Scan(value); !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			return nil
		})
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	if !free {
		return claviger.Errorf(op, claviger.Unavailable, key, "%w: metastore %s is in use by a process that allows no "+
			"other process to change it", errFenced, s.db.URI())
	}
	if moved == "" {
		return s.tooNew(op, key, oldest)
	}
	m, err := metastore.ParseMoved(moved)
	if err != nil {
		return err
	}
	return claviger.Errorf(op, claviger.Unavailable, key, "%w: metastore %s was moved to %s at %s (claviger "+
		"metastore copy); set %s to the new location, and restart this process",
		errFenced, s.db.URI(), m.To, m.At.Format(time.RFC3339), s.cfg.Property)
}
