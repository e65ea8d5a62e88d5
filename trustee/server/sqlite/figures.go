package sqlite

import (
	"context"
	"database/sql"
)

// Deposits counts the live deposits, and the deleted deposits that are not purged.
func (s *Store) Deposits(ctx context.Context) (live, deleted int64, err error) {
	const op = "trustee/server/sqlite.Deposits"
	err = s.db.Reader.QueryRowContext(ctx, "SELECT count(*) FILTER (WHERE deleted IS NULL), count(deleted) FROM "+
		"deposit").Scan(&live, &deleted)
	if err != nil {
		return 0, 0, s.fail(op, "", err)
	}
	return live, deleted, nil
}

// Wrapped calls f for each live deposit that a Keeper has wrapped, with the first bytes of its
// content.
func (s *Store) Wrapped(ctx context.Context, bytes int, f func(uuid string, head []byte)) error {
	err := eachRow(ctx, s.db.Reader, "SELECT uuid, substr(content, 1, ?) FROM deposit WHERE wrapped AND deleted IS "+
		"NULL", []any{bytes}, func(rows *sql.Rows) error {
		var uuid string
		var head []byte
		err := rows.Scan(&uuid, &head)
		f(uuid, head)
		return err
	})
	if err != nil {
		return s.fail("trustee/server/sqlite.Wrapped", "", err)
	}
	return nil
}

// Failures returns how often the store failed. A refusal is not a failure.
func (s *Store) Failures() int64 { return s.failures.Load() }
