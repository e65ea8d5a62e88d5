package postgres_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/metastore/postgres"
)

// writesTest is a store in a database that refuses changes at times.
type writesTest struct {
	s      *postgres.Store
	server *pgtest.Server
}

func newWritesTest(t *testing.T) *writesTest {
	t.Helper()
	server := pgtest.StartReplicated(t)
	w := &writesTest{openConfig(t, postgres.Config{URI: server.Database(t), Property: "the.property",
		RetryTimeout: time.Second}), server}
	if err := w.s.CheckWrites(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Insert(t.Context(), key("k", "aa")); err != nil {
		t.Fatal(err)
	}
	return w
}

// reads demands that the store can read. when says under which condition.
func (w *writesTest) reads(t *testing.T, when string) {
	t.Helper()
	if keys, err := w.s.Get(t.Context(), "k"); err != nil || keys[0] == nil {
		t.Errorf("%s, a read: %v, %v", when, keys, err)
	}
	if last, ok := w.s.LastRead(); !ok || last.Err != nil {
		t.Errorf("%s, the last read: %+v, %t", when, last, ok)
	}
}

// probeRefused demands that CheckWrites fails with that text.
func (w *writesTest) probeRefused(t *testing.T, when, text string) {
	t.Helper()
	if err := w.s.CheckWrites(t.Context()); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), text) {
		t.Errorf("%s, a probe: %v", when, err)
	}
}

// changeRefused demands that a change fails with that text, while reads still work.
func (w *writesTest) changeRefused(t *testing.T, when, text string) {
	t.Helper()
	if err := w.s.Insert(t.Context(), key("never", "bb")); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), text) {
		t.Errorf("%s, a change: %v", when, err)
	}
	if last, ok := w.s.LastWrite(); !ok || last.Err == nil || !strings.Contains(last.Err.Error(), text) {
		t.Errorf("%s, the last change: %+v, %t", when, last, ok)
	}
	w.reads(t, when)
}

func (w *writesTest) works(t *testing.T, when string) {
	t.Helper()
	eventually(t, "a probe succeeds "+when, func() bool { return w.s.CheckWrites(t.Context()) == nil })
}

// TestCheckWrites checks that CheckWrites and LastWrite report a database that answers but refuses changes: it is
// read-only, has no room, or has no standby that commits wait for.
func TestCheckWrites(t *testing.T) {
	w := newWritesTest(t)
	if last, ok := w.s.LastWrite(); !ok || last.Err != nil || last.Took <= 0 || time.Since(last.At) > time.Minute {
		t.Errorf("LastWrite after a change: %+v, %t", last, ok)
	}
	t.Run("read-only", func(t *testing.T) { testReadOnlyServer(t, w) })
	t.Run("full disk", func(t *testing.T) { testFullDisk(t, w) })
	t.Run("no standby", func(t *testing.T) { testNoStandby(t, w) })
	t.Run("no table", func(t *testing.T) { testNoTable(t, w) })
}

func testReadOnlyServer(t *testing.T, w *writesTest) {
	w.server.Exec(t, "postgres", `ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`)
	eventually(t, "the server is read-only", func() bool { return w.s.CheckWrites(t.Context()) != nil })
	w.probeRefused(t, "read-only", "default_transaction_read_only")
	w.changeRefused(t, "read-only", "default_transaction_read_only")
	w.server.Exec(t, "postgres", `SET default_transaction_read_only = off`,
		`ALTER SYSTEM RESET default_transaction_read_only`, `SELECT pg_reload_conf()`)
	w.works(t, "after read-only ends")
}

// testFullDisk raises the error with which PostgreSQL reports that it cannot add pages to a table.
func testFullDisk(t *testing.T, w *writesTest) {
	w.server.Exec(t, "test1", `CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
		END $$`,
		`CREATE TRIGGER full_disk BEFORE INSERT ON change FOR EACH ROW EXECUTE FUNCTION full_disk()`)
	w.server.Exec(t, "test1", `CREATE FUNCTION full_setting() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF length(NEW.value) > 8192 THEN
				RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
			END IF;
			RETURN NEW;
		END $$`,
		`CREATE TRIGGER full_setting BEFORE INSERT OR UPDATE ON setting FOR EACH ROW EXECUTE FUNCTION full_setting()`)
	w.changeRefused(t, "a full disk", "disk is full")
	// A small probe would find room in the pages of the table. After a full disk, CheckWrites writes a large one.
	for range 2 {
		if err := w.s.CheckWrites(t.Context()); err == nil || !strings.Contains(err.Error(), "disk is full") {
			t.Errorf("a probe after a change that found the disk full: %v", err)
		}
	}
	w.server.Exec(t, "test1", `DROP TRIGGER full_disk ON change`, `ALTER TABLE setting DISABLE TRIGGER full_setting`)
	w.works(t, "after there is room again")
	w.server.Exec(t, "test1", `ALTER TABLE setting ENABLE TRIGGER full_setting`)
	w.works(t, "with a small value, because the large one was written")
	w.server.Exec(t, "test1", `DROP TRIGGER full_setting ON setting`)
}

func testNoStandby(t *testing.T, w *writesTest) {
	ctx := t.Context()
	w.server.Exec(t, "postgres", `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`)
	missing := `a commit waits for a standby (synchronous_standby_names is "nobody"), and of 0 ` +
		`standbys that follow none is one of these`
	// If a probe is committing while the setting changes, it waits until its time limit. Then the database counts as
	// away for a moment.
	eventually(t, "commits wait for a standby", func() bool {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := w.s.CheckWrites(ctx)
		return err != nil && strings.Contains(err.Error(), missing)
	})
	began := time.Now()
	w.probeRefused(t, "without a synchronous standby", missing)
	w.changeRefused(t, "without a synchronous standby", missing)
	// If the store did not remember the first wait, each of two changes would wait for five seconds.
	if took := time.Since(began); took > 9*time.Second {
		t.Errorf("a change that cannot be acknowledged was refused after %v", took)
	}
	if err := w.s.Replication(ctx); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("Replication without a synchronous standby: %v", err)
	}
	w.server.Exec(t, "postgres", `SET synchronous_commit = local`, `ALTER SYSTEM RESET synchronous_standby_names`,
		`SELECT pg_reload_conf()`)
	w.works(t, "after commits wait for no standby")
	for _, want := range []bool{true, false} {
		if err := w.s.Insert(ctx, key("after", "cc")); (err == nil) != want {
			t.Errorf("a change after commits wait for no standby: %v", err)
		}
	}
	if last, ok := w.s.LastWrite(); !ok || last.Err != nil {
		t.Errorf("the last change after an error of the caller: %+v, %t", last, ok)
	}
}

// testNoTable checks that Check and LastRead report a query that fails, although the server answers.
func testNoTable(t *testing.T, w *writesTest) {
	w.server.Exec(t, "test1", `ALTER TABLE ez_key RENAME TO moved`)
	if err := w.s.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "ez_key") {
		t.Errorf("without the table: %v", err)
	}
	if last, ok := w.s.LastRead(); !ok || last.Err == nil {
		t.Errorf("without the table: %+v, %t", last, ok)
	}
	w.server.Exec(t, "test1", `ALTER TABLE moved RENAME TO ez_key`)
	if err := w.s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	w.reads(t, "with the table")
}
