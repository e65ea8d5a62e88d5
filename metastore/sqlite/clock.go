package sqlite

import (
	"context"
	"database/sql"
	"time"

	"claviger/metastore"
)

// newestTime is an SQL expression: the newest time that a clock has written into the store. The tables that grow with
// use have an index for it. ResetFutureTimes changes the same columns.
const newestTime = `max(coalesce((SELECT max(last) FROM version_use), 0),
	coalesce((SELECT max(since) FROM deleted_key), 0),
	coalesce((SELECT max(last) FROM source_use), 0), coalesce((SELECT max(at) FROM journal), 0))`

// Clocks compares this host's clock with the newest time in the store. If the clock is behind that time, it is wrong
// now, or it was wrong when the time was written. Clocks cannot detect a clock that is ahead.
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
	storeTime := now
	if at := fromMillis(newest); at.After(now) {
		storeTime = at
	}
	c = metastore.Compare(now, storeTime, now, "the newest time in the metastore")
	c.LowerBound = true
	return c, nil
}

// ResetFutureTimes sets all times in the store that are in the future to the current time, and returns their number.
// They were written in the past, so the current time is not too early, unless this host's clock is behind.
func (s *Store) ResetFutureTimes(ctx context.Context) (n int64, err error) {
	err = s.update(ctx, "metastore/sqlite.ResetFutureTimes", "", func(tx *sql.Tx) error {
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
