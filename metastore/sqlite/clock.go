package sqlite

import (
	"context"
	"time"

	"claviger/metastore"
)

// newestTime is, in SQL, the newest of the times that were written by the clock. The tables
// that grow with the keys have an index for it.
const newestTime = `max(coalesce((SELECT max(last) FROM version_use), 0),
	coalesce((SELECT max(since) FROM deleted_key), 0),
	coalesce((SELECT max(last) FROM source_use), 0), coalesce((SELECT max(at) FROM journal), 0))`

// Clocks compares this host's clock with the newest time in the store, which it cannot be
// behind unless it is, or was, wrong. That it is ahead does not show.
func (s *Store) Clocks(ctx context.Context) (c metastore.Clocks, err error) {
	const op = "sqlite.Clocks"
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
