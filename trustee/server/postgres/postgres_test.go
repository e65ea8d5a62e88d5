package postgres

import (
	"errors"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/pgdb"
	"claviger/pgdb/pgdbtest"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/trustee/server/storetest"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m.Run))
}

func open(t *testing.T, uri string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{URI: uri, Where: "keytrustee.conf, DB_CONNECT", Identity: "AB12", Claim: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestStore: the store passes the suite of all stores.
func TestStore(t *testing.T) {
	pgtest.Shared(t) // its goroutines do not end with the test
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	storetest.Run(t, func(t *testing.T) server.Store { return open(t, pgtest.Database(t)) })
}

// TestOtherIdentity: several servers of one identity may use a database, but no server of another identity.
func TestOtherIdentity(t *testing.T) {
	uri := pgtest.Database(t)
	a := open(t, uri)
	defer a.Close() //nolint:errcheck // it never fails
	storetest.Fill(t, a)
	b := open(t, uri)
	defer b.Close() //nolint:errcheck // it never fails
	if err := b.Put(t.Context(), storetest.Row(9), "u0", storetest.Request("b")); err != nil {
		t.Error(err)
	}
	if storetest.Digest(t, a) != storetest.Digest(t, b) {
		t.Error("two servers of one identity see different records")
	}
	_, err := Open(t.Context(), Config{URI: uri, Where: "keytrustee.conf, DB_CONNECT", Identity: "CD34", Claim: true})
	if !claviger.Is(err, claviger.Invalid) {
		t.Fatal(err)
	}
	for _, want := range []string{"AB12", "CD34", "keytrustee.conf, DB_CONNECT", "database of its own"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

// TestUnclaimed: only a caller with Claim opens a database that belongs to no identity.
func TestUnclaimed(t *testing.T) {
	uri := pgtest.Database(t)
	c := Config{URI: uri, Where: "keytrustee.conf, DB_CONNECT", Identity: "AB12"}
	if _, err := Open(t.Context(), c); !claviger.Is(err, claviger.Invalid) ||
		!strings.Contains(err.Error(), "trustee init --store") {
		t.Fatal(err)
	}
	claimed := open(t, uri)
	_ = claimed.Close() // it never fails
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close() // it never fails
}

// TestReadOnly: a caller that only reads makes no schema, and claims no database for its identity. It can read a store,
// and cannot write.
func TestReadOnly(t *testing.T) {
	uri := pgtest.Database(t)
	c := Config{URI: uri, Where: "keytrustee.conf, DB_CONNECT", Identity: "AB12", Claim: true, ReadOnly: true}
	for range 2 {
		if _, err := Open(t.Context(), c); !errors.Is(err, pgdb.ErrEmpty) {
			t.Fatalf("an empty database: %v", err)
		}
	}
	s := open(t, uri)
	defer s.Close() //nolint:errcheck // it never fails
	storetest.Fill(t, s)
	r, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // it never fails
	if storetest.Digest(t, r) != storetest.Digest(t, s) {
		t.Error("other records")
	}
	if err := r.SetAuth(t.Context(), "ORG", "x"); err == nil {
		t.Error("it can write")
	}
}

// TestBadURI: Open refuses a URI that holds a password.
func TestBadURI(t *testing.T) {
	_, err := Open(t.Context(), Config{URI: "postgres://u:secret@h/d", Where: "keytrustee.conf", Identity: "AB12"})
	if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "holds a password") {
		t.Error(err)
	}
}

// TestRestart: a call waits while the database server restarts. If there is no server, the error names the address
// and its configuration, and counts as a failure.
func TestRestart(t *testing.T) {
	ctx := t.Context()
	pg := pgtest.Start(t)
	uri := pg.Database(t)
	shortRetry, err := Open(ctx, Config{URI: uri, Where: "keytrustee.conf, DB_CONNECT", Identity: "AB12", Claim: true,
		RetryTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer shortRetry.Close() //nolint:errcheck // it never fails
	longRetry, err := Open(ctx, Config{URI: uri, Identity: "AB12", Claim: true, RetryTimeout: 14 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer longRetry.Close() //nolint:errcheck // it never fails
	storetest.Fill(t, shortRetry)
	for i, end := range []func(testing.TB){pg.Kill, pg.Stop} {
		before := shortRetry.Failures()
		end(t)
		for what, call := range map[string]func() error{
			"Get":    func() error { _, err := shortRetry.Get(ctx, "u0"); return err },
			"Put":    func() error { return shortRetry.Put(ctx, storetest.Row(60), "", storetest.Request("never")) },
			"Check":  func() error { return shortRetry.Check(ctx) },
			"Export": func() error { return shortRetry.Export(ctx, func(server.Record) error { return nil }) },
		} {
			if err := call(); !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "DB_CONNECT") ||
				!strings.Contains(err.Error(), pg.Addr) {
				t.Errorf("%s without a server: %v", what, err)
			}
		}
		if shortRetry.Failures() != before+4 {
			t.Errorf("%d failures are counted, not 4", shortRetry.Failures()-before)
		}
		put := make(chan error, 1)
		go func() { put <- longRetry.Put(ctx, storetest.Row(70+i), "", storetest.Request("meanwhile")) }()
		time.Sleep(50 * time.Millisecond) // so that the put finds no server at first
		pg.Start(t)
		err := <-put
		// The second put repeats a request whose digest is recorded.
		if i == 0 && err != nil || i == 1 && !claviger.Is(err, claviger.Invalid) {
			t.Errorf("a put with a long retry: %v", err)
		}
	}
	// Calls fail until a probe in the background finds the server.
	for deadline := time.Now().Add(30 * time.Second); shortRetry.Check(ctx) != nil && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	if _, err := shortRetry.Get(ctx, "u70"); err != nil {
		t.Error(err)
	}
	_, err = shortRetry.Get(ctx, "u60")
	if !claviger.Is(err, claviger.KeyNotFound) {
		t.Errorf("a refused deposit: %v", err)
	}
}

// TestStandby: a trustee on a standby answers reads and refuses changes, like a passive server, until the standby
// is promoted.
func TestStandby(t *testing.T) {
	ctx := t.Context()
	primary := pgtest.StartReplicated(t)
	active := open(t, primary.Database(t))
	defer active.Close() //nolint:errcheck // it never fails
	storetest.Fill(t, active)
	standby := primary.Standby(t)
	passive := open(t, standby.URI(pgtest.Superuser, "test1"))
	defer passive.Close() //nolint:errcheck // it never fails
	if role, err := active.Role(ctx); err != nil || role != server.RoleActive {
		t.Errorf("the primary: %v, %v", role, err)
	}
	if role, err := passive.Role(ctx); err != nil || role != server.RolePassive {
		t.Errorf("the standby: %v, %v", role, err)
	}
	if err := active.Put(ctx, storetest.Row(80), "", storetest.Request("p")); err != nil {
		t.Fatal(err)
	}
	follow := time.Now().Add(20 * time.Second)
	for {
		_, err := passive.Get(ctx, "u80")
		if err == nil {
			break
		}
		if !claviger.Is(err, claviger.KeyNotFound) || time.Now().After(follow) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if storetest.Digest(t, active) != storetest.Digest(t, passive) {
		t.Error("the standby holds other records")
	}
	for what, err := range map[string]error{
		"put":    passive.Put(ctx, storetest.Row(81), "", storetest.Request("q")),
		"forget": passive.Forget(ctx, time.UnixMilli(1)),
		"import": passive.Import(ctx, storetest.NextOf(nil)),
	} {
		if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), trustee.ErrPassive.Error()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := passive.CheckWrites(ctx); err != nil { // a standby takes no writes, and that is not a fault
		t.Errorf("CheckWrites of a standby: %v", err)
	}
	if n := passive.Failures(); n != 0 {
		t.Errorf("%d refusals count as failures", n)
	}
	primary.Kill(t)
	if err := passive.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	if role, err := passive.Role(ctx); err != nil || role != server.RoleActive {
		t.Errorf("after the promotion: %v, %v", role, err)
	}
	if err := passive.Put(ctx, storetest.Row(81), "", storetest.Request("q")); err != nil {
		t.Error(err)
	}
	if err := passive.Promote(ctx); err == nil {
		t.Error("a primary was promoted")
	}
}

// TestParts: a missing part of the schema is named.
func TestParts(t *testing.T) {
	uri := pgtest.Database(t)
	pgdbtest.TestParts(t, pgdbtest.Parts{
		URI: uri, Table: "trustee_db_version", File: "parts.txt",
		Open: func() error {
			s, err := Open(t.Context(), Config{URI: uri, Where: "test", Identity: "AB12", Claim: true})
			if err != nil {
				return err
			}
			return s.Close()
		},
		Break: []string{`DROP INDEX trustee_deposit_live`, `DROP INDEX trustee_client_org`},
		Lacks: "lacks 2 parts of its schema (index trustee_client_org, index trustee_deposit_live)",
	})
}

// TestSchemaLock: the lock of an upgrade is free after Open. A store that is closed cannot take the lock.
func TestSchemaLock(t *testing.T) {
	pg := pgtest.Shared(t)
	s := open(t, pg.Database(t))
	unlock, err := s.lockSchema(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	count := func(query string, args ...any) (n int) {
		if err := s.db.Pool().QueryRow(t.Context(), query, args...).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	const held = `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND
		database = (SELECT oid FROM pg_database WHERE datname = current_database())`
	if n := count(held, schemaLock); n != 1 {
		t.Errorf("%d sessions hold the lock", n)
	}
	unlock()
	await(t, "the end of the session", func() bool { return count(held, schemaLock) == 0 })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.lockSchema(t.Context()); err == nil {
		t.Error("a closed store took the lock")
	}
}

// await waits until ok returns true.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// TestPromoteFails: the errors of pg_promote. A function of that name stands in for PostgreSQL's own.
func TestPromoteFails(t *testing.T) {
	pg := pgtest.Shared(t)
	uri := pg.Database(t)
	database, _, _ := strings.Cut(uri[strings.LastIndexByte(uri, '/')+1:], "?")
	pg.Exec(t, database, `ALTER DATABASE `+database+` SET search_path = public, pg_catalog`)
	for body, want := range map[string]struct {
		kind claviger.Kind
		says string
	}{
		`RETURN true`:  {0, ""},
		`RETURN false`: {claviger.Unavailable, "has not become a primary"},
		`RAISE EXCEPTION 'no' USING ERRCODE = '42501'`: {claviger.Denied, "GRANT EXECUTE ON FUNCTION pg_promote"},
		`RAISE EXCEPTION 'not now'`:                    {claviger.Internal, "not now"},
	} {
		pg.Exec(t, database, `CREATE OR REPLACE FUNCTION public.pg_promote(boolean, integer) RETURNS boolean
			LANGUAGE plpgsql AS $$ BEGIN `+body+`; END $$`)
		s := open(t, uri)
		err := s.Promote(t.Context())
		if want.says == "" && err != nil || want.says != "" && (!claviger.Is(err, want.kind) ||
			!strings.Contains(err.Error(), want.says)) {
			t.Errorf("%s: %v", body, err)
		}
		_ = s.Close() // it never fails
	}
}

// TestFigures: Deposits counts the live and the deleted deposits, and Wrapped lists the wrapped ones.
func TestFigures(t *testing.T) {
	s := open(t, pgtest.Database(t))
	defer s.Close() //nolint:errcheck // it never fails
	storetest.Fill(t, s)
	if live, deleted, err := s.Deposits(t.Context()); err != nil || live != 4 || deleted != 1 {
		t.Errorf("%d live, %d deleted, %v", live, deleted, err)
	}
	heads := map[string]string{}
	err := s.Wrapped(t.Context(), 2, func(uuid string, head []byte) { heads[uuid] = string(head) })
	if want := map[string]string{"u0": "\x00\x00", "u2": "\x00\x02", "u4": "\x00\x04"}; err != nil ||
		!maps.Equal(heads, want) {
		t.Errorf("%q, %v", heads, err)
	}
}

// TestRefusals: a change that the store refuses does not count as a failure of the store, and costs no connection.
func TestRefusals(t *testing.T) {
	s := open(t, pgtest.Database(t))
	defer s.Close() //nolint:errcheck // it never fails
	storetest.Fill(t, s)
	before := s.db.Pool().Stat().NewConnsCount()
	enough := errors.New("enough")
	if err := s.Export(t.Context(), func(server.Record) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
	if _, err := s.Get(t.Context(), "none"); !claviger.Is(err, claviger.KeyNotFound) {
		t.Error(err)
	}
	if _, err := s.List(t.Context(), storetest.Owner, trustee.ListArgs{Prefix: "a\x00", Limit: 1}); !claviger.Is(err,
		claviger.Invalid) {
		t.Error(err)
	}
	failures := s.Failures()
	if _, err := s.Orgs(t.Context()); err != nil || failures > 1 || s.db.Pool().Stat().NewConnsCount() != before {
		t.Errorf("%v, %d failures, %d new connections", err, failures, s.db.Pool().Stat().NewConnsCount()-before)
	}
}

// TestExportOfADamagedRow: Export fails at a row that it cannot read, and hands out no record of that row.
func TestExportOfADamagedRow(t *testing.T) {
	pg := pgtest.Shared(t)
	uri := pg.Database(t)
	database, _, _ := strings.Cut(uri[strings.LastIndexByte(uri, '/')+1:], "?")
	s := open(t, uri)
	defer s.Close() //nolint:errcheck // it never fails
	storetest.Fill(t, s)
	// Export reads the tables in the order opposite to this list, so it reads no damaged table before that of a step.
	for _, damaged := range []struct {
		table, column string
		has           func(server.Record) bool
	}{
		{"trustee_once", "until", func(r server.Record) bool { return r.Once != nil }},
		{"trustee_deposit", "label", func(r server.Record) bool { return r.Deposit != nil }},
		{"trustee_client", "state", func(r server.Record) bool { return r.Client != nil }},
		{"trustee_org", "auth", func(r server.Record) bool { return r.Org != nil }},
	} {
		pg.Exec(t, database, `ALTER TABLE `+damaged.table+` ALTER `+damaged.column+` DROP NOT NULL`,
			`UPDATE `+damaged.table+` SET `+damaged.column+` = NULL`)
		err := s.Export(t.Context(), func(r server.Record) error {
			if damaged.has(r) {
				t.Errorf("%s: a damaged record was exported: %+v", damaged.table, r)
			}
			return nil
		})
		if !claviger.Is(err, claviger.Internal) || !strings.Contains(err.Error(), damaged.column) {
			t.Errorf("%s: %v", damaged.table, err)
		}
	}
}
