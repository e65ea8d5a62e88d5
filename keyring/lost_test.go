package keyring

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"claviger"
	"claviger/provider"
)

// TestNoEDEKsOfLostVersions: once a version is known to be lost, no EDEK that was made under it before is returned,
// because nobody could open it.
func TestNoEDEKsOfLostVersions(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	var lost atomic.Bool
	l.primary.before = func(_ context.Context, call string) error {
		if call == "EncryptBlocks" && lost.Load() {
			return claviger.E("hsm.EncryptBlocks", claviger.Unavailable, "k@0", fmt.Errorf("gone: %w",
				provider.ErrUnusable))
		}
		return nil
	}
	made, err := l.Generate(t.Context(), caller("u"), "k", 3)
	if err != nil {
		t.Fatal(err)
	}
	lost.Store(true)
	if _, err := l.Generate(t.Context(), caller("u"), "k", 3); err != nil {
		t.Errorf("from the queue, before anything is known: %v", err)
	}
	_, err = l.Decrypt(t.Context(), caller("u"), "k", true, made[0])
	wantKind(t, err, claviger.Unavailable)
	_, err = l.Generate(t.Context(), caller("u"), "k", 3)
	wantKind(t, err, claviger.Unavailable)
}

// losing is a provider that reports by itself which keys it has lost.
type losing struct {
	*counting
	lost func(key string)
}

func (p *losing) OnLost(f func(key string)) { p.lost = f }

// TestLostVersionsAreReported: no EDEK of a lost version is returned, even if no request has used that version since it
// was lost.
func TestLostVersionsAreReported(t *testing.T) {
	var primary *losing
	l := newTestRing(t, func(c *Config) {
		primary = &losing{counting: c.Primary.(*counting)}
		c.Primary = primary
	})
	create(t, l.primary, "k")
	fillQueue(t, l, "k")
	l.primary.before = func(_ context.Context, call string) error {
		if call == "EncryptBlocks" {
			return claviger.E("hsm.EncryptBlocks", claviger.Unavailable, "k@0", fmt.Errorf("gone: %w",
				provider.ErrUnusable))
		}
		return nil
	}
	primary.lost("k")
	_, err := l.Generate(t.Context(), caller("u"), "k", 3)
	wantKind(t, err, claviger.Unavailable)
}

// TestConflictIsNotReencrypted: a migrated key was rolled at its source since, so one name is two versions. The
// source's EDEK opens here to a wrong DEK, which is not re-encrypted.
func TestConflictIsNotReencrypted(t *testing.T) {
	s := newShadowRing(t, migrated, "present", "payroll", false)
	v, err := s.primary.Current(t.Context(), "payroll")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.primary.Roll(t.Context(), "payroll", nil); err != nil {
		t.Fatal(err)
	}
	foreign := s.edek
	foreign.Version = v.Name // the source's name of its new version
	if _, err := s.Reencrypt(t.Context(), caller("nn"), "payroll", true, foreign); err != nil {
		t.Fatalf("before anything is known: %v", err)
	}
	s.past.mu.Lock()
	s.past.list[0].TakenOver = false // the journal's newest record
	s.past.mu.Unlock()
	s.origins.forget()
	for what, again := range map[string]func() error{
		"one": func() error { _, err := s.Reencrypt(t.Context(), caller("nn"), "payroll", true, foreign); return err },
		"batch": func() error {
			_, err := s.ReencryptBatch(t.Context(), caller("nn"), "payroll", []claviger.EDEK{foreign})
			return err
		},
	} {
		err := again()
		wantKind(t, err, claviger.Invalid)
		if err != nil && !strings.Contains(err.Error(), "claviger migrate plan") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
