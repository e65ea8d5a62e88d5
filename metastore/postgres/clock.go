package postgres

import (
	"context"
	"time"

	"claviger/metastore"
)

// clockMillis is the database server's clock in SQL, as times are stored.
const clockMillis = `(extract(epoch FROM clock_timestamp()) * 1000)::bigint`

// Clocks compares this host's clock with the database server's.
func (s *Store) Clocks(ctx context.Context) (c metastore.Clocks, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Clocks", "", func(ctx context.Context) error {
		var there int64
		asked := time.Now()
		if err := s.db.Pool().QueryRow(ctx, `SELECT `+clockMillis).Scan(&there); err != nil {
			return err
		}
		// The store's clock is read to the millisecond.
		c = metastore.Compare(asked.Truncate(time.Millisecond), when(there), time.Now(), "PostgreSQL's")
		return nil
	})
	return c, err
}
