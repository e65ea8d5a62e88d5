package replica

import (
	"context"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

const (
	// currentLife is how long Current returns the same result. It is longer than checkEvery, in which the
	// active server brings the passive server up to date.
	currentLife = 2 * time.Second
	// unreachedLife is the same at a passive server while the active server does not answer.
	unreachedLife = 5 * time.Second
	// currentTimeout is the timeout of the request to the active server. Reads wait for it.
	currentTimeout = time.Second
)

// Current reports which answers of this server's store are reliable; see server.Replica.
//
// An active server is sure if it was equal to the passive server at some time since its start, or if an
// operator lets it work alone, and if it knows of no record that only the passive server holds. A passive
// server is sure if the active server confirms it now: an active server that does not answer may be
// working alone. Even then the passive server answers lists, if it was complete when it last reached the
// active server since its start.
func (r *Replica) Current(ctx context.Context) (server.Knowledge, error) {
	const op = "replica.Current"
	if c := r.learned.Load(); c != nil && time.Now().Before(c.until) {
		return c.Knowledge, nil
	}
	r.currentMu.Lock()
	defer r.currentMu.Unlock()
	if c := r.learned.Load(); c != nil && time.Now().Before(c.until) {
		return c.Knowledge, nil
	}
	events := r.events.Load() // before the state is read; see remember
	st, err := r.store.Position(ctx)
	if err != nil {
		return server.Knowledge{}, err
	}
	c := &learned{until: time.Now().Add(currentLife)}
	if st.Role == server.RoleActive {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.lacking && !st.Alone {
			return server.Knowledge{}, claviger.E(op, claviger.Unavailable, "", server.ErrLacking)
		}
		c.Sure = (r.equal || st.Alone) && !r.lacking
		c.Lists = c.Sure
		r.remember(c, events)
		return c.Knowledge, nil
	}
	var p Position
	// Other calls wait for this request, so it does not end with the context of its own client.
	if err := r.request(context.WithoutCancel(ctx), currentTimeout, trustee.VerbPeerHello, st, &p); err != nil {
		c.until = time.Now().Add(unreachedLife)
		c.Lists = r.wasComplete.Load()
		r.remember(c, events)
		return c.Knowledge, nil
	}
	if st, err = r.store.Position(ctx); err == nil { // it may have changed meanwhile
		c.Sure, err = r.complete(ctx, &st, &p)
	}
	if err != nil {
		return server.Knowledge{}, err
	}
	c.Lists = c.Sure
	r.wasComplete.Store(c.Sure)
	r.remember(c, events)
	return c.Knowledge, nil
}

// learned is a result of Current, with the time until which Current returns it again.
type learned struct {
	server.Knowledge
	until time.Time
}

// remember lets Current return c again, unless c may be older than an event. events is r.events before the state was
// read for c.
func (r *Replica) remember(c *learned, events uint64) {
	r.learned.Store(c)
	if r.events.Load() != events {
		r.learned.CompareAndSwap(c, nil)
	}
}

// unlearn makes the next Current read the state again. It is called after each change of the state.
func (r *Replica) unlearn() {
	r.events.Add(1)
	r.learned.Store(nil)
}

// complete reports whether this passive server has every change of the active server. While the
// two are synchronized, the passive server has each change first.
func (r *Replica) complete(ctx context.Context, st, p *Position) (bool, error) {
	if p.Role != server.RoleActive {
		return false, nil
	}
	if had, err := r.store.Has(ctx, p.Head); err != nil || had {
		return had, err
	}
	r.mu.Lock()
	diverged := r.compared.storeHead == st.Head && !r.compared.copyLacks.None()
	r.mu.Unlock()
	if !diverged && (p.Head.Epoch > st.Head.Epoch || p.Head.Epoch == st.Head.Epoch && p.Head.Seq > st.Head.Seq) {
		return false, claviger.E("replica.Current", claviger.Unavailable, "", server.ErrBehind)
	}
	return false, nil
}
