package keyring

import (
	"context"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/eek"
)

// flippedPrimary is a primary that flips a bit of the first block that it encrypts under one version.
type flippedPrimary struct {
	*counting
	version *string
}

func (p flippedPrimary) EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error {
	err := p.counting.EncryptBlocksOf(ctx, v, blocks)
	if err == nil && v.Name == *p.version {
		blocks[0] ^= 1
	}
	return err
}

// TestSelfCheckOfMixedBatch: in a batch of own EDEKs and EDEKs of a source, a wrong result of the primary is noticed
// when the own EDEKs are opened, and when all are wrapped.
func TestSelfCheckOfMixedBatch(t *testing.T) {
	var wrong string
	l, far := withSource(t, func(c *Config) {
		primary, _ := c.Primary.(*counting)
		c.Primary, c.SelfCheck = flippedPrimary{primary, &wrong}, eek.CheckTwice
	}, "k")
	old, err := l.primary.Current(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	own, _ := newEDEKs(t, l.primary.Provider, old.Name, 2)
	foreign, _ := newEDEKs(t, far.blocks, "k@0", 2)
	now, err := l.Roll(t.Context(), caller("u"), "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	batch := []claviger.EDEK{own[0], foreign[0], own[1], foreign[1]}
	for n, version := range []string{old.Name, now.Name} {
		wrong = version
		if _, err := l.ReencryptBatch(t.Context(), caller("nn"), "k", batch); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("a wrong result under %s: %v", version, err)
		}
		if err := l.CheckResults(t.Context()); err == nil || !strings.Contains(err.Error(), version) {
			t.Errorf("readiness after %d mismatches: %v", n+1, err)
		}
	}
	wrong = ""
	if _, err := l.ReencryptBatch(t.Context(), caller("nn"), "k", batch); err != nil {
		t.Error(err)
	}
}

// TestMismatchIsReported: a mismatch is reported for an hour.
func TestMismatchIsReported(t *testing.T) {
	l := newTestRing(t, nil)
	if err := l.CheckResults(t.Context()); err != nil {
		t.Errorf("without a mismatch: %v", err)
	}
	m := eek.Mismatch{At: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC), Version: "k@3", Count: 2}
	err := mismatchError(m, m.At.Add(59*time.Minute))
	if !claviger.Is(err, claviger.Unavailable) {
		t.Fatal(err)
	}
	for _, text := range []string{`"k@3"`, "at 2026-11-30T12:00:00Z", "2 times", "claviger.hsm.self.check"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not in %v", text, err)
		}
	}
	if err := mismatchError(m, m.At.Add(time.Hour)); err != nil {
		t.Errorf("an hour later: %v", err)
	}
}
