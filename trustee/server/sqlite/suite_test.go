package sqlite

import (
	"path/filepath"
	"testing"

	"claviger/trustee/server"
	"claviger/trustee/server/storetest"
)

// TestStore: Store passes the tests of each server.Store.
func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) server.Store {
		s, err := Open(t.Context(), filepath.Join(t.TempDir(), "trustee.db"), true)
		check(t, err)
		return s
	})
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "trustee.db"), true)
	check(t, err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newFilledStore(t *testing.T) *Store {
	t.Helper()
	s := newStore(t)
	storetest.Fill(t, s)
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
