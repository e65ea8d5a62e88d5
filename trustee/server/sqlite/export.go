package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"time"

	"claviger"
	"claviger/trustee/server"
)

var errEmptyRecord = errors.New("an empty record")

// Export calls f with all records that the store held at one moment.
func (s *Store) Export(ctx context.Context, f func(server.Record) error) error {
	return s.snapshot(ctx, "trustee/server/sqlite.Export", func(tx *sql.Tx) error { return export(ctx, tx, f) })
}

func (s *Store) snapshot(ctx context.Context, op string, f func(tx *sql.Tx) error) error {
	err := s.db.Snapshot(ctx, func(_ context.Context, tx *sql.Tx) error { return f(tx) })
	if err != nil {
		return s.fail(op, "", err)
	}
	return nil
}

func export(ctx context.Context, tx *sql.Tx, f func(server.Record) error) error {
	for _, table := range []struct {
		query string
		scan  func(*sql.Rows) (server.Record, error)
	}{
		{selectOrg + "ORDER BY name", func(rows *sql.Rows) (server.Record, error) {
			o, err := scanOrg(rows)
			return server.Record{Org: &o}, err
		}},
		{selectClient + "ORDER BY fingerprint", func(rows *sql.Rows) (server.Record, error) {
			c, err := scanClient(rows)
			return server.Record{Client: &c}, err
		}},
		{selectDeposit + "content FROM deposit ORDER BY uuid", func(rows *sql.Rows) (server.Record, error) {
			r, err := scanDeposit(rows)
			return server.Record{Deposit: &r}, err
		}},
		{"SELECT digest, until FROM once ORDER BY digest", func(rows *sql.Rows) (server.Record, error) {
			var o server.Once
			var until int64
			err := rows.Scan(&o.Digest, &until)
			o.Until = time.UnixMilli(until)
			return server.Record{Once: &o}, err
		}},
	} {
		err := eachRow(ctx, tx, table.query, nil, func(rows *sql.Rows) error {
			r, err := table.scan(rows)
			if err != nil {
				return err
			}
			return f(r)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Import replaces all records of the store. If the server is one of two, a new log begins, so the peer
// needs a whole copy. The peer loses changes only if an operator agrees.
func (s *Store) Import(ctx context.Context, next func() (server.Record, error)) error {
	const op = "trustee/server/sqlite.Import"
	return s.change(ctx, op, "", func(ctx context.Context, tx *sql.Tx) error {
		st, err := readPosition(ctx, tx)
		if err != nil {
			return err
		}
		if err := replace(ctx, tx, op, next); err != nil || st.Role == server.RoleSingle {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM change"); err != nil {
			return err
		}
		st.Head = st.Head.NewBranch(st.Epoch)
		st.Unshared = st.Head.Seq
		return writePosition(ctx, tx, &st)
	})
}

func replace(ctx context.Context, tx *sql.Tx, op string, next func() (server.Record, error)) error {
	for _, table := range []string{"once", "deposit", "client", "org"} {
		if _, err := tx.ExecContext(ctx, "DELETE FROM "+table); err != nil { //nolint:gosec // one of ours
			return err
		}
	}
	for n := 1; ; n++ {
		r, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := insert(ctx, tx, r); unfit(err) {
			return claviger.Errorf(op, claviger.Invalid, "", "record %d cannot be imported: %w", n, err)
		} else if err != nil {
			return err
		}
	}
}
