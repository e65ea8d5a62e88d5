package faultsql_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"claviger/internal/faultsql"
)

// TestEachFails checks which calls fail, that each error is the injected one, and that the driver counts what is open.
func TestEachFails(t *testing.T) {
	d := faultsql.Register("faulty", "sqlite")
	path := filepath.Join(t.TempDir(), "x.db")
	var got []string
	for fault, err := range d.EachFails(func() error { return use(t.Context(), path) }) {
		if fault.Number != 0 {
			got = append(got, fault.Call)
		}
		if (err == nil) != (fault.Number == 0) || err != nil && fault.Call != faultsql.Scan &&
			!errors.Is(err, faultsql.ErrInjected) {
			t.Errorf("%s: the error is %v", fault, err)
		}
		if conns, results := d.Unclosed(); conns != 0 || results != 0 {
			t.Errorf("%s: %d connections and %d results are open", fault, conns, results)
		}
	}
	want := []string{faultsql.Connect, faultsql.Begin, faultsql.Exec, faultsql.Exec, faultsql.InsertID,
		faultsql.Affected, faultsql.Prepare, faultsql.Query, faultsql.Next, faultsql.Scan, faultsql.Next,
		faultsql.Commit, faultsql.Close}
	if !slices.Equal(got, want) {
		t.Errorf("the calls are %q, want %q", got, want)
	}
	called, rounds := 0, 0
	for fault, err := range d.BeforeEach(func() { called++ }, func() error { return use(t.Context(), path) }) {
		rounds++
		if err != nil {
			t.Errorf("before %s: %v", fault, err)
		}
	}
	if called != len(want) || rounds != len(want)+1 {
		t.Errorf("%d calls of the hook in %d rounds", called, rounds)
	}
}

// use makes each kind of call once, except Exec and Next, which it makes twice.
func use(ctx context.Context, path string) (err error) {
	db, err := sql.Open("faulty", path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS t (x)`); err != nil {
		return err
	}
	r, err := tx.ExecContext(ctx, `INSERT INTO t VALUES ('text')`)
	if err != nil {
		return err
	}
	if _, err := r.LastInsertId(); err != nil {
		return err
	}
	if _, err := r.RowsAffected(); err != nil {
		return err
	}
	statement, err := tx.PrepareContext(ctx, `SELECT x FROM t LIMIT 1`)
	if err != nil {
		return err
	}
	defer func() { _ = statement.Close() }()
	rows, err := statement.QueryContext(ctx)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return tx.Commit()
}
