package nodes

import (
	"testing"
	"time"

	"claviger"
	"claviger/provider"
)

// TestRollIsSeenElsewhere: a generate at node 2 that is sent after a roll at node
// 1 has returned uses the new version, a thousand times.
func TestRollIsSeenElsewhere(t *testing.T) {
	const times = 1000
	ctx := t.Context()
	s := newSite(t, nil)
	one, two := s.start(t).client(t), s.start(t).client(t)
	if _, err := one.Create(ctx, provider.Spec{Name: "zone", Cipher: claviger.DefaultCipher, BitLength: 128}); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for i := range times {
		if _, err := two.Generate(ctx, "zone", 2); err != nil { // so that it remembers the old version
			t.Fatal(err)
		}
		v, err := one.Roll(ctx, "zone", nil)
		if err != nil {
			t.Fatal(err)
		}
		edeks, err := two.Generate(ctx, "zone", 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range edeks {
			if e.Version != v.Name {
				t.Fatalf("time %d: generated under %s after the roll to %s", i, e.Version, v.Name)
			}
		}
		if i%100 == 0 { // the way back, which remembers nothing of the old version
			if _, err := one.Unwrap(ctx, "zone", "", edeks); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d rolls in %v", times, time.Since(begun))
}
