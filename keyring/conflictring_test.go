package keyring

import (
	"context"
	"testing"

	"claviger"
	"claviger/secret"
)

// conflictRing is a testRing with a migrated key in conflict: its source has rolled the key since, so that one name is
// two versions.
type conflictRing struct {
	*shadowRing
	shared              string        // the name of both versions
	sourceEDEK, ownEDEK claviger.EDEK // under the source's version and under the version here
	sourceDEK, ownDEK   secret.Bytes
}

func newConflictRing(t *testing.T) *conflictRing {
	t.Helper()
	s := newShadowRing(t, migrated, "present", "payroll", false)
	s.record(func(o *Origin) { o.Numbered, o.Counted = true, 1 })
	v := s.rollThere(t)
	if current, err := s.primary.Current(t.Context(), "payroll"); err != nil || current.Name != v.Name {
		t.Fatalf("here %s, there %s, %v", current.Name, v.Name, err)
	}
	foreign, sourceDEKs := newEDEKs(t, s.far.blocks, v.Name, 1)
	own, deks := newEDEKs(t, s.primary.Provider, v.Name, 1)
	return &conflictRing{s, v.Name, foreign[0], own[0], sourceDEKs[0], deks[0]}
}

// record changes the journal's record of the key.
func (s *shadowRing) record(change func(*Origin)) {
	s.past.mu.Lock()
	change(&s.past.list[0])
	s.past.mu.Unlock()
	s.origins.forget()
}

// rollThere rolls the key at the source, rollHere the key here.
func (s *shadowRing) rollThere(t *testing.T) claviger.KeyVersion {
	t.Helper()
	v, err := s.far.Roll(t.Context(), "payroll", nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (s *shadowRing) rollHere(t *testing.T) claviger.KeyVersion {
	t.Helper()
	v, err := s.primary.Roll(t.Context(), "payroll", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.forget("payroll")
	return v
}

// silence makes the source unreachable.
func (s *shadowRing) silence() { s.far.setFail(failing(claviger.Unavailable, "connection refused")) }

func (s *shadowRing) decrypt(t *testing.T, e claviger.EDEK) (secret.Bytes, error) {
	t.Helper()
	return s.Decrypt(t.Context(), caller("alice"), "payroll", true, e)
}

func (s *shadowRing) reencryptOne(t *testing.T, e claviger.EDEK) (claviger.EDEK, error) {
	t.Helper()
	return s.Reencrypt(t.Context(), caller("nn"), "payroll", true, e)
}

func (s *shadowRing) compare(t *testing.T) {
	t.Helper()
	if err := s.CompareSources(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// opens checks that an EDEK is opened to the DEK.
func (s *shadowRing) opens(t *testing.T, when string, e claviger.EDEK, want secret.Bytes) {
	t.Helper()
	if dek, err := s.decrypt(t, e); err != nil || !dek.Equal(want) {
		t.Errorf("%s: it is not opened, or to another DEK: %v", when, err)
	}
}

// wantConflict checks that an EDEK is not opened because its version is in conflict.
func (s *shadowRing) wantConflict(t *testing.T, e claviger.EDEK) {
	t.Helper()
	_, err := s.decrypt(t, e)
	wantKind(t, err, claviger.Unavailable)
}

// both returns the EDEKs under the shared name.
func (w *conflictRing) both() map[string]claviger.EDEK {
	return map[string]claviger.EDEK{"the source's": w.sourceEDEK, "own": w.ownEDEK}
}

// refuses checks that no EDEK of the shared name is opened or re-encrypted.
func (w *conflictRing) refuses(t *testing.T, when string) {
	t.Helper()
	for what, e := range w.both() {
		if _, err := w.decrypt(t, e); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("%s: decrypt of %s: %v", when, what, err)
		}
		if _, err := w.reencryptOne(t, e); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("%s: re-encryption of %s: %v", when, what, err)
		}
	}
}

// restart forgets what a new process does not know.
func (w *conflictRing) restart() {
	w.conflicts.last = nil
	w.conflicts.known.Store(nil)
	w.conflicts.here.Store(nil)
	w.conflicts.used.Clear()
}

// staleEverySecond makes every second answer of the source "no such version", while stale is set. The first request is
// for metadata, the second tries the version. It returns a function that resets the count of answers.
func (w *conflictRing) staleEverySecond(stale *bool) (reset func()) {
	calls := 0
	w.far.setFail(func(context.Context) error {
		if calls++; *stale && calls%2 == 0 {
			return claviger.E("far.call", claviger.VersionNotFound, w.shared, nil)
		}
		return nil
	})
	return func() { calls = 0 }
}
