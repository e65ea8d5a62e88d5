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

// Turn is a request's place among those that are worked on at once. A face that
// limits these gives each request its turn, so that it holds none while it waits for
// a source: a source that hangs must not keep requests from being served that need
// none.
type Turn interface {
	// Leave gives the place up. It may be called without one.
	Leave()
	// Return waits for a place again, within ctx.
	Return(ctx context.Context) error
}

type turnKey struct{}

// WithTurn tells what is asked with ctx of its turn.
func WithTurn(ctx context.Context, t Turn) context.Context {
	return context.WithValue(ctx, turnKey{}, t)
}

// waits are the requests that wait for sources. A user never has more of them than there
// is room left for those of all others.
type waits struct {
	places *shares.Shares

	mu   sync.Mutex
	own  int64     // refused since their user had a share already
	full time.Time // when one was last refused whose user had none
}

// waitsFull is how long after a refusal CheckSourceWaiting is an error.
const waitsFull = time.Minute

// refuse notes a refusal, and returns its error.
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
	return claviger.Answer(fmt.Errorf("%d of %d requests wait for sources already (claviger.source.max.waiting), %d of them of one user", used, w.places.Size(), most), text)
}

// away does what may wait for a source, without the request's turn. After an error
// the request is at its end, and takes none again. What waits is bounded too, by user: a
// request without a turn still has its memory. Kind Unavailable.
func (r *Ring) away(ctx context.Context, op, about string, f func() error) error {
	if len(r.sources) > 0 {
		user := provider.CallerOf(ctx)
		n, own := r.waits.places.Try(user, 1)
		if n == 0 {
			return claviger.E(op, claviger.Unavailable, about, r.waits.refuse(own))
		}
		defer r.waits.places.Release(user, n)
	}
	t, _ := ctx.Value(turnKey{}).(Turn)
	if t == nil {
		return f()
	}
	t.Leave()
	if err := f(); err != nil {
		return err
	}
	return t.Return(ctx)
}

// SourceWaiting returns how many requests wait for sources now, how many of these are of
// the user with most, and how many may.
func (r *Ring) SourceWaiting() (now, ofOne, most int64) {
	now, ofOne = r.waits.places.Figures()
	return now, ofOne, r.waits.places.Size()
}

// SourceWaitsRefused returns how many requests were refused so far since their user had
// a share of those that wait already.
func (r *Ring) SourceWaitsRefused() int64 {
	r.waits.mu.Lock()
	defer r.waits.mu.Unlock()
	return r.waits.own
}

// CheckSourceWaiting is an error where a user of whose requests none waited was refused
// within the last minute.
func (r *Ring) CheckSourceWaiting() error {
	r.waits.mu.Lock()
	full := r.waits.full
	r.waits.mu.Unlock()
	if full.IsZero() || time.Since(full) >= waitsFull {
		return nil
	}
	now, ofOne, most := r.SourceWaiting()
	return fmt.Errorf("requests that need a source are sent to other nodes: %d of %d (claviger.source.max.waiting) wait for sources, %d of them of one user", now, most, ofOne)
}
