package postgres

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/pgdb"
	"claviger/trustee/server"
	"claviger/trustee/server/storetest"
)

// faulty returns a proxy that makes faults, and the URI of an empty database through the proxy.
func faulty(t *testing.T) (f *pgtest.Faults, uri string) {
	t.Helper()
	pg := pgtest.Shared(t)
	f = pgtest.NewFaults(t, pg.Addr)
	f.Skip = func(statement string, row bool) bool {
		// The store does not read these rows, and pgdb repeats the last query.
		return row && slices.ContainsFunc([]string{"pg_advisory_lock", "pg_logical_emit_message", "FOR NO KEY UPDATE",
			"pg_is_in_recovery()"}, func(part string) bool { return strings.Contains(statement, part) })
	}
	return f, strings.Replace(pg.Database(t), pg.Addr, f.Addr, 1)
}

// injected reports whether an error comes from a statement that the proxy has changed.
func injected(err error) bool { return pgdb.Code(err) == "26000" || pgdb.Code(err) == "22012" }

// ownOperations returns calls of the methods that only this store has.
func ownOperations() []storetest.Operation {
	own := func(s server.Store) *Store { return s.(*Store) }
	return []storetest.Operation{
		{Name: "Deposits", Do: func(ctx context.Context, s server.Store) error {
			_, _, err := own(s).Deposits(ctx)
			return err
		}},
		{Name: "Wrapped", Do: func(ctx context.Context, s server.Store) error {
			return own(s).Wrapped(ctx, 9, func(string, []byte) {})
		}},
	}
}

// TestEachCallFails makes the statements and rows of each method fail, one after the other. The method must return the
// error, count it, and change nothing.
func TestEachCallFails(t *testing.T) {
	f, uri := faulty(t)
	s := open(t, uri)
	t.Cleanup(s.db.Close)
	storetest.Fill(t, s)
	release := storetest.Operation{Name: "Release", Do: func(ctx context.Context, s server.Store) error {
		return s.(*Store).Release(ctx)
	}}
	all := slices.Concat(storetest.Reads(), ownOperations(), storetest.Changes(), []storetest.Operation{release})
	for _, o := range all {
		before, failures, rounds := storetest.Digest(t, s), s.Failures(), 0
		for fault, err := range f.EachFails(func() error { return o.Do(t.Context(), s) }) {
			if fault.Number == 0 {
				if err != nil || rounds == 0 {
					t.Fatalf("%s without a fault: %v after %d rounds", o.Name, err, rounds)
				}
				break
			}
			rounds++
			kind := claviger.Internal
			if strings.HasPrefix(fault.Statement, "INSERT") && o.Name == "Import" {
				kind = claviger.Invalid // the error names the record
			}
			if !claviger.Is(err, kind) || !fault.Row && !injected(err) {
				t.Fatalf("%s: %s: %v", o.Name, fault, err)
			}
			if kind == claviger.Internal {
				failures++
			}
			if s.Failures() != failures {
				t.Fatalf("%s: %s: %d failures, not %d", o.Name, fault, s.Failures(), failures)
			}
			if storetest.Digest(t, s) != before {
				t.Fatalf("%s: %s: the store has changed", o.Name, fault)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		if err := o.Do(t.Context(), s); !claviger.Is(err, claviger.Closed) {
			t.Errorf("%s after Close: %v", o.Name, err)
		}
	}
}

// TestEachCallOfOpenFails makes the statements and rows of Open fail, one after the other: first the lock of an
// upgrade, then all calls for a database without an identity. The next Open succeeds.
func TestEachCallOfOpenFails(t *testing.T) {
	f, uri := faulty(t)
	all := f.Skip
	for i, skip := range []func(string, bool) bool{
		func(statement string, row bool) bool { return row || !strings.Contains(statement, "pg_advisory_lock") }, all,
	} {
		f.Skip = skip
		cfg := Config{URI: uri, Where: "keytrustee.conf", Identity: "AB12", Claim: true, RetryTimeout: time.Second}
		rounds := 0
		for fault, err := range f.EachFails(func() error {
			s, err := Open(t.Context(), cfg)
			if err == nil && i == 0 {
				err = s.Release(t.Context())
			}
			if s != nil {
				s.db.Close()
			}
			return err
		}) {
			awaitNoSession(t, uri)
			if rounds++; (err == nil) != (fault.Number == 0) || claviger.Is(err, claviger.Invalid) ||
				err != nil && !fault.Row && !injected(err) {
				t.Errorf("%s: %v", fault, err)
			}
		}
		if rounds < 2 {
			t.Error("no call failed")
		}
	}
}

// awaitNoSession waits until no session of a database is left.
func awaitNoSession(t *testing.T, uri string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }() // it only read
	await(t, "the end of all sessions", func() bool {
		n := 0
		err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
			AND pid <> pg_backend_pid()`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
}

// TestImportNamesTheRecord: an import names the record that cannot be imported.
func TestImportNamesTheRecord(t *testing.T) {
	s := open(t, pgtest.Database(t))
	defer s.Close() //nolint:errcheck // it never fails
	storetest.Fill(t, s)
	for name, list := range map[string][]server.Record{
		"record 2 cannot be imported: an empty record": {{Org: &server.Org{Name: "O"}}, {}},
		"record 3 cannot be imported": {{Org: &server.Org{Name: "O"}},
			{Org: &server.Org{Name: "P", UUID: "p"}}, {Org: &server.Org{Name: "O"}}},
	} {
		if err := s.Import(t.Context(), storetest.NextOf(list)); !claviger.Is(err, claviger.Invalid) ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCancelledIsNoFailure: a client that goes away is not a failure of the store.
func TestCancelledIsNoFailure(t *testing.T) {
	s := open(t, pgtest.Database(t))
	defer s.Close() //nolint:errcheck // it never fails
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, o := range slices.Concat(storetest.Reads(), storetest.Changes()) {
		if err := o.Do(ctx, s); !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", o.Name, err)
		}
	}
	if n := s.Failures(); n != 0 {
		t.Errorf("%d failures", n)
	}
}
