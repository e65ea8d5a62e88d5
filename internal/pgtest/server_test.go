package pgtest_test

import (
	"context"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }

// count returns how many rows a table has.
func count(t *testing.T, uri, table string, timeout time.Duration) (n int, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, uri)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(context.Background()) }() // the connection is not used again
	return n, conn.QueryRow(ctx, "SELECT count(*) FROM "+table).Scan(&n)
}

// TestDatabasesAreSeparate: two databases of a test share no table.
func TestDatabasesAreSeparate(t *testing.T) {
	a, b := pgtest.Database(t), pgtest.Database(t)
	u, err := url.Parse(a)
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Shared(t).Exec(t, strings.TrimPrefix(u.Path, "/"), "CREATE TABLE x (n int)")
	if n, err := count(t, a, "x", time.Minute); err != nil || n != 0 {
		t.Errorf("%d rows, %v", n, err)
	}
	if _, err := count(t, b, "x", time.Minute); err == nil {
		t.Error("two databases share a table")
	}
}

// TestCopy checks that a copy has the rows of the database, and that it shares none of its later rows.
func TestCopy(t *testing.T) {
	s, from := pgtest.Shared(t), pgtest.Database(t)
	name := from[strings.LastIndex(from, "/")+1 : strings.Index(from, "?")]
	s.Exec(t, name, "CREATE TABLE x (n int)", "INSERT INTO x VALUES (1)")
	copied := s.Copy(t, name)
	s.Exec(t, name, "INSERT INTO x VALUES (2)")
	for uri, want := range map[string]int{from: 2, copied: 1} {
		if n, err := count(t, uri, "x", time.Minute); err != nil || n != want {
			t.Errorf("%s has %d rows, want %d (%v)", uri, n, want, err)
		}
	}
}

// TestServerRestarts: a server that was killed or stopped starts again with its data.
func TestServerRestarts(t *testing.T) {
	s := pgtest.Start(t)
	uri := s.Database(t)
	s.Exec(t, "test1", "CREATE TABLE x (n int)")
	for i, end := range []func(testing.TB){s.Kill, s.Stop, s.Kill} {
		s.Exec(t, "test1", "INSERT INTO x VALUES (1)")
		end(t)
		if _, err := count(t, uri, "x", time.Minute); err == nil {
			t.Fatal("the server answers after it has ended")
		}
		s.Start(t)
		if n, err := count(t, uri, "x", time.Minute); err != nil || n != i+1 {
			t.Fatalf("%d rows after %d restarts (%v)", n, i+1, err)
		}
	}
	s.Pause()
	if _, err := count(t, uri, "x", 200*time.Millisecond); err == nil {
		t.Error("the server answers while it is paused")
	}
	s.Resume()
	if _, err := count(t, uri, "x", time.Minute); err != nil {
		t.Error(err)
	}
}
