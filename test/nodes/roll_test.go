package nodes

import (
	"fmt"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
)

// TestRollIsSeenElsewhere: after a roll at node 1 has returned, a generate at node 2 uses the new version, a
// thousand times.
func TestRollIsSeenElsewhere(t *testing.T) {
	// SoftHSM reads all its objects each time, so the test keeps them few.
	const keys, rolls = 20, 50
	ctx := t.Context()
	s := newSite(t, nil)
	one, two := s.start(t).client(t), s.start(t).client(t)
	begun := time.Now()
	for i := range keys {
		key := fmt.Sprintf("zone%d", i)
		if _, err := one.Create(ctx, provider.Spec{Name: key, Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			t.Fatal(err)
		}
		for range rolls {
			old, err := two.Generate(ctx, key, 2) // so that node two caches the old version
			if err != nil {
				t.Fatal(err)
			}
			v, err := one.Roll(ctx, key, nil)
			if err != nil {
				t.Fatal(err)
			}
			edeks, err := two.Generate(ctx, key, 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range edeks {
				if e.Version != v.Name {
					t.Fatalf("generated under %s after the roll to %s", e.Version, v.Name)
				}
			}
			again, err := two.Reencrypt(ctx, key, old)
			if err != nil {
				t.Fatal(err)
			}
			if again[0].Version != v.Name {
				t.Fatalf("re-encrypted under %s after the roll to %s", again[0].Version, v.Name)
			}
		}
		if err := one.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
		if _, err := two.Generate(ctx, key, 2); !claviger.Is(err, claviger.KeyNotFound) {
			t.Fatalf("generated under a key that was deleted: %v", err)
		}
	}
	t.Logf("%d rolls in %v", keys*rolls, time.Since(begun))
}
