package postgres

import (
	"context"
	"time"

	"claviger/metastore"
)

// clockMillis is an SQL expression: the time of the database server's clock, in the form in which times are stored.
const clockMillis = `(extract(epoch FROM clock_timestamp()) * 1000)::bigint`

// Clocks compares this host's clock with the database server's.
func (s *Store) Clocks(ctx context.Context) (c metastore.Clocks, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Clocks", "", func(ctx context.Context) error {
		var storeTime int64
		sent := time.Now()
		if err := s.db.Pool().QueryRow(ctx, `SELECT `+clockMillis).Scan(&storeTime); err != nil {
			return err
		}
		// Both times need the same precision, and the store's clock has milliseconds.
		c = metastore.Compare(sent.Truncate(time.Millisecond), fromMillis(storeTime), time.Now(), "PostgreSQL's")
		return nil
	})
	return c, err
}
