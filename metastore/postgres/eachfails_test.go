package postgres_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
	"claviger/metastore/storetest"
	"claviger/owner"
	"claviger/pgdb"
)

// faultyStores returns two empty stores, which reach PostgreSQL through a proxy that makes faults.
func faultyStores(t *testing.T) (f *pgtest.Faults, a, b *postgres.Store) {
	t.Helper()
	server := pgtest.Shared(t)
	f = pgtest.NewFaults(t, server.Addr)
	f.Skip = func(statement string, row bool) bool {
		if statement == "SELECT pg_advisory_unlock_all()" {
			return true // the end of the session frees the locks too
		}
		// The store does not read the first rows, and pgdb repeats the last query.
		return row && slices.ContainsFunc([]string{"setval(", "pg_advisory_xact_lock", "SELECT pg_notify(",
			"pg_is_in_recovery()"},
			func(part string) bool { return strings.Contains(statement, part) })
	}
	var stores [2]*postgres.Store
	for i := range stores {
		uri := strings.Replace(emptyStore(t), server.Addr, f.Addr, 1)
		stores[i] = openConfig(t, postgres.Config{URI: uri})
	}
	return f, stores[0], stores[1]
}

// rowError matches the errors of a spoiled row. A spoiled row of texts is a good row, so Fill finds a store that is not
// empty.
var rowError = regexp.MustCompile(
	`number of field descriptions must equal|dst struct has only|invalid length|not empty`)

// eachFault returns the faults of a test.
func eachFault(t *testing.T, f *pgtest.Faults) storetest.Faults {
	return func(do func() error) iter.Seq2[storetest.Fault, error] {
		return func(yield func(storetest.Fault, error) bool) {
			for fault, err := range f.EachFails(do) {
				var of storetest.Fault
				if fault.Number > 0 {
					of = storetest.Fault{Call: fault.String(), Values: fault.Row}
				}
				if of.Call != "" && !of.Values && pgdb.Code(err) != "26000" && pgdb.Code(err) != "22012" {
					t.Fatalf("%s: the error is %v", fault, err)
				}
				if of.Values && err != nil && !rowError.MatchString(err.Error()) {
					t.Fatalf("%s: the error is %v", fault, err)
				}
				if !yield(of, err) {
					return
				}
			}
		}
	}
}

// eachCallFails makes the statements and rows of each operation fail, one after the other. The operation must return an
// error, and change nothing.
func eachCallFails(t *testing.T, operations []storetest.Operation) {
	t.Helper()
	f, s, _ := faultyStores(t)
	storetest.EachFails(t, s, eachFault(t, f), operations)
}

// TestEachCallForKeysFails: see eachCallFails; these calls change and read keys.
func TestEachCallForKeysFails(t *testing.T) { eachCallFails(t, storetest.KeyOperations()) }

// TestEachCallForDeletedKeysFails: see eachCallFails; these calls change and read deleted keys.
func TestEachCallForDeletedKeysFails(t *testing.T) {
	eachCallFails(t, storetest.DeletedKeyOperations())
}

// TestEachCallForTokensFails: see eachCallFails; these calls change and read delegation tokens.
func TestEachCallForTokensFails(t *testing.T) { eachCallFails(t, storetest.TokenOperations()) }

// TestEachCallForRecordsFails: see eachCallFails; these calls change and read settings and records of runs and uses.
func TestEachCallForRecordsFails(t *testing.T) { eachCallFails(t, storetest.RecordOperations()) }

// TestEachCallOfNodesFails: see eachCallFails; these calls serve several nodes.
func TestEachCallOfNodesFails(t *testing.T) { eachCallFails(t, moreOperations()) }

// TestEachCallOfFillFails: a copy of a metastore into PostgreSQL fails with the error of each call that fails.
func TestEachCallOfFillFails(t *testing.T) {
	f, from, s := faultyStores(t)
	storetest.FillFails(t, from, s, eachFault(t, f))
}

// TestEachCallOfAConnectionFails checks that a new connection is not used if the check of its server fails. The server
// may be one that lacks changes.
func TestEachCallOfAConnectionFails(t *testing.T) {
	f, s, _ := faultyStores(t)
	if err := s.Insert(t.Context(), key("k", "aa")); err != nil {
		t.Fatal(err)
	}
	for fault, err := range eachFault(t, f)(func() error {
		s.ResetPool()
		_, err := s.Get(t.Context(), "k")
		return err
	}) {
		if (err == nil) != (fault.Call == "") {
			t.Errorf("with a fault in %s: %v", fault.Call, err)
		}
	}
}

// moreOperations returns the calls of the methods that a store of several nodes has in addition.
func moreOperations() []storetest.Operation {
	of := func(s storetest.Full) *postgres.Store { return s.(*postgres.Store) }
	secrets := metastore.SignerSecrets{Next: []byte("next"), Current: []byte("current"), Rollover: time.UnixMilli(1)}
	return []storetest.Operation{
		{Name: "SwapSignerSecrets", Do: func(ctx context.Context, s storetest.Full) error {
			_, err := of(s).SwapSignerSecrets(ctx, secrets)
			return err
		}},
		{Name: "SignerSecrets", Do: func(ctx context.Context, s storetest.Full) error {
			_, _, err := of(s).SignerSecrets(ctx)
			return err
		}},
		{Name: "Epoch", Do: func(ctx context.Context, s storetest.Full) error {
			_, err := of(s).Epoch(ctx, "k")
			return err
		}},
		{Name: "Announce", Do: func(ctx context.Context, s storetest.Full) error {
			return of(s).Announce(ctx, metastore.Notice{Key: "k", Change: metastore.Invalidated})
		}},
		{Name: "CatchUp", Do: func(ctx context.Context, s storetest.Full) error {
			return of(s).CatchUp(ctx, func(metastore.Notice) {})
		}},
		{Name: "Lost", Do: func(ctx context.Context, s storetest.Full) error { _, err := of(s).Lost(ctx); return err }},
		{Name: "Accept", Do: func(ctx context.Context, s storetest.Full) error { return of(s).Accept(ctx) }},
		{Name: "Owners", Do: func(ctx context.Context, s storetest.Full) error { _, err := s.Owners(ctx); return err }},
		{Name: "Replication", Do: func(ctx context.Context, s storetest.Full) error { return of(s).Replication(ctx) }},
		{Name: "WaitForStandbys", Do: func(ctx context.Context, s storetest.Full) error {
			return of(s).WaitForStandbys(ctx)
		}},
		{Name: "Lock", Do: func(ctx context.Context, s storetest.Full) error {
			unlock, err := s.Lock(ctx, "a lock")
			if err == nil {
				unlock()
			}
			return err
		}},
		{Name: "Claim", Do: func(ctx context.Context, s storetest.Full) error {
			release, err := s.Claim(ctx, owner.Self("claviger kms", ""), false)
			if err == nil {
				release()
			}
			return err
		}},
		{Name: "SetMoved", Do: func(ctx context.Context, s storetest.Full) error { // it ends all changes
			return metastore.SetMoved(ctx, s, "sqlite:///new.db")
		}},
		{Name: "a change of a store that was moved", Do: func(ctx context.Context, s storetest.Full) error {
			err := s.SetSetting(ctx, "name", "value")
			if err != nil && strings.Contains(err.Error(), "was moved to") {
				return nil
			}
			return cmp.Or(err, errors.New("a store that was moved is changed"))
		}},
	}
}

// TestClosedDuringLock closes the store before each statement and each row that TryLock needs. TryLock must fail, and
// must not hold the lock.
func TestClosedDuringLock(t *testing.T) {
	f, _, other := faultyStores(t)
	s := openConfig(t, postgres.Config{URI: other.URI() + "?sslmode=disable"})
	for fault, err := range f.BeforeEach(func() { _ = s.Close() }, func() error {
		unlock, ok, err := s.TryLock(t.Context(), "a lock")
		if ok {
			unlock()
		}
		return err
	}) {
		if fault.Number > 0 && !claviger.Is(err, claviger.Closed) {
			t.Errorf("closed before %s: %v", fault, err)
		}
		unlock, ok, err := other.TryLock(t.Context(), "a lock")
		if err != nil || !ok {
			t.Fatalf("closed before %s: the lock is not free: %v", fault, err)
		}
		unlock()
		s = openConfig(t, postgres.Config{URI: other.URI() + "?sslmode=disable"})
	}
}

// TestLockFailsLater checks that a Lock which waits for another holder fails if one of its later attempts fails.
func TestLockFailsLater(t *testing.T) {
	f, s, _ := faultyStores(t)
	unlock, err := s.Lock(t.Context(), "a lock")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	for fault, err := range eachFault(t, f)(func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := s.Lock(ctx, "a lock")
		return err
	}) {
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a fault in %s: %v", fault.Call, err)
		}
		if strings.HasPrefix(fault.Call, "call 6 ") { // the last call of the second attempt
			break
		}
	}
}

// TestBeginTogether lets another node begin the same step before each statement of Begin. Both must get the same step.
func TestBeginTogether(t *testing.T) {
	server := pgtest.Shared(t)
	f, s, _ := faultyStores(t)
	other := openConfig(t, postgres.Config{URI: strings.Replace(s.URI(), f.Addr, server.Addr, 1) + "?sslmode=disable"})
	begin := func(ctx context.Context, s *postgres.Store, name string) (metastore.Intent, error) {
		return s.Begin(ctx, metastore.Intent{Key: name, Op: "create", Refs: []metastore.Ref{{Object: name}}})
	}
	n, name := 0, ""
	var got metastore.Intent
	for call, err := range f.BeforeEach(func() {
		// Begin may wait for the other node's transaction, which waits for this function.
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, _ = begin(ctx, other, name)
	}, func() (err error) {
		n++
		name = fmt.Sprint("k", n)
		got, err = begin(t.Context(), s, name)
		return err
	}) {
		if err != nil {
			t.Errorf("begun by another node before %s: %v", call, err)
			continue
		}
		again, err := begin(t.Context(), other, name)
		if err != nil || !slices.Equal(again.Refs, got.Refs) {
			t.Errorf("begun by another node before %s: %+v and %+v, %v", call, got, again, err)
		}
	}
}
