package pgdb_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/pgdb"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }

// TestPasswordIsRefused checks that Open refuses a URI with a password, also a misspelt or misplaced one, before it
// connects, and that the error does not repeat the password.
func TestPasswordIsRefused(t *testing.T) {
	for _, uri := range []string{
		"postgresql://u:hunter2@127.0.0.1:1/db", "postgresql://u%3Ahunter2@127.0.0.1:1/db",
		"postgresql://127.0.0.1:1/db?user=u&PassWord=hunter2",
		"postgresql://u@127.0.0.1:1/db?passwd%3Dhunter2", "postgresql://u@127.0.0.1:1/db?passwd%3Dh%75nter2",
		"postgresql://u@127.0.0.1:1/db?pw=hunter2",
		"postgresql://u@127.0.0.1:1/db?options=-c%20password%3Dhunter2",
		"postgresql://u@127.0.0.1:1/db;password=hunter2",
		"postgresql://u@127.0.0.1:1/db?sslmode=passwd%3Dhunter2",
		"postgresql://u@127.0.0.1:1/db?port=1&sslpassword=hunter2",
		"postgresql://u@hunter2@127.0.0.1:1/db?password=x",
	} {
		db, err := pgdb.Open(t.Context(), pgdb.Config{URI: uri, What: "test's store"})
		if err == nil {
			db.Close()
		}
		if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "holds a password") ||
			strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", uri, err)
		}
	}
	for _, uri := range []string{
		"postgresql://u@127.0.0.1:1,127.0.0.2:1/db?sslmode=disable&passfile=/etc/claviger/pgpass&application_name=x",
		"postgresql:///db?user=u&host=/run/postgresql",
	} {
		db, err := pgdb.Open(t.Context(), pgdb.Config{URI: uri, What: "test's store"})
		if err != nil {
			t.Errorf("%s: %v", uri, err)
			continue
		}
		db.Close()
	}
}

// TestMisplacedPassword checks that Open refuses a URI with too many parts before it connects or looks up a host, and
// that the error repeats no part of the URI, because any part may be a password.
func TestMisplacedPassword(t *testing.T) {
	for _, uri := range []string{
		"postgresql://u@hunter2@127.0.0.1:1/db", "postgresql://u/hunter2@127.0.0.1:1/db",
		"postgresql://u/hunter2@127.0.0.1",
		"postgresql://u/hunter2/127.0.0.1/db", "postgresql://u@127.0.0.1:1/db/hunter2",
		"postgresql://u#hunter2@127.0.0.1:1/db",
		"postgresql://u?hunter2@127.0.0.1:1/db", "postgresql://u@127.0.0.1:1/db?hunter2",
		"postgresql://u@127.0.0.1:1/db?hunter2@h=1",
		"postgresql://u@127.0.0.1:1/db?sslmode=disable#hunter2", "postgres://u@127.0.0.1:1/db@hunter2",
	} {
		db, err := pgdb.Open(t.Context(), pgdb.Config{URI: uri, What: "test's store"})
		if err == nil {
			db.Close()
		}
		if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "is not of the form "+
			"postgresql://USER@HOST") ||
			strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "127.0.0.1") {
			t.Errorf("%s: %v", uri, err)
		}
	}
	for _, uri := range []string{
		"postgresql://u%40server@127.0.0.1:1/d%2Fb%40c%23?sslmode=disable",
		"postgresql://u@127.0.0.1:1/db?passfile=/etc/a@b&sslmode=disable",
		"postgresql://u@127.0.0.1:1/db?", "postgresql://u@[::1]:1/db",
	} {
		db, err := pgdb.Open(t.Context(), pgdb.Config{URI: uri, What: "test's store"})
		if err != nil {
			t.Errorf("%s: %v", uri, err)
			continue
		}
		db.Close()
	}
}

// TestNoStandby checks that Update fails if a commit waits for a standby that does not exist, although the commit is on
// the primary's disk.
func TestNoStandby(t *testing.T) {
	ctx := t.Context()
	pg := pgtest.StartReplicated(t)
	uri := pg.Database(t)
	pg.Exec(t, "test1", "CREATE TABLE x (n int)")
	db, err := pgdb.Open(ctx, pgdb.Config{URI: uri, What: "test's store", Where: "the property",
		UnknownOutcome: "look at x", RetryTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	insert := func() error {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		return db.Update(ctx, "test.insert", "", pgx.ReadCommitted, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO x VALUES (1)")
			return err
		})
	}
	if err := insert(); err != nil {
		t.Fatal(err)
	}
	setting := func(statement string) {
		t.Helper()
		pg.Exec(t, "postgres", statement)
		pg.Stop(t) // nothing reports when a reload has taken effect
		pg.Start(t)
	}
	setting("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	err = insert()
	if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "look at x") {
		t.Errorf("a commit without its standby: %v", err)
	}
	setting("ALTER SYSTEM RESET synchronous_standby_names")
	if err := insert(); err != nil {
		t.Error(err)
	}
}

// TestStandbysBehind checks that a standby which has reported no position counts as behind, and that no position is
// demanded that a standby can report only after another change.
func TestStandbysBehind(t *testing.T) {
	ctx := t.Context()
	pg := pgtest.StartReplicated(t)
	uri := pg.Database(t)
	db, err := pgdb.Open(ctx, pgdb.Config{URI: uri, What: "test's store"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	pg.Exec(t, "postgres", `SELECT pg_switch_wal()`)
	written, err := db.Written(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	var flushed bool
	if err := db.Pool().QueryRow(ctx, `SELECT $1::pg_lsn <= pg_current_wal_flush_lsn()`, written).
		Scan(&flushed); err != nil || !flushed {
		t.Errorf("the server itself has not reached the position %s (%v)", written, err)
	}
	standby, err := pgconn.Connect(ctx, uri+"&replication=true")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := db.StandbysBehind(ctx, "test", written); n != 1 || err != nil {
		t.Errorf("after a standby has connected, %d are behind (%v)", n, err)
	}
	if err := standby.Close(ctx); err != nil {
		t.Error(err)
	}
	// The session ends a moment after its connection.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		n, err := db.StandbysBehind(ctx, "test", written)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("after the standby has gone, %d are behind (%v)", n, err)
		}
		if n == 0 {
			return
		}
	}
}

// TestPasswordChanges checks that the next connection, in the pool or outside it, uses a new password from the password
// file, and that a missing file does no harm.
func TestPasswordChanges(t *testing.T) {
	ctx := t.Context()
	pg := pgtest.Start(t)
	pg.Exec(t, "postgres", "DROP ROLE IF EXISTS guarded", "CREATE ROLE guarded LOGIN PASSWORD 'first'")
	file := filepath.Join(t.TempDir(), "pgpass")
	write := func(password string) {
		t.Helper()
		if err := os.WriteFile(file, []byte("*:*:*:guarded:"+password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	db, err := pgdb.Open(ctx, pgdb.Config{URI: pg.URI("guarded", "postgres") + "&passfile=" + file,
		What: "test's store", Where: "the property", RetryTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	connect := func() error {
		db.Pool().Reset()
		outside, err := pgx.ConnectConfig(ctx, db.Conn())
		if err == nil {
			err = outside.Close(ctx)
		}
		return errors.Join(err, db.Pool().Ping(ctx))
	}
	if err := connect(); err != nil {
		t.Fatal(err)
	}
	pg.Exec(t, "postgres", "ALTER ROLE guarded PASSWORD 'second'")
	if err := connect(); pgdb.Code(err) != "28P01" {
		t.Errorf("with the old password: %v", err)
	}
	write("second")
	if err := connect(); err != nil {
		t.Errorf("with the new password: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := connect(); err != nil {
		t.Errorf("without the file, after it was read before: %v", err)
	}
}
