package hsm_test

import (
	"encoding/hex"
	"log/slog"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/logtest"
	"claviger/metastore"
	"claviger/pkcs11"
)

// TestFinishDoesNotFit: a sweep does not finish a step that does not fit the metastore: a roll of a key that is not
// there, or a creation of a key that is there. Neither does it finish a creation of an older release, which did not
// write down how the key must be. What these steps have made stays on the token.
func TestFinishDoesNotFit(t *testing.T) {
	b := newSite(t)
	b.create(t, "used")
	var text logtest.Buffer
	b.log = slog.New(slog.NewTextHandler(&text, nil))
	p := b.mustOpen(t)
	const plan = `{"bits":256,"attributes":{},"created":"2026-01-01T00:00:00Z"}`
	for i, step := range []metastore.Intent{
		{Key: "gone", Op: "roll", Payload: []byte(plan)}, {Key: "used", Op: "create", Payload: []byte(plan)},
		{Key: "old", Op: "create", Payload: []byte(`{"bits":256}`)},
	} {
		id := []byte{1, 2, 3, 4, 5, 6, 7, byte(i)}
		step.Begun, step.Refs = time.Now(), []metastore.Ref{{Object: hex.EncodeToString(id)}}
		var begun metastore.Intent
		b.withStore(t, func(s metastore.Store) {
			var err error
			if begun, err = s.Begin(t.Context(), step); err != nil {
				t.Fatal(err)
			}
		})
		b.withToken(t, func(tok *pkcs11.Token) {
			label := claviger.VersionName(step.Key, begun.Refs[0].ID)
			if err := tok.GenerateKey(t.Context(), id, label, 256); err != nil {
				t.Fatal(err)
			}
		})
	}
	for range 2 {
		if err := p.Sweep(t.Context(), time.Hour); err != nil {
			t.Error(err)
		}
	}
	if list := pendingSteps(t, b); len(list) != 3 {
		t.Errorf("steps: %+v", list)
	}
	if keys, err := p.Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("keys: %v, %v", keys, err)
	}
	if list, err := p.Versions(t.Context(), "used"); err != nil || len(list) != 1 {
		t.Errorf("versions: %v, %v", list, err)
	}
	if list := objects(t, p); len(list) != 4 {
		t.Errorf("objects: %+v", list)
	}
	for why, want := range map[string]int{"does not fit the metastore": 2, "an older release began it": 1} {
		if n := strings.Count(text.String(), why); n != want {
			t.Errorf("%d lines with %q, want %d: %s", n, why, want, text.String())
		}
	}
	mustClose(t, p)
}
