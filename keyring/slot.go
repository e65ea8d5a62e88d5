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

// Slot is a request's place among the requests that run at the same time. A server that limits these puts the slot into
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

// waits counts the requests that wait for sources. A user never has more of them than there are free places for all
// other users.
type waits struct {
	places *shares.Shares

	mu   sync.Mutex
	own  int64     // requests refused because their user already had as many waiting requests as one user may
	full time.Time // the last time that a request was refused whose user had no waiting request
}

// waitsFull is the time after a refusal for which CheckSourceWaiting returns an error.
const waitsFull = time.Minute

// refuse counts a refusal, and returns its error. own: the user already has as many waiting requests as one user may.
func (w *waits) refuse(own bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	used, most := w.places.Figures()
	text := "too many requests wait for sources at this node; try another node, or try again later"
	if own {
		w.own++
		text = "too many of your requests wait for sources at this node; try another node, or try again later"
	} else {
		w.full = time.Now()
	}
	return claviger.Answer(fmt.Errorf("%d of %d places for requests that wait for sources are in use "+
		"(claviger.source.max.waiting), %d of them of one user", used, w.places.Size(), most), text)
}

// waitForSource calls f, which may wait for a source, without the request's slot. After an error the request ends, and
// does not take a slot again. The number of waiting requests is limited too, also for each user: a request without a
// slot still uses memory. Kind Unavailable.
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

// SourceWaiting returns the number of requests that wait for sources now, the number of those of the user with most of
// them, and the limit.
func (r *Ring) SourceWaiting() (now, ofOne, limit int64) {
	places := r.sources.waits.places
	now, ofOne = places.Figures()
	return now, ofOne, places.Size()
}

// SourceWaitsRefused returns the number of requests that were refused so far because their user already had his share
// of the waiting requests.
func (r *Ring) SourceWaitsRefused() int64 {
	w := &r.sources.waits
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.own
}

// CheckSourceWaiting returns an error if, within the last minute, a request was refused whose user had no waiting
// request.
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
