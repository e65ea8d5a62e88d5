package pkcs11

import (
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestConcurrentGenerate makes, finds and uses keys in many goroutines. SoftHSM 2.6 itself fails here: a search beside
// C_GenerateKey reads the half-written file of the new key. From then on there are two objects, or none that works.
func TestConcurrentGenerate(t *testing.T) {
	tok, _ := open(t)
	const makers, each = 6, 10
	g, ctx := errgroup.WithContext(t.Context())
	for m := range makers {
		g.Go(func() error {
			for i := range each {
				id, label := []byte{9, byte(m), byte(i)}, fmt.Sprintf("k%d@%d", m, i)
				if err := tok.GenerateKey(ctx, id, label, 256); err != nil {
					return err
				}
				if _, err := tok.CheckValue(ctx, id, label); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	list, err := tok.List(t.Context())
	if err != nil || len(list) != makers*each {
		t.Errorf("%d keys, %v", len(list), err)
	}
	for _, k := range list {
		if k.Bits != 256 || len(k.ID) != 3 || k.Label == "" {
			t.Errorf("half made: %+v", k)
		}
	}
}
