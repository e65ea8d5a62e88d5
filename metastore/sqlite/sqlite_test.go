package sqlite_test

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/metastore/storetest"
)

func open(ctx context.Context, where string) (metastore.Store, error) { return sqlite.Open(ctx, where) }

func TestMain(m *testing.M) { os.Exit(storetest.Main(m, open)) }

func TestStore(t *testing.T) {
	storetest.Run(t, storetest.Backend{
		// The name has everything that a path in a URI could stumble over.
		New:  func(t *testing.T) string { return filepath.Join(t.TempDir(), "meta store?a=b#c%41.db") },
		Open: open,
	})
}

func TestDelegations(t *testing.T) {
	storetest.Delegations(t, func(t *testing.T) (a, b metastore.Delegations) {
		path := filepath.Join(t.TempDir(), "store.db")
		var two [2]*sqlite.Store
		for i := range two {
			s, err := sqlite.Open(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			two[i] = s
		}
		return two[0], two[1]
	})
}

// TestUpgraded opens a store of the time before versions had numbers.
func TestUpgraded(t *testing.T) {
	dump, err := os.ReadFile("testdata/schema3.sql")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "old.db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{string(dump), "PRAGMA application_id = 0x434c4156"} { // .dump leaves the latter out
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	storetest.Upgraded(t, s)
	if f, err := sqlite.Inspect(t.Context(), path+".schema-3"); err != nil || f.Schema != 3 || f.Keys == 0 || f.Pending != 2 {
		t.Errorf("the copy that is kept: %+v, %v", f, err)
	}

	// A server of then that was not stopped writes its steps as it did.
	beside, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = beside.Close() }()
	if _, err := beside.ExecContext(t.Context(), `INSERT INTO intent (key, op, ids, begun, payload) VALUES ('late', 'create', '["a1f1000000000009"]', 1, x'')`); err != nil {
		t.Fatal(err)
	}
	pending, err := s.Pending(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := metastore.Ref{ID: "a1f1000000000009", Object: "a1f1000000000009"}
	if last := pending[len(pending)-1]; last.Key != "late" || !slices.Equal(last.Refs, []metastore.Ref{want}) {
		t.Errorf("the step of the old server: %+v", last)
	}
}
