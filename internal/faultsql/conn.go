package faultsql

import (
	"context"
	"database/sql/driver"
	"errors"
)

// Open implements driver.Driver.
func (d *Driver) Open(name string) (driver.Conn, error) {
	if err := d.before(Connect, ""); err != nil {
		return nil, err
	}
	c, err := d.wrapped.Open(name)
	if err != nil {
		return nil, err
	}
	d.count(1, 0)
	return &conn{c, d}, nil
}

// conn wraps a connection. Rollback and ResetSession never fail, because database/sql ignores their errors.
type conn struct {
	driver.Conn
	d *Driver
}

func (c *conn) Close() error {
	c.d.count(-1, 0)
	err := c.d.before(Close, "")
	return errors.Join(err, c.Conn.Close())
}

func (c *conn) ResetSession(ctx context.Context) error {
	return c.Conn.(driver.SessionResetter).ResetSession(ctx)
}

func (c *conn) IsValid() bool { return c.Conn.(driver.Validator).IsValid() }

func (c *conn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	if err := c.d.before(Begin, ""); err != nil {
		return nil, err
	}
	t, err := c.Conn.(driver.ConnBeginTx).BeginTx(ctx, o)
	if err != nil {
		return nil, err
	}
	return &tx{t, c.d}, nil
}

func (c *conn) PrepareContext(ctx context.Context, statement string) (driver.Stmt, error) {
	if err := c.d.before(Prepare, statement); err != nil {
		return nil, err
	}
	s, err := c.Conn.(driver.ConnPrepareContext).PrepareContext(ctx, statement)
	if err != nil {
		return nil, err
	}
	c.d.count(0, 1)
	return &stmt{Stmt: s, d: c.d, statement: statement}, nil
}

func (c *conn) ExecContext(ctx context.Context, statement string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.d.before(Exec, statement); err != nil {
		return nil, err
	}
	r, err := c.Conn.(driver.ExecerContext).ExecContext(ctx, statement, args)
	return c.d.result(r, err, statement)
}

func (c *conn) QueryContext(ctx context.Context, statement string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.d.before(Query, statement); err != nil {
		return nil, err
	}
	r, err := c.Conn.(driver.QueryerContext).QueryContext(ctx, statement, args)
	return c.d.rows(r, err, statement)
}

// tx wraps a transaction.
type tx struct {
	driver.Tx
	d *Driver
}

// Commit rolls the transaction back if it must fail.
func (t *tx) Commit() error {
	if err := t.d.before(Commit, ""); err != nil {
		_ = t.Rollback() // the injected error is the result
		return err
	}
	return t.Tx.Commit()
}

// stmt wraps a prepared statement.
type stmt struct {
	driver.Stmt
	d         *Driver
	statement string
}

func (s *stmt) Close() error {
	s.d.count(0, -1)
	return s.Stmt.Close()
}

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if err := s.d.before(Exec, s.statement); err != nil {
		return nil, err
	}
	r, err := s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args)
	return s.d.result(r, err, s.statement)
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.d.before(Query, s.statement); err != nil {
		return nil, err
	}
	r, err := s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
	return s.d.rows(r, err, s.statement)
}

// result wraps the result of a statement.
type result struct {
	driver.Result
	d         *Driver
	statement string
}

func (d *Driver) result(r driver.Result, err error, statement string) (driver.Result, error) {
	if err != nil {
		return nil, err
	}
	return &result{r, d, statement}, nil
}

func (r *result) LastInsertId() (int64, error) {
	if err := r.d.before(InsertID, r.statement); err != nil {
		return 0, err
	}
	return r.Result.LastInsertId()
}

func (r *result) RowsAffected() (int64, error) {
	if err := r.d.before(Affected, r.statement); err != nil {
		return 0, err
	}
	return r.Result.RowsAffected()
}

// rows wraps the rows of a query.
type rows struct {
	driver.Rows
	d         *Driver
	statement string
}

func (d *Driver) rows(r driver.Rows, err error, statement string) (driver.Rows, error) {
	if err != nil {
		return nil, err
	}
	d.count(0, 1)
	return &rows{r, d, statement}, nil
}

func (r *rows) Close() error {
	r.d.count(0, -1)
	return r.Rows.Close()
}

// unscannable is a value that no Scan converts.
type unscannable struct{}

func (r *rows) Next(dest []driver.Value) error {
	if err := r.d.before(Next, r.statement); err != nil {
		return err
	}
	if err := r.Rows.Next(dest); err != nil {
		return err
	}
	if err := r.d.before(Scan, r.statement); err != nil {
		for i := range dest {
			dest[i] = unscannable{}
		}
	}
	return nil
}
