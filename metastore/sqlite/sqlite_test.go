package sqlite_test

import (
	"context"
	"os"
	"path/filepath"
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
