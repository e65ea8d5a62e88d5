package nodes

import (
	"fmt"
	"os"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/test/hadoop"
)

// TestRollIsSeenElsewhere: after a roll at node 1 has returned, a generate at node 2 uses the new version, two hundred
// times, and a thousand times with CLAVIGER_SOAK (make soak). So does a generate at node 3, which makes EDEKs without
// the HSM. After a deletion neither makes EDEKs.
func TestRollIsSeenElsewhere(t *testing.T) {
	// SoftHSM reads all its objects each time, so the test keeps them few.
	const rolls = 50
	keys := 4
	if os.Getenv("CLAVIGER_SOAK") != "" {
		keys = 20
	}
	ctx := t.Context()
	s := newSite(t, nil)
	without := &site{conf: t.TempDir(), hsm: s.hsm, store: s.store}
	without.write(t, hadoop.Conf{"claviger.hsm.generate": "implied"})
	one, two, three := s.start(t).client(t), s.start(t).client(t), without.start(t).client(t)
	begun := time.Now()
	for i := range keys {
		key := fmt.Sprintf("zone%d", i)
		if _, err := one.Create(ctx, provider.Spec{Name: key, Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			t.Fatal(err)
		}
		for range rolls {
			old, err := two.Generate(ctx, key, 2) // so that nodes two and three cache the old version
			if err == nil {
				_, err = three.Generate(ctx, key, 1)
			}
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
			implied, err := three.Generate(ctx, key, 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range append(edeks, implied...) {
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
		for _, node := range []*kmsclient.Provider{two, three} {
			if _, err := node.Generate(ctx, key, 2); !claviger.Is(err, claviger.KeyNotFound) {
				t.Fatalf("generated under a key that was deleted: %v", err)
			}
		}
	}
	t.Logf("%d rolls in %v", keys*rolls, time.Since(begun))
}
