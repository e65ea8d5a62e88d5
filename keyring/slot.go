package keyring

import (
	"context"
	"fmt"
	"sync"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/shares"
)

// Slot is a request's place among those that are worked on at once. A face that limits these puts the slot into
// the context, so that the request holds no slot while it waits for a source: a source that hangs must not block
// requests that need no source.
type Slot interface {
	// Release gives the slot up. It may be called without a slot.
	Release()
	// Acquire waits for a slot again, within ctx.
	Acquire(ctx context.Context) error
}

type slotKey struct{}

// WithSlot returns a context of a request that holds the slot.
func WithSlot(ctx context.Context, s Slot) context.Context {
	return context.WithValue(ctx, slotKey{}, s)
}

// waits are the requests that wait for sources. A user never has more of them than there is room left for those of
// all others.
type waits struct {
	places *shares.Shares

	mu   sync.Mutex
	own  int64     // refused since their user had a share already
	full time.Time // when a request was last refused whose user had no share
}

// waitsFull is how long after a refusal CheckSourceWaiting is an error.
const waitsFull = time.Minute

// refuse counts a refusal, and returns its error. own: the user has a share already.
func (w *waits) refuse(own bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	used, most := w.places.Figures()
	text := "this node has as many requests that wait for sources as it takes; ask another, or this one later"
	if own {
		w.own++
		text = "as many of your requests wait for sources here as one user's may; ask another node, or this one later"
	} else {
		w.full = time.Now()
	}
	return claviger.Answer(fmt.Errorf("%d of %d requests wait for sources already (claviger.source.max.waiting), "+
		"%d of them of one user", used, w.places.Size(), most), text)
}

// waitForSource calls f, which may wait for a source, without the request's slot. After an error the request ends,
// and takes no slot again. Waiting requests are bounded too, by user: a request without a slot still has its
// memory. Kind Unavailable.
func (r *Ring) waitForSource(ctx context.Context, op, about string, f func() error) error {
	if !r.sources.none() {
		places, user := r.sources.waits.places, provider.CallerOf(ctx)
		n, own := places.Try(user, 1)
		if n == 0 {
			return claviger.E(op, claviger.Unavailable, about, r.sources.waits.refuse(own))
		}
		defer places.Release(user, n)
	}
	slot, _ := ctx.Value(slotKey{}).(Slot)
	if slot == nil {
		return f()
	}
	slot.Release()
	if err := f(); err != nil {
		return err
	}
	return slot.Acquire(ctx)
}

// SourceWaiting returns how many requests wait for sources now, how many of these are of the user with most, and
// how many may.
func (r *Ring) SourceWaiting() (now, ofOne, most int64) {
	places := r.sources.waits.places
	now, ofOne = places.Figures()
	return now, ofOne, places.Size()
}

// SourceWaitsRefused returns how many requests were refused so far since their user had a share of those that wait
// already.
func (r *Ring) SourceWaitsRefused() int64 {
	w := &r.sources.waits
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.own
}

// CheckSourceWaiting is an error where a user of whose requests none waited was refused within the last minute.
func (r *Ring) CheckSourceWaiting() error {
	w := &r.sources.waits
	w.mu.Lock()
	full := w.full
	w.mu.Unlock()
	if full.IsZero() || time.Since(full) >= waitsFull {
		return nil
	}
	now, ofOne, most := r.SourceWaiting()
	return fmt.Errorf("requests that need a source are sent to other nodes: %d of %d (claviger.source.max.waiting) "+
		"wait for sources, %d of them of one user", now, most, ofOne)
}
