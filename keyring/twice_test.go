package keyring

import (
	"context"
	"testing"

	"claviger"
	"claviger/secret"
)

// twice is a key that was migrated, and that its source has rolled since, so that one
// name is two versions.
type twice struct {
	*shadowLab
	shared         string        // the name
	theirs, ours   claviger.EDEK // under it
	theirDEK, mine secret.Bytes
}

func newTwice(t *testing.T) *twice {
	t.Helper()
	s := newShadowLab(t, migrated, "present", "payroll", false)
	s.record(func(o *Origin) { o.Numbered, o.Counted = true, 1 })
	v := s.rollThere(t)
	if current, err := s.primary.Current(t.Context(), "payroll"); err != nil || current.Name != v.Name {
		t.Fatalf("here %s, there %s, %v", current.Name, v.Name, err)
	}
	theirs, theirDEKs := made(t, s.far.blocks, v.Name, 1)
	ours, deks := made(t, s.primary.Provider, v.Name, 1)
	return &twice{s, v.Name, theirs[0], ours[0], theirDEKs[0], deks[0]}
}

// record changes the journal's record of the key.
func (s *shadowLab) record(change func(*Origin)) {
	s.past.mu.Lock()
	change(&s.past.list[0])
	s.past.mu.Unlock()
	s.origins.forget()
}

// rollThere rolls the key at the source, rollHere the key here.
func (s *shadowLab) rollThere(t *testing.T) claviger.KeyVersion {
	t.Helper()
	v, err := s.far.Roll(t.Context(), "payroll", nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (s *shadowLab) rollHere(t *testing.T) claviger.KeyVersion {
	t.Helper()
	v, err := s.primary.Roll(t.Context(), "payroll", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.forget("payroll")
	return v
}

// silence keeps the source from answering.
func (s *shadowLab) silence() { s.far.setFail(failing(claviger.Unavailable, "connection refused")) }

func (s *shadowLab) decrypt(t *testing.T, e claviger.EDEK) (secret.Bytes, error) {
	t.Helper()
	return s.Decrypt(t.Context(), caller("alice"), "payroll", true, e)
}

func (s *shadowLab) reencryptOne(t *testing.T, e claviger.EDEK) (claviger.EDEK, error) {
	t.Helper()
	return s.Reencrypt(t.Context(), caller("nn"), "payroll", true, e)
}

func (s *shadowLab) compare(t *testing.T) {
	t.Helper()
	if err := s.CompareSources(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// opens wants that an EDEK is opened to the DEK.
func (s *shadowLab) opens(t *testing.T, when string, e claviger.EDEK, want secret.Bytes) {
	t.Helper()
	if dek, err := s.decrypt(t, e); err != nil || !dek.Equal(want) {
		t.Errorf("%s: it is not opened, or to another DEK: %v", when, err)
	}
}

// closed wants that an EDEK is not opened for its version's name.
func (s *shadowLab) closed(t *testing.T, e claviger.EDEK) {
	t.Helper()
	_, err := s.decrypt(t, e)
	wantKind(t, err, claviger.Unavailable)
}

// both are the EDEKs under the shared name.
func (w *twice) both() map[string]claviger.EDEK {
	return map[string]claviger.EDEK{"the source's": w.theirs, "ours": w.ours}
}

// refuses wants that no EDEK of the shared name is opened or re-encrypted.
func (w *twice) refuses(t *testing.T, when string) {
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
func (w *twice) restart() {
	w.conflicts.last = nil
	w.conflicts.known.Store(nil)
	w.conflicts.here.Store(nil)
	w.conflicts.used.Clear()
}

// staleEverySecond has the source say in every second answer that it has no version of the shared name, while stale is
// set: metadata come first, then the made-up EDEK. It returns a function that begins to count again.
func (w *twice) staleEverySecond(stale *bool) (again func()) {
	asked := 0
	w.far.setFail(func(context.Context) error {
		if asked++; *stale && asked%2 == 0 {
			return claviger.E("far.call", claviger.VersionNotFound, w.shared, nil)
		}
		return nil
	})
	return func() { asked = 0 }
}
