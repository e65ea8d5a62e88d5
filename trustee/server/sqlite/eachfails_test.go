package sqlite

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/faultsql"
	"claviger/sqlitedb"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/storetest"
)

var faults = faultsql.Register("sqlite with faults", "sqlite")

// injectFaults lets the stores that this test opens use the driver with faults.
func injectFaults(t *testing.T) {
	t.Helper()
	before := sqlitedb.Driver
	sqlitedb.Driver = "sqlite with faults"
	t.Cleanup(func() { sqlitedb.Driver = before })
}

// An operation is a method of a store, with its arguments.
type operation struct {
	name string
	do   func(context.Context) error
}

// reads are operations that change nothing.
func reads(s *Store, older replica.Head) []operation {
	none := func(server.Record) error { return nil }
	return []operation{
		{"Orgs", func(ctx context.Context) error { _, err := s.Orgs(ctx); return err }},
		{"Org", func(ctx context.Context) error { _, err := s.Org(ctx, storetest.Org); return err }},
		{"Client", func(ctx context.Context) error { _, err := s.Client(ctx, storetest.Owner); return err }},
		{"Clients", func(ctx context.Context) error { _, err := s.Clients(ctx, ""); return err }},
		{"Get", func(ctx context.Context) error { _, err := s.Get(ctx, "u2"); return err }},
		{"Find", func(ctx context.Context) error {
			_, err := s.Find(ctx, storetest.Owner, storetest.Row(2).Label)
			return err
		}},
		{"List", func(ctx context.Context) error {
			_, err := s.List(ctx, storetest.Owner, trustee.ListArgs{Limit: 9})
			return err
		}},
		{"Deposits", func(ctx context.Context) error { _, _, err := s.Deposits(ctx); return err }},
		{"Wrapped", func(ctx context.Context) error { return s.Wrapped(ctx, 9, func(string, []byte) {}) }},
		{"Export", func(ctx context.Context) error { return s.Export(ctx, none) }},
		{"Snapshot", func(ctx context.Context) error {
			return s.Snapshot(ctx, func(replica.Head) error { return nil }, none)
		}},
		{"Position", func(ctx context.Context) error { _, err := s.Position(ctx); return err }},
		{"Role", func(ctx context.Context) error { _, err := s.Role(ctx); return err }},
		{"Entries", func(ctx context.Context) error { _, err := s.Entries(ctx, older, 9, 1<<20); return err }},
		{"Has", func(ctx context.Context) error { _, err := s.Has(ctx, older); return err }},
		{"Check", s.Check},
		{"CheckWrites", s.CheckWrites},
		{"Save", func(ctx context.Context) error { _, err := s.Save(ctx, "saved"); return err }},
	}
}

// changes are operations on an active store, in an order in which each succeeds.
func changes(s *Store) []operation {
	at, owner := time.UnixMilli(1700000000999), storetest.Owner
	return []operation{
		{"AddOrg", func(ctx context.Context) error { return s.AddOrg(ctx, server.Org{Name: "NEW", UUID: "n"}) }},
		{"SetAuth", func(ctx context.Context) error { return s.SetAuth(ctx, "NEW", "x") }},
		{"AddClient", func(ctx context.Context) error {
			_, err := s.AddClient(ctx, server.Client{Fingerprint: "EE", Org: "NEW", PublicKey: []byte{2},
				State: server.Pending}, storetest.Request("n1"))
			return err
		}},
		{"SetState", func(ctx context.Context) error { return s.SetState(ctx, "EE", server.Active) }},
		{"Put", func(ctx context.Context) error {
			return s.Put(ctx, storetest.Row(10), "u0", storetest.Request("n2"))
		}},
		{"Delete", func(ctx context.Context) error {
			return s.Delete(ctx, owner, []string{"u2", "u10"}, at, storetest.Request("n3"))
		}},
		{"Undelete", func(ctx context.Context) error {
			return s.Undelete(ctx, owner, []string{"u10"}, storetest.Request("n4"))
		}},
		{"Purge", func(ctx context.Context) error {
			return s.Purge(ctx, owner, []string{"u1", "u2"}, storetest.Request("n5"))
		}},
		{"Forget", func(ctx context.Context) error { return s.Forget(ctx, time.UnixMilli(1700003600124)) }},
		{"UpdatePosition", func(ctx context.Context) error {
			_, err := s.UpdatePosition(ctx, func(st *replica.Position) error { st.Unshared = 0; return nil })
			return err
		}},
		{"Import", func(ctx context.Context) error {
			return s.Import(ctx, storetest.NextOf([]server.Record{{Org: &server.Org{Name: "ONLY", UUID: "o"}},
				{Client: &server.Client{Fingerprint: "C", Org: "ONLY", PublicKey: []byte{1}, State: server.Active}},
				{Deposit: &server.Row{UUID: "u", Owner: "C", Org: "ONLY", Sealed: storetest.Row(1).Sealed}},
				{Once: &server.Once{Digest: "d"}}}))
		}},
	}
}

// state is what a failed operation must leave as it was.
type state struct {
	digest   string
	position replica.Position
	files    int
}

func stateOf(t *testing.T, s *Store) state {
	t.Helper()
	st, err := s.Position(t.Context())
	check(t, err)
	files, err := os.ReadDir(filepath.Dir(s.db.Path()))
	check(t, err)
	return state{storetest.Digest(t, s), st, len(files)}
}

// eachFails makes each call of an operation to SQLite fail, one after the other. The operation must return an error
// that names the store, count the failure, change nothing, and leave no result open.
func eachFails(t *testing.T, s *Store, list []operation) {
	t.Helper()
	for _, op := range list {
		before, failures, rounds := stateOf(t, s), s.Failures(), 0
		_, open := faults.Unclosed()
		for fault, err := range faults.EachFails(func() error { return op.do(t.Context()) }) {
			if rounds++; fault.Number == 0 {
				if err != nil || rounds == 1 {
					t.Errorf("%s: %v in round %d, without a fault", op.name, err, rounds)
				}
				break
			}
			if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), s.db.Path()) ||
				fault.Call != faultsql.Scan && !errors.Is(err, faultsql.ErrInjected) {
				t.Errorf("%s: %s: %v", op.name, fault, err)
			}
			if failures++; s.Failures() != failures || stateOf(t, s) != before {
				t.Errorf("%s: %s: %d failures, not %d, or the store has changed", op.name, fault, s.Failures(),
					failures)
			}
			if _, n := faults.Unclosed(); n != open {
				t.Errorf("%s: %s: %d results are open, not %d", op.name, fault, n, open)
			}
		}
	}
}

// TestEachCallFails: if a call of an operation to SQLite fails, the operation fails. This also holds for the changes
// and the records that come from the other server: the failure does not prove that the stores are not equal.
func TestEachCallFails(t *testing.T) {
	injectFaults(t)
	ctx, a := t.Context(), newFilledStore(t)
	as(t, a, server.RoleActive, 1)
	b := loaded(t, a)
	start := head(t, a)
	for _, auth := range []string{"1", "2", "3"} {
		check(t, a.SetAuth(ctx, storetest.Org, auth))
	}
	list, err := a.Entries(ctx, start, 9, 1<<20)
	check(t, err)
	eachFails(t, a, append(reads(a, list[0].Head), changes(a)...))

	check(t, b.Apply(ctx, server.RolePassive, 1, list[:2]))
	eachFails(t, b, []operation{
		{"Apply", func(ctx context.Context) error { return b.Apply(ctx, server.RolePassive, 1, list) }},
		{"Load", func(ctx context.Context) error {
			return b.Load(ctx, 1, start, storetest.NextOf([]server.Record{{Org: &server.Org{Name: "X"}}}))
		}},
	})
}

// TestNoJSON: a list in the store that is not JSON is an error of each operation that reads the list.
func TestNoJSON(t *testing.T) {
	s := newFilledStore(t)
	for table, column := range map[string]string{"org": "contacts", "deposit": "access"} {
		_, err := s.db.Writer.ExecContext(t.Context(), "UPDATE "+table+" SET "+column+" = '['")
		check(t, err)
	}
	for _, op := range reads(s, replica.Head{}) {
		if !slices.Contains([]string{"Orgs", "Org", "Get", "Find", "List", "Export", "Snapshot"}, op.name) {
			continue
		}
		err := op.do(t.Context())
		if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "JSON") {
			t.Errorf("%s: %v", op.name, err)
		}
	}
}

// TestCancelledIsNoFailure: a cancelled call is not a failure of the store, but a time limit is.
func TestCancelledIsNoFailure(t *testing.T) {
	s := newFilledStore(t)
	for _, op := range []operation{{"Orgs", func(ctx context.Context) error { _, err := s.Orgs(ctx); return err }},
		{"SetAuth", func(ctx context.Context) error { return s.SetAuth(ctx, storetest.Org, "x") }}} {
		for cause, failures := range map[error]int64{context.Canceled: 0, context.DeadlineExceeded: 1} {
			ctx, cancel := context.WithCancel(t.Context())
			if cause == context.DeadlineExceeded { //nolint:errorlint // one of the two above
				ctx, cancel = context.WithDeadline(t.Context(), time.Unix(1, 0))
			}
			cancel()
			before := s.Failures()
			if err := op.do(ctx); !errors.Is(err, cause) || s.Failures()-before != failures {
				t.Errorf("%s: %v, and %d failures", op.name, err, s.Failures()-before)
			}
		}
	}
}
