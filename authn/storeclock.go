package authn

import (
	"context"
	"time"

	"claviger"
	"claviger/metastore"
)

const (
	// clocksTTL is the time for which a comparison with the store's clock is used.
	clocksTTL = time.Second
	// removalDelay is the time for which expired tokens are kept, for nodes whose clocks are behind.
	removalDelay = 10 * time.Minute
)

// storeClock compares this node's clock with the clock of the token store, which all nodes share. A store without its
// own clock serves only this node, so the comparison is made once and always gives 0. Otherwise a time that this host
// wrote while its clock was ahead would date new tokens.
type storeClock struct {
	store metastore.Clock
	now   func() time.Time
	lock  chan struct{} // guards last and at: holds one element, which is taken out meanwhile
	last  metastore.Clocks
	at    time.Time // of last; zero: never
}

func newStoreClock(store metastore.Clock, now func() time.Time) *storeClock {
	c := &storeClock{store: store, now: now, lock: make(chan struct{}, 1)}
	c.lock <- struct{}{}
	return c
}

// compare returns both clocks. The comparison is at most clocksTTL old.
func (c *storeClock) compare(ctx context.Context) (metastore.Clocks, error) {
	select {
	case <-c.lock:
		defer func() { c.lock <- struct{}{} }()
	case <-ctx.Done():
		return metastore.Clocks{}, claviger.E("authn.Delegations", claviger.Unavailable, "", context.Cause(ctx))
	}
	if !c.at.IsZero() && (c.last.LowerBound || time.Since(c.at) < clocksTTL) {
		return c.last, nil
	}
	clocks, err := c.store.Clocks(ctx)
	if err != nil {
		return clocks, err
	}
	if clocks.LowerBound {
		clocks.Ahead = 0
	}
	c.last, c.at = clocks, time.Now()
	return clocks, nil
}

// removalTime returns the time before which expired tokens may be removed. It is removalDelay ago, by the store's
// clock as well as by this node's: a node whose clock is ahead must not remove a token that other nodes still accept.
func (c *storeClock) removalTime(ctx context.Context) (time.Time, error) {
	clocks, err := c.compare(ctx)
	return c.now().Add(-max(0, clocks.Ahead) - removalDelay), err
}

// laterClock returns the time of the later of the two clocks. New tokens are dated by it, so they do not expire too
// early on a node whose clock is right.
func (c *storeClock) laterClock(ctx context.Context) (time.Time, error) {
	clocks, err := c.compare(ctx)
	return c.now().Add(max(0, -clocks.Ahead)), err
}

// checkAgreement returns *metastore.ClocksDifferError if the clocks differ too much to say whether a token has
// expired. Another node may be able to.
func (c *storeClock) checkAgreement(ctx context.Context) error {
	clocks, err := c.compare(ctx)
	if err != nil {
		return err
	}
	return clocks.Check()
}
