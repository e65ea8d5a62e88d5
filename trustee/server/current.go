package server

import (
	"context"
	"errors"
	"time"

	"claviger"
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

var (
	// errBehind is what a passive server that lacks changes answers.
	errBehind = errors.New("this passive Key Trustee Server lacks changes that the active one has acknowledged, and is being brought up to date: ask that one")
	// errLacking is what an active server answers that knows that it lacks changes.
	errLacking = errors.New("this active Key Trustee Server lacks what the passive one holds: ask that one; claviger trustee status here says what to do")
)

// current is nil where what this server holds may be answered from. Else a client must
// ask the other; kind Unavailable.
//
// sure: what this server does not find is not there. An active server knows that once
// it has been equal to the passive since its start, or was told to go on alone, and
// does not know of anything that the passive holds. A passive server knows it from the
// active one, at this moment: were that away, it might have gone on alone. Then it
// still lists what it holds where it has held all since its start.
func (r *Replica) current(ctx context.Context) (knowledge, error) {
	const op = "server.current"
	if c := r.known.Load(); c != nil && time.Now().Before(c.until) {
		return *c, nil
	}
	r.asking.Lock()
	defer r.asking.Unlock()
	if c := r.known.Load(); c != nil && time.Now().Before(c.until) {
		return *c, nil
	}
	// What is learned meanwhile drops what is stored here.
	st, err := r.store.Standing(ctx)
	if err != nil {
		return knowledge{}, err
	}
	c := &knowledge{until: time.Now().Add(currentTime)}
	if st.Role == RoleActive {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.lacking && !st.Alone {
			return knowledge{}, claviger.E(op, claviger.Unavailable, "", errLacking)
		}
		c.sure = (r.equal || st.Alone) && !r.lacking
		c.lists = c.sure
		r.known.Store(c)
		return *c, nil
	}
	var p Standing
	// Whoever waits behind this one asks on, so it does not end with him.
	if err := r.ask(context.WithoutCancel(ctx), currentAsk, verbHello, st, &p); err != nil {
		c.until = time.Now().Add(aloneTime)
		c.lists = r.abreastOnce.Load()
		r.known.Store(c)
		return *c, nil
	}
	if st, err = r.store.Standing(ctx); err == nil { // it may have been brought on meanwhile
		c.sure, err = r.abreast(ctx, &st, &p)
	}
	if err != nil {
		return knowledge{}, err
	}
	c.lists = c.sure
	r.abreastOnce.Store(c.sure)
	r.known.Store(c)
	return *c, nil
}

// knowledge is whether absence here is absence, and for how long that holds.
type knowledge struct {
	sure  bool // what is not found is not there
	lists bool // lists are whole, as far as anybody knows
	until time.Time
}

// abreast tells whether this passive server has all that the active one has. In step
// it has each change before that one.
func (r *Replica) abreast(ctx context.Context, st, p *Standing) (bool, error) {
	if p.Role != RoleActive {
		return false, nil
	}
	if had, err := r.store.Has(ctx, p.Head); err != nil || had {
		return had, err
	}
	r.mu.Lock()
	apart := r.offer.mine == st.Head && !r.offer.less.None()
	r.mu.Unlock()
	if !apart && (p.Head.Epoch > st.Head.Epoch || p.Head.Epoch == st.Head.Epoch && p.Head.Seq > st.Head.Seq) {
		return false, claviger.E("server.current", claviger.Unavailable, "", errBehind)
	}
	return false, nil
}
