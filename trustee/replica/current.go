package replica

import (
	"context"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

const (
	// currentTime is how long a passive server answers without asking the active one
	// whether it lacks anything: longer than a tick, in which that brings it up to date.
	currentTime = 2 * time.Second
	// aloneTime is the same while the active one does not answer.
	aloneTime = 5 * time.Second
	// currentAsk bounds that question; readers wait for it.
	currentAsk = time.Second
)

// Current is nil where what this server holds may be answered from. Else a client must
// ask the other; kind Unavailable.
//
// sure: what this server does not find is not there. An active server knows that once
// it has been equal to the passive since its start, or was told to go on alone, and
// does not know of anything that the passive holds. A passive server knows it from the
// active one, at this moment: were that away, it might have gone on alone. Then it
// still lists what it holds where it has held all since its start.
func (r *Replica) Current(ctx context.Context) (server.Knowledge, error) {
	const op = "replica.Current"
	if c := r.known.Load(); c != nil && time.Now().Before(c.until) {
		return c.Knowledge, nil
	}
	r.asking.Lock()
	defer r.asking.Unlock()
	if c := r.known.Load(); c != nil && time.Now().Before(c.until) {
		return c.Knowledge, nil
	}
	// What is learned meanwhile drops what is stored here.
	st, err := r.store.Standing(ctx)
	if err != nil {
		return server.Knowledge{}, err
	}
	c := &known{until: time.Now().Add(currentTime)}
	if st.Role == server.RoleActive {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.lacking && !st.Alone {
			return server.Knowledge{}, claviger.E(op, claviger.Unavailable, "", server.ErrLacking)
		}
		c.Sure = (r.equal || st.Alone) && !r.lacking
		c.Lists = c.Sure
		r.known.Store(c)
		return c.Knowledge, nil
	}
	var p Standing
	// Whoever waits behind this one asks on, so it does not end with him.
	if err := r.ask(context.WithoutCancel(ctx), currentAsk, trustee.VerbPeerHello, st, &p); err != nil {
		c.until = time.Now().Add(aloneTime)
		c.Lists = r.abreastOnce.Load()
		r.known.Store(c)
		return c.Knowledge, nil
	}
	if st, err = r.store.Standing(ctx); err == nil { // it may have been brought on meanwhile
		c.Sure, err = r.abreast(ctx, &st, &p)
	}
	if err != nil {
		return server.Knowledge{}, err
	}
	c.Lists = c.Sure
	r.abreastOnce.Store(c.Sure)
	r.known.Store(c)
	return c.Knowledge, nil
}

// known is what was learned, and for how long that holds.
type known struct {
	server.Knowledge
	until time.Time
}

// abreast tells whether this passive server has all that the active one has. In step
// it has each change before that one.
func (r *Replica) abreast(ctx context.Context, st, p *Standing) (bool, error) {
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
