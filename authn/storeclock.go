package authn

import (
	"context"
	"time"

	"claviger"
	"claviger/metastore"
)

const (
	// clocksHold is how long a comparison with the store's clock holds.
	clocksHold = time.Second
	// removalDelay is how long expired tokens are kept, for nodes whose clocks are behind.
	removalDelay = 10 * time.Minute
)

// storeClock compares this node's clock with that of the store of tokens, which all nodes
// have in common. A store without a clock has no other node, and is asked once: what this host
// has written there while its clock was ahead must not date tokens.
type storeClock struct {
	store metastore.Clock
	now   func() time.Time
	turn  chan struct{} // guards last and at: holds one element, which is taken out meanwhile
	last  metastore.Clocks
	at    time.Time // of last; zero: never
}

func newStoreClock(store metastore.Clock, now func() time.Time) *storeClock {
	c := &storeClock{store: store, now: now, turn: make(chan struct{}, 1)}
	c.turn <- struct{}{}
	return c
}

// compare returns both clocks, as they were a moment ago at most.
func (c *storeClock) compare(ctx context.Context) (metastore.Clocks, error) {
	select {
	case <-c.turn:
		defer func() { c.turn <- struct{}{} }()
	case <-ctx.Done():
		return metastore.Clocks{}, claviger.E("authn.Delegations", claviger.Unavailable, "", context.Cause(ctx))
	}
	if !c.at.IsZero() && (c.last.Bound || time.Since(c.at) < clocksHold) {
		return c.last, nil
	}
	clocks, err := c.store.Clocks(ctx)
	if err != nil {
		return clocks, err
	}
	if clocks.Bound {
		clocks.Ahead = 0
	}
	c.last, c.at = clocks, time.Now()
	return clocks, nil
}

// longPast is a time that has passed for all nodes: by the store's clock as well as by
// ours, and a while ago. A node whose clock is ahead must not remove what others take.
func (c *storeClock) longPast(ctx context.Context) (time.Time, error) {
	clocks, err := c.compare(ctx)
	return c.now().Add(-max(0, clocks.Ahead) - removalDelay), err
}

// latest is the later of the two clocks. A token that is dated by it is not over too early
// for a node whose clock is right.
func (c *storeClock) latest(ctx context.Context) (time.Time, error) {
	clocks, err := c.compare(ctx)
	return c.now().Add(max(0, -clocks.Ahead)), err
}

// sure returns *metastore.ClocksApartError where what has expired by our clock may not
// have: another node can tell.
func (c *storeClock) sure(ctx context.Context) error {
	clocks, err := c.compare(ctx)
	if err != nil {
		return err
	}
	return clocks.Apart()
}
