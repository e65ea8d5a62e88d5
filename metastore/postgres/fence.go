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

// fenced runs f in one transaction that the fence lets pass. f changes no key: see update.
func (s *Store) fenced(ctx context.Context, op, key string, f func(context.Context, pgx.Tx) error) error {
	return s.db.Update(ctx, op, key, pgx.ReadCommitted, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.fence(ctx, tx, op, key); err != nil {
			return err
		}
		return f(ctx, tx)
	})
}

// write runs one statement that the fence lets pass, and tells how many rows it concerned: 0
// with an error.
func (s *Store) write(ctx context.Context, op, key, statement string, args ...any) (rows int, err error) {
	err = s.fenced(ctx, op, key, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, statement, args...)
		rows = int(tag.RowsAffected())
		return err
	})
	if err != nil {
		return 0, err
	}
	return rows, nil
}

// fence refuses a change while another process has the store alone, and after the store
// was moved to another place. A node's claim is a session, which ends with a restart of
// the database, or while the node stands still or is cut off; another process may then
// have taken the store. So each change takes the claim's lock for its own transaction.
func (s *Store) fence(ctx context.Context, tx pgx.Tx, op, key string) error {
	free := s.exclusive.Load() // the lock is this process's own
	var moved string
	batch := &pgx.Batch{} // one round trip
	if !free {
		batch.Queue(`SELECT pg_try_advisory_xact_lock_shared($1)`,
			claimLock).QueryRow(func(row pgx.Row) error { return row.Scan(&free) })
	}
	batch.Queue(`SELECT value FROM setting WHERE name = $1`, metastore.SettingMoved).QueryRow(func(row pgx.Row) error {
		if err := row.Scan(&moved); !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		return nil
	})
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	if !free {
		return claviger.Errorf(op, claviger.Unavailable, key, "%w: metastore %s is in use by a process that has it "+
			"alone", errFenced, s.db.URI())
	}
	if moved == "" {
		return nil
	}
	m, err := metastore.ParseMoved(moved)
	if err != nil {
		return err
	}
	return claviger.Errorf(op, claviger.Unavailable, key, "%w: metastore %s was moved to %s at %s (claviger "+
		"metastore copy); name that one by %s, and start this process anew",
		errFenced, s.db.URI(), m.To, m.At.Format(time.RFC3339),
		s.cfg.Property)
}
