package keyring

import (
	"context"

	"claviger"
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

// away does what may wait for a source, without the request's turn. After an error
// the request is at its end, and takes none again. What waits is bounded too: a
// request without a turn still has its memory. Kind Unavailable.
func (r *Ring) away(ctx context.Context, op, about string, f func() error) error {
	if len(r.sources) > 0 {
		if r.waiting.Add(1) > int64(r.cfg.SourceWaiting) {
			r.waiting.Add(-1)
			return claviger.Errorf(op, claviger.Unavailable, about, "%d requests wait for sources already (claviger.source.max.waiting)", r.cfg.SourceWaiting)
		}
		defer r.waiting.Add(-1)
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

// SourceWaiting returns how many requests wait for sources now, and how many may.
func (r *Ring) SourceWaiting() (now, most int64) {
	return r.waiting.Load(), int64(r.cfg.SourceWaiting)
}
