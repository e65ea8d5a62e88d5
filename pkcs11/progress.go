package pkcs11

import (
	"context"
	"sync/atomic"
	"time"
)

// A caller that has another HSM wants to know soon that this one does not answer. The time that an operation takes does
// not show that: a batch may need thousands of calls, and a busy HSM serves others first. What shows it is that no call
// returns.

// patienceKey is the key of WithPatience in a context.
type patienceKey struct{}

// WithPatience gives operations with a key a limit for the time without progress, in which no C_Encrypt that the
// operation waits for succeeds. An operation that makes progress has no limit but ctx. The error is of kind
// Unavailable, as if ctx had ended.
func WithPatience(ctx context.Context, limit time.Duration) context.Context {
	return context.WithValue(ctx, patienceKey{}, limit)
}

// untilStalled returns a context that ends when the patience of ctx does. last returns when there was progress.
func untilStalled(ctx context.Context, last func() time.Time) (context.Context, context.CancelFunc) {
	limit, _ := ctx.Value(patienceKey{}).(time.Duration)
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

// progress is when operations last showed that the HSM works: one operation, all with a key, or all of a token. A nil
// *progress records nothing.
type progress struct {
	above *progress // that this one is a part of; nil: none
	// at is when the last call succeeded, in UnixNano. It is also the time at which the first operation began, if none
	// was running before.
	at      atomic.Int64
	running atomic.Int32 // operations that have their session, or wait for one of the HSM
}

// begin records the start of an operation.
func (p *progress) begin() {
	for ; p != nil; p = p.above {
		if p.running.Add(1) == 1 {
			p.at.Store(time.Now().UnixNano())
		}
	}
}

// end records the end of an operation.
func (p *progress) end() {
	for ; p != nil; p = p.above {
		p.running.Add(-1)
	}
}

// made records that a call succeeded.
func (p *progress) made() {
	for now := time.Now().UnixNano(); p != nil; p = p.above {
		p.at.Store(now)
	}
}

// last returns when one of the operations last made progress, or, if none is running, when others did: they have all
// sessions.
func (p *progress) last() time.Time {
	for p.running.Load() == 0 && p.above != nil {
		p = p.above
	}
	return time.Unix(0, p.at.Load())
}
