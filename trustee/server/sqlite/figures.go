package sqlite

import "context"

// Deposits counts those that are live and those that are deleted and can come back.
func (s *Store) Deposits(ctx context.Context) (live, deleted int64, err error) {
	const op = "sqlite.Deposits"
	err = s.read.QueryRowContext(ctx, "SELECT count(*) FILTER (WHERE deleted IS NULL), count(deleted) FROM deposit").Scan(&live, &deleted)
	if err != nil {
		return 0, 0, s.fail(op, "", err)
	}
	return live, deleted, nil
}

// Failures is how often the store could not do what it was asked for, as against
// refusing it.
func (s *Store) Failures() int64 { return s.failures.Load() }
