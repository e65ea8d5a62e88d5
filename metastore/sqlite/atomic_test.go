package sqlite

import (
	"path/filepath"
	"strings"
	"testing"

	"claviger"
	"claviger/metastore"
	"claviger/owner"
)

// refuseInserts makes each INSERT into a table fail, in the middle of a transaction.
func refuseInserts(t *testing.T, s *Store, table string) {
	t.Helper()
	_, err := s.db.Writer.ExecContext(t.Context(), `CREATE TRIGGER refusing BEFORE INSERT ON `+table+
		` BEGIN SELECT RAISE(FAIL, 'refused by the test'); END`)
	if err != nil {
		t.Fatal(err)
	}
}

// TestUndeleteIsAtomic checks that Undelete changes nothing if it cannot write the versions: the key stays deleted.
func TestUndeleteIsAtomic(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	mustInsert(t, s, "k", "01")
	if err := s.SoftDelete(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	refuseInserts(t, s, "key_version")
	if err := s.Undelete(ctx, "k", "01"); err == nil || !strings.Contains(err.Error(), "refused by the test") {
		t.Errorf("undeletion: %v", err)
	}
	if keys, err := s.Get(ctx, "k"); err != nil || keys[0] != nil {
		t.Errorf("after a failed undeletion: %+v, %v", keys[0], err)
	}
	if _, err := s.db.Writer.ExecContext(ctx, `DROP TRIGGER refusing`); err != nil {
		t.Fatal(err)
	}
	if err := s.Undelete(ctx, "k", "01"); err != nil {
		t.Errorf("undeletion: %v", err)
	}
	if keys, err := s.Get(ctx, "k"); err != nil || keys[0] == nil || len(keys[0].List) != 1 {
		t.Errorf("after the undeletion: %+v, %v", keys, err)
	}
}

// TestBeginNeedsRecordedNumber checks that Begin fails if the store cannot record the version number that it assigns.
func TestBeginNeedsRecordedNumber(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	refuseInserts(t, s, "version_unused")
	step := metastore.Intent{Key: "k", Op: "create", Refs: []metastore.Ref{{Object: "01"}}}
	if i, err := s.Begin(ctx, step); err == nil || !strings.Contains(err.Error(), "refused by the test") {
		t.Errorf("begun: %+v, %v", i, err)
	}
}

// TestClaimFileTwice checks that ClaimFile fails while another claim is held.
func TestClaimFileTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	release, err := ClaimFile(path, owner.Self("one", ""))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ClaimFile(path, owner.Self("two", "")); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a second claim: %v", err)
		if again != nil {
			again()
		}
	}
	release()
	again, err := ClaimFile(path, owner.Self("two", ""))
	if err != nil {
		t.Fatal(err)
	}
	again()
}
