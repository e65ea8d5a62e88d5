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

// writes is what changes saw last.
type writes struct {
	last atomic.Pointer[metastore.Seen]
}

// note remembers how a change ended, unless that tells of the key alone.
func (w *writes) note(began time.Time, err error) {
	if err != nil && !sqlitedb.Reported(err) && claviger.AnswerOf(err) == "" { // that of a file which was replaced
		return
	}
	w.last.Store(&metastore.Seen{At: time.Now(), Took: time.Since(began), Err: err})
}

// LastRead tells nothing: to ask the file costs no more.
func (s *Store) LastRead() (metastore.Seen, bool) { return metastore.Seen{}, false }

// LastWrite is what changes of the store saw last.
func (s *Store) LastWrite() (metastore.Seen, bool) {
	if seen := s.writes.last.Load(); seen != nil {
		return *seen, true
	}
	return metastore.Seen{}, false
}

// CheckWrites commits a small change, which takes room on the disk and a file that may
// be written.
func (s *Store) CheckWrites(ctx context.Context) error {
	return s.update(ctx, "metastore/sqlite.CheckWrites", "", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx,
			`INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE
				SET value = excluded.value`, metastore.SettingProbe, time.Now().UTC().Format(time.RFC3339Nano))
		return err
	})
}
