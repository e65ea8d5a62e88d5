package sqlite

import (
	"context"
	"database/sql"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/sqlitedb"
)

var _ metastore.Watched = (*Store)(nil)

// writes holds the result of the last change.
type writes struct {
	last atomic.Pointer[metastore.Seen]
}

// record stores the result of a change. It ignores errors that say nothing about the store, like a missing key.
func (w *writes) record(began time.Time, err error) {
	if err != nil && !sqlitedb.Reported(err) && claviger.AnswerOf(err) == "" { // the guard's errors have an answer
		return
	}
	w.last.Store(&metastore.Seen{At: time.Now(), Took: time.Since(began), Err: err})
}

// LastRead returns no result: a read of the file costs no more than a stored result.
func (s *Store) LastRead() (metastore.Seen, bool) { return metastore.Seen{}, false }

// LastWrite returns the result of the last change.
func (s *Store) LastWrite() (metastore.Seen, bool) {
	if seen := s.writes.last.Load(); seen != nil {
		return *seen, true
	}
	return metastore.Seen{}, false
}

// CheckWrites commits a small change. It fails if the disk is full, or if this process may not write to the file.
func (s *Store) CheckWrites(ctx context.Context) error {
	return s.update(ctx, "metastore/sqlite.CheckWrites", "", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx,
			`INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE
				SET value = excluded.value`, metastore.SettingProbe, time.Now().UTC().Format(time.RFC3339Nano))
		return err
	})
}
