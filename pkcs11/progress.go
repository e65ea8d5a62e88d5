package pkcs11

import (
	"context"
	"sync/atomic"
	"time"
)

// A caller that has another HSM must learn soon that this HSM does not answer. A long operation does not prove that the
// HSM hangs: a batch may need thousands of calls, and a busy HSM serves other callers first. An HSM hangs if no call
// returns.

// stallKey is the key of the limit of WithStallLimit in a context.
type stallKey struct{}

// WithStallLimit limits the time in which an operation with a key makes no progress. An operation makes progress when a
// C_Encrypt that it waits for succeeds. While an operation makes progress, only ctx limits its time. At the limit the
// operation fails with kind Unavailable, as if ctx had ended.
func WithStallLimit(ctx context.Context, limit time.Duration) context.Context {
	return context.WithValue(ctx, stallKey{}, limit)
}

// untilStalled returns a context that ends at the stall limit of ctx. last returns the time of the last progress.
func untilStalled(ctx context.Context, last func() time.Time) (context.Context, context.CancelFunc) {
	limit, _ := ctx.Value(stallKey{}).(time.Duration)
	if limit <= 0 {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	begun := time.Now()
	go func() {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
			at := last()
			if at.Before(begun) {
				at = begun
			}
			left := limit - time.Since(at)
			if left <= 0 {
				cancel(context.DeadlineExceeded)
				return
			}
			timer.Reset(left)
		}
	}()
	return ctx, func() { cancel(nil) }
}

// progress records the time of the last progress of one operation, of all operations with a key, or of all operations
// of a token. A nil *progress records nothing.
type progress struct {
	parent *progress // the progress of the key or the token; nil for a token
	// at is the time of the last call that succeeded, in UnixNano. When an operation begins and no other one is
	// running, at is the time of its beginning.
	at      atomic.Int64
	running atomic.Int32 // operations that have a session, or wait for the HSM to open one
}

// begin records the start of an operation.
func (p *progress) begin() {
	for ; p != nil; p = p.parent {
		if p.running.Add(1) == 1 {
			p.at.Store(time.Now().UnixNano())
		}
	}
}

// end records the end of an operation.
func (p *progress) end() {
	for ; p != nil; p = p.parent {
		p.running.Add(-1)
	}
}

// advance records that a call succeeded.
func (p *progress) advance() {
	for now := time.Now().UnixNano(); p != nil; p = p.parent {
		p.at.Store(now)
	}
}

// last returns the time of the last progress of these operations. If none of them is running, other operations have all
// sessions, and last returns the time of the parent's last progress.
func (p *progress) last() time.Time {
	for p.running.Load() == 0 && p.parent != nil {
		p = p.parent
	}
	return time.Unix(0, p.at.Load())
}
