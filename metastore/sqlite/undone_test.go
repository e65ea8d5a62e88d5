package sqlite

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/owner"
)

// refusing has the store refuse each change of a table, in the middle of a transaction.
func refusing(t *testing.T, s *Store, table string) {
	t.Helper()
	_, err := s.db.Writer.ExecContext(t.Context(), `CREATE TRIGGER refusing BEFORE INSERT ON `+table+
		` BEGIN SELECT RAISE(FAIL, 'refused by the test'); END`)
	if err != nil {
		t.Fatal(err)
	}
}

func fresh(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestHalfAnUndeletion: where the versions of a deleted key cannot be brought back, the key is not, and stays
// on the shelf.
func TestHalfAnUndeletion(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	mustInsert(t, s, "k", "01")
	if err := s.Shelve(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	refusing(t, s, "key_version")
	if err := s.Unshelve(ctx, "k", "01"); err == nil || !strings.Contains(err.Error(), "refused by the test") {
		t.Errorf("undeletion: %v", err)
	}
	if keys, err := s.Get(ctx, "k"); err != nil || keys[0] != nil {
		t.Errorf("after half an undeletion: %+v, %v", keys[0], err)
	}
	if _, err := s.db.Writer.ExecContext(ctx, `DROP TRIGGER refusing`); err != nil {
		t.Fatal(err)
	}
	if err := s.Unshelve(ctx, "k", "01"); err != nil {
		t.Errorf("undeletion: %v", err)
	}
	if keys, err := s.Get(ctx, "k"); err != nil || keys[0] == nil || len(keys[0].List) != 1 {
		t.Errorf("after the undeletion: %+v, %v", keys, err)
	}
}

// TestNumberThatIsNotNoted: no step begins with a number of which the store does not know that it was given.
func TestNumberThatIsNotNoted(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	refusing(t, s, "version_unused")
	step := metastore.Intent{Key: "k", Op: "create", Refs: []metastore.Ref{{Object: "01"}}}
	if i, err := s.Begin(ctx, step); err == nil || !strings.Contains(err.Error(), "refused by the test") {
		t.Errorf("begun: %+v, %v", i, err)
	}
}

// TestClosedTokens: a store that is closed says so of tokens, and not that there are none.
func TestClosedTokens(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, renewed := s.RenewDelegation(ctx, 1, time.Now())
	_, removed := s.RemoveDelegation(ctx, 1)
	_, expired := s.RemoveExpired(ctx, time.Now())
	_, _, found := s.Delegation(ctx, 1)
	_, keys := s.MasterKeys(ctx)
	for what, err := range map[string]error{"renewal": renewed, "removal": removed, "expiry": expired, "token": found,
		"keys": keys, "put": s.PutDelegation(ctx, metastore.Delegation{Sequence: 1}),
		"key": s.RemoveMasterKey(ctx, 1)} {
		if !claviger.Is(err, claviger.Closed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestOccupiedTwice: a store that one process occupies is not occupied by another command.
func TestOccupiedTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	release, err := Occupy(path, owner.Self("one", ""))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Occupy(path, owner.Self("two", "")); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("occupied twice: %v", err)
		if again != nil {
			again()
		}
	}
	release()
	again, err := Occupy(path, owner.Self("two", ""))
	if err != nil {
		t.Fatal(err)
	}
	again()
}
