package keyring

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"claviger"
	"claviger/provider"
)

// TestNoEDEKsOfLostVersions: once a version proves to be lost, no EDEK that was made
// under it beforehand is handed out: nobody could open it.
func TestNoEDEKsOfLostVersions(t *testing.T) {
	l := newLab(t, nil)
	create(t, l.primary, "k")
	var lost atomic.Bool
	l.primary.before = func(_ context.Context, call string) error {
		if call == "EncryptBlocks" && lost.Load() {
			return claviger.E("hsm.EncryptBlocks", claviger.Unavailable, "k@0", fmt.Errorf("gone: %w", provider.ErrUnusable))
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
