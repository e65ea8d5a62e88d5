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

// TestCheckWrites: a database that answers, and takes no change, is told: read-only,
// without room, or without the standby that commits wait for.
func TestCheckWrites(t *testing.T) {
	ctx := t.Context()
	server := pgtest.StartReplicated(t)
	s := openConfig(t, postgres.Config{URI: server.Database(t), Property: "the.property", Patience: time.Second})
	if err := s.CheckWrites(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Insert(ctx, key("k", "aa")); err != nil {
		t.Fatal(err)
	}
	if last, ok := s.LastWrite(); !ok || last.Err != nil || last.Took <= 0 || time.Since(last.At) > time.Minute {
		t.Errorf("after a change: %+v, %t", last, ok)
	}
	reads := func(when string) {
		t.Helper()
		if keys, err := s.Get(ctx, "k"); err != nil || keys[0] == nil {
			t.Errorf("%s, reading: %v, %v", when, keys, err)
		}
		if last, ok := s.LastRead(); !ok || last.Err != nil {
			t.Errorf("%s, the last reading: %+v, %t", when, last, ok)
		}
	}
	refused := func(when, text string, probe bool) {
		t.Helper()
		if probe {
			if err := s.CheckWrites(ctx); !claviger.Is(err, claviger.Unavailable) ||
				!strings.Contains(err.Error(), text) {
				t.Errorf("%s, a probe: %v", when, err)
			}
		}
		if err := s.Insert(ctx, key("never", "bb")); !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), text) {
			t.Errorf("%s, a change: %v", when, err)
		}
		if last, ok := s.LastWrite(); !ok || last.Err == nil || !strings.Contains(last.Err.Error(), text) {
			t.Errorf("%s, the last change: %+v, %t", when, last, ok)
		}
		reads(when)
	}
	works := func(when string) {
		t.Helper()
		eventually(t, "changes are taken "+when, func() bool { return s.CheckWrites(ctx) == nil })
	}

	server.Exec(t, "postgres", `ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`)
	eventually(t, "the server is read-only", func() bool { return s.CheckWrites(ctx) != nil })
	refused("read-only", "default_transaction_read_only", true)
	server.Exec(t, "postgres", `SET default_transaction_read_only = off`,
		`ALTER SYSTEM RESET default_transaction_read_only`, `SELECT pg_reload_conf()`)
	works("again")

	// As PostgreSQL says it where an extension of a table finds no room.
	server.Exec(t, "test1", `CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
		END $$`,
		`CREATE TRIGGER full_disk BEFORE INSERT ON change FOR EACH ROW EXECUTE FUNCTION full_disk()`)
	server.Exec(t, "test1", `CREATE FUNCTION full_setting() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF length(NEW.value) > 8192 THEN
				RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
			END IF;
			RETURN NEW;
		END $$`,
		`CREATE TRIGGER full_setting BEFORE INSERT OR UPDATE ON setting FOR EACH ROW EXECUTE FUNCTION full_setting()`)
	refused("a full disk", "disk is full", false)
	if err := s.CheckWrites(ctx); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("after a change found the disk full a probe says: %v", err)
	}
	server.Exec(t, "test1", `DROP TRIGGER full_disk ON change`, `DROP TRIGGER full_setting ON setting`)
	works("with room")

	server.Exec(t, "postgres", `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`)
	missing := `a commit waits for a standby (synchronous_standby_names is "nobody"), and of 0 ` +
		`standbys that follow none is one of these`
	// A probe whose commit was under way when the setting came waits in vain, and the database
	// counts as away for a moment after it.
	eventually(t, "commits wait for a standby", func() bool {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := s.CheckWrites(ctx)
		return err != nil && strings.Contains(err.Error(), missing)
	})
	began := time.Now()
	refused("without a synchronous standby", missing, true)
	// Two changes, each of which would wait for five seconds if the first wait were forgotten.
	if took := time.Since(began); took > 9*time.Second {
		t.Errorf("a change that cannot be acknowledged is refused after %v", took)
	}
	if err := s.Replication(ctx); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("readiness without a synchronous standby: %v", err)
	}
	server.Exec(t, "postgres", `SET synchronous_commit = local`, `ALTER SYSTEM RESET synchronous_standby_names`,
		`SELECT pg_reload_conf()`)
	works("without a standby to wait for")

	// Refused is no answer, though the database is there.
	server.Exec(t, "test1", `ALTER TABLE ez_key RENAME TO moved`)
	if err := s.Check(ctx); err == nil || !strings.Contains(err.Error(), "ez_key") {
		t.Errorf("without the table: %v", err)
	}
	if last, ok := s.LastRead(); !ok || last.Err == nil {
		t.Errorf("without the table: %+v, %t", last, ok)
	}
	server.Exec(t, "test1", `ALTER TABLE moved RENAME TO ez_key`)
	if err := s.Check(ctx); err != nil {
		t.Error(err)
	}
	reads("with the table")
}
