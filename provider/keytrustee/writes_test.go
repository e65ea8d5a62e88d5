package keytrustee

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"claviger"
	"claviger/trustee"
)

// hangingBox is a Box whose Delete hangs until its context is done.
type hangingBox struct{ trustee.Box }

func (hangingBox) Delete(ctx context.Context, _ ...string) error {
	<-ctx.Done()
	return claviger.E("test", claviger.Unavailable, "", ctx.Err())
}

// TestHungChangeIsSeen checks that a change without an answer is recorded as a fault if its caller waited for at least
// slowChange, and is ignored if the caller gave up earlier.
func TestHungChangeIsSeen(t *testing.T) {
	for after, want := range map[time.Duration]bool{time.Second: false, slowChange: true, 30 * time.Second: true} {
		synctest.Test(t, func(t *testing.T) {
			p := New(Config{Box: hangingBox{}})
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			_ = p.cfg.Box.Delete(ctx, "uuid")
			if last, ok := p.LastWrite(); ok != want || want && (last.Err == nil || last.Took < after) {
				t.Errorf("given up after %v: %+v, %t", after, last, ok)
			}
		})
	}
}
