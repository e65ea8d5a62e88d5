package replica

import (
	"context"
	"time"
)

// Check does what Run does at each tick. It returns why the two servers are not in step.
func Check(ctx context.Context, r *Replica) error {
	r.check(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.why
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
