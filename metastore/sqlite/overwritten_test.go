package sqlite

import (
	"database/sql"
	"errors"
	"strings"
	"testing"

	"claviger"
	"claviger/metastore/storetest"
	"claviger/owner"
)

// TestOverwrittenRefusesAll checks that each method is refused after the file was overwritten.
func TestOverwrittenRefusesAll(t *testing.T) {
	s, _ := newStore(t)
	why := "was overwritten by the test"
	s.guard.overwritten.Store(&why)
	for _, o := range append(storetest.Operations(), resetFutureTimes) {
		wantRefused(t, o.Name, o.Do(t.Context(), s))
	}
	wantRefused(t, "RecordUses of nothing", s.RecordUses(t.Context(), nil))
	wantRefused(t, "AddUse of nothing", s.AddUse(t.Context(), nil))
	_, err := s.Lock(t.Context(), "x")
	wantRefused(t, "Lock", err)
	_, _, err = s.TryLock(t.Context(), "x")
	wantRefused(t, "TryLock", err)
	_, err = s.Owners(t.Context())
	wantRefused(t, "Owners", err)
	_, err = s.Claim(t.Context(), owner.Self("claviger kms", ""), false)
	wantRefused(t, "Claim", err)
}

// TestOverwrittenMeanwhile lets the file be overwritten before each call of a method. A method that writes must fail
// unless its change is in the file, and Content must not return the rows of two files.
func TestOverwrittenMeanwhile(t *testing.T) {
	injectFaults(t)
	why := "was overwritten by the test"
	for name, do := range map[string]func(s *Store) error{
		"Content":    func(s *Store) error { _, err := s.Content(t.Context()); return err },
		"SetSetting": func(s *Store) error { return s.SetSetting(t.Context(), "name", "value") },
	} {
		s, _ := newStore(t)
		overwrite := func() { s.guard.overwritten.Store(&why) }
		for call, err := range faults.BeforeEach(overwrite, func() error { return do(s) }) {
			s.guard.overwritten.Store(nil)
			if call.Number > 0 && !claviger.Is(err, claviger.Unavailable) || call.Number == 0 && err != nil {
				t.Errorf("%s, overwritten before %s: %v", name, call, err)
			}
		}
	}
}

// TestChangeRefused checks that a refused change is not written.
func TestChangeRefused(t *testing.T) {
	for name, prepare := range map[string]func(g *guarded){
		"the file was moved":              func(g *guarded) { mustRename(t, g.path, g.path+".moved") },
		"the file counts too few changes": func(g *guarded) { g.guard.changes.Store(1000) },
	} {
		g := newGuarded(t)
		prepare(g)
		wantRefused(t, name, g.SetSetting(t.Context(), "name", "value"))
		g.guard.overwritten.Store(nil)
		if value, ok, err := g.Setting(t.Context(), "name"); err != nil || ok {
			t.Errorf("%s: the change was written: %q, %v", name, value, err)
		}
	}
}

// TestClosedAndMoved checks that a closed store says that it is closed, wherever its file is.
func TestClosedAndMoved(t *testing.T) {
	s, path := newStore(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustRename(t, path, path+".moved")
	if err := s.SetSetting(t.Context(), "name", "value"); !claviger.Is(err, claviger.Closed) {
		t.Error(err)
	}
}

// TestDamageOfOverwrittenFile checks that the error of a damaged file says that the file was overwritten, if it was,
// and that an error with another meaning stays.
func TestDamageOfOverwrittenFile(t *testing.T) {
	s, path := newStore(t)
	why := "was overwritten by the test"
	damaged := damagedError(t)
	missing := claviger.E("op", claviger.KeyNotFound, "k", damaged)
	err := s.fail("op", "", damaged)
	if err == nil || !strings.Contains(err.Error(), path+" is not an SQLite database") {
		t.Errorf("a file that is only damaged: %v", err)
	}
	s.guard.overwritten.Store(&why)
	wantRefused(t, "a file that was overwritten", s.fail("op", "", damaged))
	if err := s.fail("op", "k", missing); !claviger.Is(err, claviger.KeyNotFound) {
		t.Errorf("another error: %v", err)
	}
	if err := s.fail("op", "", sql.ErrNoRows); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("an error that is not damage: %v", err)
	}
	if err := s.fail("op", "", nil); err != nil {
		t.Errorf("no error: %v", err)
	}
}
