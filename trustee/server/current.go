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

// errBehind is what a passive server that lacks changes answers.
var errBehind = errors.New("this passive Key Trustee Server lacks changes that the active one has acknowledged, and is being brought up to date: ask that one")

// current is nil where what this server has may be answered from: it is active, or
// lacks nothing, or the active one is away and there is nothing better. Else, as
// after an outage in which the active went on alone, what it does not find may be
// there; kind Unavailable, so that clients ask the other.
func (r *Replica) current(ctx context.Context) error {
	const op = "server.current"
	if time.Now().UnixNano() < r.fresh.Load() {
		return nil
	}
	r.asking.Lock()
	defer r.asking.Unlock()
	if time.Now().UnixNano() < r.fresh.Load() {
		return nil
	}
	st, err := r.store.Standing(ctx)
	if err != nil {
		return err
	}
	life := currentTime
	if st.Role == RolePassive {
		var p Standing
		// Whoever waits behind this one asks on, so it does not end with him.
		err := r.ask(context.WithoutCancel(ctx), currentAsk, verbHello, st, &p)
		switch {
		case err != nil:
			life = aloneTime
		case p.Role == RoleActive && (p.Head.Epoch > st.Head.Epoch || p.Head.Epoch == st.Head.Epoch && p.Head.Seq > st.Head.Seq):
			// In step the passive has each change before the active one.
			return claviger.E(op, claviger.Unavailable, "", errBehind)
		}
	}
	r.fresh.Store(time.Now().Add(life).UnixNano())
	return nil
}
