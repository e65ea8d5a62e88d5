package authn

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/secret"
)

// sharedSecrets is a metastore.Signers in memory; away makes it fail.
type sharedSecrets struct {
	mu    sync.Mutex
	state metastore.SignerSecrets
	away  error
}

func (s *sharedSecrets) SignerSecrets(context.Context) (metastore.SignerSecrets, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.state.Version != 0, s.away
}

func (s *sharedSecrets) SwapSignerSecrets(_ context.Context, n metastore.SignerSecrets) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away != nil || n.Version != s.state.Version {
		return false, s.away
	}
	n.Version++
	s.state = n
	return true, nil
}

// rollingNodes are nodes on one store, with one clock.
type rollingNodes struct {
	t     *testing.T
	store sharedSecrets
	now   time.Time
}

const rollingPeriod = time.Hour

func (n *rollingNodes) start() *RollingSecrets {
	n.t.Helper()
	r, err := NewRollingSecrets(n.t.Context(), RollingConfig{Store: &n.store, Period: rollingPeriod,
		Now: func() time.Time { return n.now }})
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

func (n *rollingNodes) round(r *RollingSecrets) {
	n.t.Helper()
	if err := r.round(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

func current(r *RollingSecrets) secret.Bytes {
	c, _ := r.Secrets()
	return c
}

// takes tells whether r takes what s signs.
func takes(r *RollingSecrets, s secret.Bytes) bool {
	_, valid := r.Secrets()
	for _, v := range valid {
		if bytes.Equal(v, s) {
			return true
		}
	}
	return false
}

func TestRollingSecrets(t *testing.T) {
	n := &rollingNodes{t: t, now: time.UnixMilli(1795442630957)}
	a := n.start()
	b := n.start()
	first := current(a)
	if len(first) != 32 || !bytes.Equal(first, current(b)) {
		t.Fatalf("nodes that start together sign with secrets of %d bytes, and different ones", len(first))
	}
	for i := range 5 {
		before := current(a)
		n.now = n.now.Add(rollingPeriod)
		// The clock is there before either has told the store.
		if bytes.Equal(current(a), before) || !bytes.Equal(current(a), current(b)) {
			t.Fatalf("rollover %d: the nodes differ, or did not roll", i)
		}
		if !takes(a, before) || !takes(b, before) {
			t.Fatalf("rollover %d: what was signed before is not good", i)
		}
		if i%2 == 0 {
			n.round(a)
			n.round(b)
		} else {
			n.round(b)
			n.round(a)
		}
		if want := int64(i + 2); n.store.state.Version != want {
			t.Fatalf("rollover %d: the store was written %d times, not %d", i, n.store.state.Version, want)
		}
		if c := n.start(); !bytes.Equal(current(c), current(a)) || !takes(c, before) {
			t.Fatalf("rollover %d: a node that starts now differs", i)
		}
	}
	if takes(a, first) {
		t.Error("the first secret is good for ever")
	}
	_, valid := a.Secrets()
	if len(valid) != 3 {
		t.Errorf("%d secrets are good: current, previous and next are", len(valid))
	}
}

// TestRollingClockAhead: the others take the cookies of a node whose clock is ahead.
func TestRollingClockAhead(t *testing.T) {
	n := &rollingNodes{t: t, now: time.UnixMilli(1795442630957)}
	a, b := n.start(), n.start()
	n.now = n.now.Add(rollingPeriod)
	n.round(a)
	ahead := current(a)
	n.now = n.now.Add(-time.Second)
	if !takes(b, ahead) {
		t.Error("b refuses what a signs a second early")
	}
	n.round(b) // it learns what a has done
	if !bytes.Equal(current(b), ahead) {
		t.Error("b did not learn of a's roll")
	}
}

func TestRollingStoreAway(t *testing.T) {
	n := &rollingNodes{t: t, now: time.UnixMilli(1795442630957)}
	a, b := n.start(), n.start()
	n.store.away = claviger.Errorf("test", claviger.Unavailable, "", "away")
	for i := range 3 {
		n.now = n.now.Add(rollingPeriod)
		if !bytes.Equal(current(a), current(b)) {
			t.Fatalf("after %d rollovers without the store the nodes differ", i)
		}
		if err := a.round(t.Context()); !claviger.Is(err, claviger.Unavailable) {
			t.Fatalf("a round without the store: %v", err)
		}
	}
	old := current(a)
	n.store.away = nil
	n.round(b)
	n.round(a)
	if !bytes.Equal(current(a), current(b)) || !takes(a, old) {
		t.Error("the nodes do not find together")
	}
	n.now = n.now.Add(rollingPeriod)
	if bytes.Equal(current(a), old) {
		t.Error("no rollover after the store is back")
	}
	n.store.away = errors.New("away")
	if _, err := NewRollingSecrets(t.Context(), RollingConfig{Store: &n.store, Period: rollingPeriod}); err == nil {
		t.Error("a node starts without the store")
	}
}

// TestRollingLate: whoever starts after a rollover that nobody has done waits for
// the next one, as Hadoop does.
func TestRollingLate(t *testing.T) {
	n := &rollingNodes{t: t, now: time.UnixMilli(1795442630957)}
	before := current(n.start())
	n.now = n.now.Add(5*rollingPeriod + rollingPeriod/2)
	a := n.start()
	if !bytes.Equal(current(a), before) {
		t.Error("a missed rollover is done late")
	}
	n.now = n.now.Add(rollingPeriod / 2)
	if bytes.Equal(current(a), before) {
		t.Error("the next rollover is not done in time")
	}
	n.round(a)
	if want := n.now.Add(rollingPeriod); !n.store.state.Rollover.Equal(want) {
		t.Errorf("the next rollover is at %v, not %v", n.store.state.Rollover, want)
	}
}

// TestRollingRemoved: secrets that somebody removed are written again.
func TestRollingRemoved(t *testing.T) {
	n := &rollingNodes{t: t, now: time.UnixMilli(1795442630957)}
	a, b := n.start(), n.start()
	signs := current(a)
	n.store.state = metastore.SignerSecrets{}
	n.round(a)
	n.round(b)
	if !bytes.Equal(current(a), signs) || !bytes.Equal(current(b), signs) ||
		!bytes.Equal(n.store.state.Current, signs) {
		t.Error("the secrets are not there again")
	}
}

func TestRollingRun(t *testing.T) {
	var store sharedSecrets
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	nodes := make([]*RollingSecrets, 3)
	for i := range nodes {
		r, err := NewRollingSecrets(ctx, RollingConfig{Store: &store, Period: 50 * time.Millisecond,
			Poll: 20 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		nodes[i] = r
		group.Go(func() { r.Run(ctx) })
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s, _, _ := store.SignerSecrets(ctx)
		if s.Version >= 5 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("three nodes rolled %d times", s.Version)
		}
	}
	stop()
	group.Wait()
}
