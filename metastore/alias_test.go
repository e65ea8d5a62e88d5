package metastore_test

import (
	"path/filepath"
	"testing"

	"claviger/metastore"
	"claviger/metastore/sqlite"
)

// TestAlias checks that Alias finds a key of a source that folds case by any spelling, also after a restart, and that
// it finds no other key.
func TestAlias(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metastore.db")
	store, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := metastore.SetAlias(t.Context(), store, "Finance"); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if store, err = sqlite.Open(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for _, spelling := range []string{"finance", "Finance", "FINANCE", "fInAnCe"} {
		if here, ok, err := metastore.Alias(t.Context(), store, spelling); err != nil || !ok || here != "Finance" {
			t.Errorf("%s: %q, %v, %v; want Finance", spelling, here, ok, err)
		}
	}
	if here, ok, err := metastore.Alias(t.Context(), store, "finances"); err != nil || ok {
		t.Errorf("finances: %q, %v, %v; want none", here, ok, err)
	}
}
