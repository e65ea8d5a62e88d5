package sqlite

import (
	"context"
	"database/sql"
	"time"

	"claviger/metastore"
)

// newestTime is, in SQL, the newest of the times that were written by the clock. The tables
// that grow with the keys have an index for it. EndFuture changes the same ones.
const newestTime = `max(coalesce((SELECT max(last) FROM version_use), 0),
	coalesce((SELECT max(since) FROM deleted_key), 0),
	coalesce((SELECT max(last) FROM source_use), 0), coalesce((SELECT max(at) FROM journal), 0))`

// Clocks compares this host's clock with the newest time in the store, which it cannot be
// behind unless it is, or was, wrong. That it is ahead does not show.
func (s *Store) Clocks(ctx context.Context) (c metastore.Clocks, err error) {
	const op = "metastore/sqlite.Clocks"
	if err := s.usable(op); err != nil {
		return c, err
	}
	var newest int64
	if err := s.db.Reader.QueryRowContext(ctx, `SELECT `+newestTime).Scan(&newest); err != nil {
		return c, s.fail(op, "", err)
	}
	now := time.Now()
	there := now
	if at := when(newest); at.After(now) {
		there = at
	}
	c = metastore.Compare(now, there, now, "the newest time in the metastore")
	c.Bound = true
	return c, nil
}

// EndFuture sets the times that the clock wrote into the store and that have not come yet to
// now, and returns how many there were. Each of them was written before, so now is not too
// early, unless this host's clock is behind.
func (s *Store) EndFuture(ctx context.Context) (n int64, err error) {
	err = s.update(ctx, "metastore/sqlite.EndFuture", "", func(tx *sql.Tx) error {
		to := millis(now())
		for _, statement := range []string{
			`UPDATE version_use SET last = ?1 WHERE last > ?1`,
			`UPDATE deleted_key SET since = ?1 WHERE since > ?1`,
			`UPDATE source_use SET last = ?1 WHERE last > ?1`,
			`UPDATE journal SET at = ?1 WHERE at > ?1`,
			`UPDATE setting SET value = CAST(?1 AS TEXT) WHERE name = '` + metastore.SettingLastUsesSince +
				`' AND CAST(value AS INTEGER) > ?1`,
		} {
			r, err := tx.ExecContext(ctx, statement, to)
			if err != nil {
				return err
			}
			changed, err := r.RowsAffected()
			if err != nil {
				return err
			}
			n += changed
		}
		return nil
	})
	return n, err
}
