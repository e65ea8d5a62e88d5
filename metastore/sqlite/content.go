package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"claviger"
	"claviger/metastore"
)

var _ metastore.Movable = (*Store)(nil)

// Content reads the whole content, see metastore.Movable.
func (s *Store) Content(ctx context.Context) (*metastore.Content, error) {
	const op = "metastore/sqlite.Content"
	if err := s.usable(op); err != nil {
		return nil, err
	}
	tx, err := s.db.Reader.BeginTx(ctx, nil) // so that all tables are read at one moment
	if err != nil {
		return nil, s.fail(op, "", err)
	}
	defer func() { _ = tx.Rollback() }()
	c, err := contentOf(ctx, tx)
	if err != nil {
		return nil, s.fail(op, "", err)
	}
	return c, s.usable(op)
}

func contentOf(ctx context.Context, tx *sql.Tx) (*metastore.Content, error) {
	c := &metastore.Content{Rows: map[string][][]any{}}
	for _, t := range metastore.Tables {
		columns := strings.Join(t.Columns, ", ")
		if t.Name == "intent" { // see decodeRefs
			columns = strings.Replace(columns, "objects", "iif(objects = '[]', ids, objects)", 1)
		}
		rows, err := collect(ctx, tx, func(r *sql.Rows) ([]any, error) {
			row := make([]any, len(t.Columns))
			to := make([]any, len(row))
			for i := range row {
				to[i] = &row[i]
			}
			err := r.Scan(to...)
			for i, v := range row {
				if b, bytes := v.([]byte); (bytes || v == nil) && len(b) == 0 && t.Columns[i] != "description" {
					row[i] = []byte{} // the driver returns an empty blob as nil; only description can be NULL
				}
			}
			return row, err
		}, fmt.Sprintf("SELECT %s FROM %s ORDER BY %s", columns, t.Name, t.Order))
		if err != nil {
			return nil, fmt.Errorf("table %s: %w", t.Name, err)
		}
		c.Rows[t.Name] = rows
	}
	for counter, next := range map[string]*int64{"token": &c.NextToken, "master key": &c.NextMasterKey} {
		if err := tx.QueryRowContext(ctx, `SELECT next FROM counter WHERE name = ?`, counter).Scan(next); err != nil {
			return nil, err
		}
	}
	c.RemoveOwnSettings()
	return c, nil
}

// Fill writes the content of another store into this one, which must be empty.
func (s *Store) Fill(ctx context.Context, c *metastore.Content) error {
	const op = "metastore/sqlite.Fill"
	return s.update(ctx, op, "", func(tx *sql.Tx) error {
		has, err := contentOf(ctx, tx)
		if err != nil {
			return err
		}
		if !has.Empty() {
			return claviger.Errorf(op, claviger.Invalid, "", "metastore %s is not empty", s.URI())
		}
		for _, t := range metastore.Tables {
			// nolint:gosec // the names are constants of this package
			insert := fmt.Sprintf("INSERT OR REPLACE INTO %s (%s) VALUES (?%s)", t.Name, strings.Join(t.Columns, ", "),
				strings.Repeat(", ?", len(t.Columns)-1))
			for _, row := range c.Rows[t.Name] {
				if _, err := tx.ExecContext(ctx, insert, row...); err != nil {
					return fmt.Errorf("table %s: %w", t.Name, err)
				}
			}
		}
		for counter, next := range map[string]int64{"token": c.NextToken, "master key": c.NextMasterKey} {
			if _, err := tx.ExecContext(ctx, `UPDATE counter SET next = max(next, ?) WHERE name = ?`, next,
				counter); err != nil {
				return err
			}
		}
		return nil
	})
}
