package replica

import (
	"context"
	"testing"
	"time"
)

// Check does what Run does at each tick. It returns why the two servers are not synchronized.
func Check(ctx context.Context, r *Replica) error {
	r.check(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.syncErr
}

// ProbeDue makes the next Check probe the passive server, even if it was just probed.
func ProbeDue(r *Replica) {
	r.op.Lock()
	defer r.op.Unlock()
	r.probed = time.Time{}
}

// Woken reports whether Run was to check at once since the last call.
func Woken(r *Replica) bool {
	select {
	case <-r.wakeup:
		return true
	default:
		return false
	}
}

// Forget clears the last result of Current.
func Forget(r *Replica) { r.learned.Store(nil) }

// RefusedLongAgo makes the next check send again a copy that the passive server refused, if a store has changed.
func RefusedLongAgo(r *Replica) {
	r.op.Lock()
	defer r.op.Unlock()
	r.refused.at = time.Time{}
}

// SetSyncRounds changes the largest number of pages of a synchronization until the end of the test.
func SetSyncRounds(t *testing.T, n int) {
	before := syncRounds
	syncRounds = n
	t.Cleanup(func() { syncRounds = before })
}

// ForgetIncoming removes the pages of a copy, as the end of Run does.
func ForgetIncoming(r *Replica) { r.forgetIncoming() }

// ForgetProbe makes a server probe its store when it next reports its position.
func ForgetProbe(r *Replica) { r.writeProbe.Forget() }
