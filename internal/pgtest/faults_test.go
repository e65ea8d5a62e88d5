package pgtest_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"claviger/internal/pgtest"
)

// TestFaults checks which calls fail, and that a transaction of which a statement or the commit fails changes nothing.
func TestFaults(t *testing.T) {
	server := pgtest.Shared(t)
	f := pgtest.NewFaults(t, server.Addr)
	f.Skip = func(statement string, row bool) bool { return statement == "SELECT 'skipped'" }
	uri := strings.Replace(server.Database(t), server.Addr, f.Addr, 1)
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	var failed []string
	for fault, err := range f.EachFails(func() error {
		if conn.IsClosed() { // after a failed commit
			if conn, err = pgx.Connect(t.Context(), uri); err != nil {
				return err
			}
		}
		return useTable(t, conn)
	}) {
		if (err == nil) != (fault.Number == 0) {
			t.Errorf("%s: the error is %v", fault, err)
		}
		if fault.Number > 0 {
			failed = append(failed, fault.String())
		}
	}
	want := []string{"call 1 (the statement begin)", "call 2 (the statement CREATE TABLE t (x text))",
		"call 3 (the statement SELECT 'a' || $1)", "call 4 (a row of SELECT 'a' || $1)",
		"call 5 (the statement commit)"}
	if !slices.Equal(failed, want) {
		t.Errorf("the faults are %q, want %q", failed, want)
	}
	called := 0
	for call, err := range f.BeforeEach(func() { called++ }, func() error {
		_, err := conn.Exec(t.Context(), "SELECT 'a' || $1", "b")
		return err
	}) {
		if err != nil {
			t.Errorf("before %s: %v", call, err)
		}
	}
	if called != 2 { // the statement and its row
		t.Errorf("the hook was called %d times", called)
	}
}

// useTable makes a table, which must not exist, and queries the server.
func useTable(t *testing.T, conn *pgx.Conn) (err error) {
	ctx := t.Context()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err := tx.Rollback(ctx); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
			t.Log(err)
		}
	}()
	if _, err := tx.Exec(ctx, "CREATE TABLE t (x text)"); err != nil {
		return err
	}
	var text string
	if err := tx.QueryRow(ctx, "SELECT 'skipped'").Scan(&text); err != nil {
		return err
	}
	if err := tx.QueryRow(ctx, "SELECT 'a' || $1", "b").Scan(&text); err != nil {
		return err
	}
	return tx.Commit(ctx)
}
