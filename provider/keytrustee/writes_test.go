package keytrustee

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"claviger"
	"claviger/trustee"
)

// hanging is a Box that takes no change before its caller gives up.
type hanging struct{ trustee.Box }

func (hanging) Delete(ctx context.Context, _ ...string) error {
	<-ctx.Done()
	return claviger.E("test", claviger.Unavailable, "", ctx.Err())
}

// TestHungChangeIsSeen: a Key Trustee Server that answers no change is a fault once a caller
// has waited for long. A caller who gives up at once says nothing.
func TestHungChangeIsSeen(t *testing.T) {
	for after, want := range map[time.Duration]bool{time.Second: false, waited: true, 30 * time.Second: true} {
		synctest.Test(t, func(t *testing.T) {
			p := New(Config{Box: hanging{}})
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			_ = p.cfg.Box.Delete(ctx, "uuid")
			if last, ok := p.LastWrite(); ok != want || want && (last.Err == nil || last.Took < after) {
				t.Errorf("given up after %v: %+v, %t", after, last, ok)
			}
		})
	}
}
