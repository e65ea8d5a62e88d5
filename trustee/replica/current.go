package replica

import (
	"context"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

const (
	// currentTime is how long a passive server answers before it asks the active server again
	// whether it lacks anything. It is longer than a tick, in which it is brought up to date.
	currentTime = 2 * time.Second
	// aloneTime is the same while the active server does not answer.
	aloneTime = 5 * time.Second
	// currentAsk bounds that request; readers wait for it.
	currentAsk = time.Second
)

// Current reports what may be answered from this server's store; see server.Replica.
//
// An active server is sure of what it lacks if it was equal to the passive server since its start,
// or if an operator lets it go on alone, and if it knows of nothing that only the passive server
// holds. A passive server is sure if the active server says so now: an active server that does not
// answer may have gone on alone. Even then the passive server answers lists, if it was complete
// when it last reached the active server since its start.
func (r *Replica) Current(ctx context.Context) (server.Knowledge, error) {
	const op = "replica.Current"
	if c := r.learned.Load(); c != nil && time.Now().Before(c.until) {
		return c.Knowledge, nil
	}
	r.learning.Lock()
	defer r.learning.Unlock()
	if c := r.learned.Load(); c != nil && time.Now().Before(c.until) {
		return c.Knowledge, nil
	}
	// An event from here on clears r.learned after this call has stored it.
	st, err := r.store.Position(ctx)
	if err != nil {
		return server.Knowledge{}, err
	}
	c := &learned{until: time.Now().Add(currentTime)}
	if st.Role == server.RoleActive {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.lacking && !st.Alone {
			return server.Knowledge{}, claviger.E(op, claviger.Unavailable, "", server.ErrLacking)
		}
		c.Sure = (r.equal || st.Alone) && !r.lacking
		c.Lists = c.Sure
		r.learned.Store(c)
		return c.Knowledge, nil
	}
	var p Position
	// Others wait for this request, so it does not end with its own client.
	if err := r.request(context.WithoutCancel(ctx), currentAsk, trustee.VerbPeerHello, st, &p); err != nil {
		c.until = time.Now().Add(aloneTime)
		c.Lists = r.wasComplete.Load()
		r.learned.Store(c)
		return c.Knowledge, nil
	}
	if st, err = r.store.Position(ctx); err == nil { // it may have got changes meanwhile
		c.Sure, err = r.complete(ctx, &st, &p)
	}
	if err != nil {
		return server.Knowledge{}, err
	}
	c.Lists = c.Sure
	r.wasComplete.Store(c.Sure)
	r.learned.Store(c)
	return c.Knowledge, nil
}

// learned is an answer of Current, and how long it may be repeated.
type learned struct {
	server.Knowledge
	until time.Time
}

// complete reports whether this passive server has every change of the active server. While the
// two are in step, the passive server has each change first.
func (r *Replica) complete(ctx context.Context, st, p *Position) (bool, error) {
	if p.Role != server.RoleActive {
		return false, nil
	}
	if had, err := r.store.Has(ctx, p.Head); err != nil || had {
		return had, err
	}
	r.mu.Lock()
	apart := r.offer.mine == st.Head && !r.offer.less.None()
	r.mu.Unlock()
	if !apart && (p.Head.Epoch > st.Head.Epoch || p.Head.Epoch == st.Head.Epoch && p.Head.Seq > st.Head.Seq) {
		return false, claviger.E("replica.Current", claviger.Unavailable, "", server.ErrBehind)
	}
	return false, nil
}
