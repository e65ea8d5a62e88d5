package sqlite

import (
	"testing"

	"claviger"
	"claviger/metastore/storetest"
)

// TestOverwrittenRefusesAll checks that each method is refused after the file was overwritten.
func TestOverwrittenRefusesAll(t *testing.T) {
	s, _ := newStore(t)
	why := "was overwritten by the test"
	s.guard.overwritten.Store(&why)
	for _, o := range append(storetest.Operations(), resetFutureTimes) {
		wantRefused(t, o.Name, o.Do(t.Context(), s))
	}
	wantRefused(t, "Touch of nothing", s.Touch(t.Context(), nil))
	wantRefused(t, "AddUse of nothing", s.AddUse(t.Context(), nil))
	_, err := s.Lock(t.Context(), "x")
	wantRefused(t, "Lock", err)
	_, _, err = s.TryLock(t.Context(), "x")
	wantRefused(t, "TryLock", err)
	_, err = s.Owners(t.Context())
	wantRefused(t, "Owners", err)
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
