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

// sharedSecrets is a metastore.Signers in memory. If fault is set, its methods return it.
type sharedSecrets struct {
	mu    sync.Mutex
	state metastore.SignerSecrets
	fault error
}

func (s *sharedSecrets) SignerSecrets(context.Context) (metastore.SignerSecrets, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.state.Version != 0, s.fault
}

func (s *sharedSecrets) SwapSignerSecrets(_ context.Context, n metastore.SignerSecrets) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil || n.Version != s.state.Version {
		return false, s.fault
	}
	n.Version++
	s.state = n
	return true, nil
}

func (s *sharedSecrets) setFault(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = err
}

// rollingNodes starts nodes that share a store and a clock.
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

func (n *rollingNodes) sync(r *RollingSecrets) {
	n.t.Helper()
	if err := r.syncWithStore(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

func current(r *RollingSecrets) secret.Bytes {
	c, _ := r.Secrets()
	return c
}

// accepts reports whether a signature by s is valid for r.
func accepts(r *RollingSecrets, s secret.Bytes) bool {
	_, valid := r.Secrets()
	for _, v := range valid {
		if bytes.Equal(v, s) {
			return true
		}
	}
	return false
}

// TestRollingSecrets: two nodes roll over at the same time, to the same secret. Signatures of the period before stay
// valid, and each rollover writes to the store once.
func TestRollingSecrets(t *testing.T) {
	n := &rollingNodes{t: t, now: time.UnixMilli(1795442630957)}
	a := n.start()
	b := n.start()
	first := current(a)
	if len(first) != 32 || !bytes.Equal(first, current(b)) {
		t.Fatalf("nodes that start together have different secrets, or secrets of %d bytes", len(first))
	}
	for i := range 5 {
		before := current(a)
		n.now = n.now.Add(rollingPeriod)
		// The rollover happens by the clock, before a node writes to the store.
		if bytes.Equal(current(a), before) || !bytes.Equal(current(a), current(b)) {
			t.Fatalf("rollover %d: the nodes differ, or did not roll", i)
		}
		if !accepts(a, before) || !accepts(b, before) {
			t.Fatalf("rollover %d: earlier signatures are not valid", i)
		}
		if i%2 == 0 {
			n.sync(a)
			n.sync(b)
		} else {
			n.sync(b)
			n.sync(a)
		}
		if want := int64(i + 2); n.store.state.Version != want {
			t.Fatalf("rollover %d: the store was written %d times, not %d", i, n.store.state.Version, want)
		}
		if c := n.start(); !bytes.Equal(current(c), current(a)) || !accepts(c, before) {
			t.Fatalf("rollover %d: a node that starts now differs", i)
		}
	}
	if accepts(a, first) {
		t.Error("the first secret is valid after five rollovers")
	}
	_, valid := a.Secrets()
	if len(valid) != 3 {
		t.Errorf("%d secrets are valid, want 3: current, previous and next", len(valid))
	}
}

// TestRollingClockAhead: a cookie of a node whose clock is ahead is valid on other nodes.
func TestRollingClockAhead(t *testing.T) {
	n := &rollingNodes{t: t, now: time.UnixMilli(1795442630957)}
	a, b := n.start(), n.start()
	n.now = n.now.Add(rollingPeriod)
	n.sync(a)
	ahead := current(a)
	n.now = n.now.Add(-time.Second)
	if !accepts(b, ahead) {
		t.Error("b refuses what a signs a second early")
	}
	n.sync(b) // b reads a's rollover from the store
	if !bytes.Equal(current(b), ahead) {
		t.Error("b did not adopt a's rollover")
	}
}

// TestRollingStoreDown: nodes agree while the store fails: after one rollover they keep the secret, because there is no
// next one. When the store works again, they roll over again.
func TestRollingStoreDown(t *testing.T) {
	n := &rollingNodes{t: t, now: time.UnixMilli(1795442630957)}
	a, b := n.start(), n.start()
	n.store.fault = claviger.Errorf("test", claviger.Unavailable, "", "down")
	for i := range 3 {
		n.now = n.now.Add(rollingPeriod)
		if !bytes.Equal(current(a), current(b)) {
			t.Fatalf("after %d rollovers without the store the nodes differ", i)
		}
		if err := a.syncWithStore(t.Context()); !claviger.Is(err, claviger.Unavailable) {
			t.Fatalf("syncWithStore without the store: %v", err)
		}
	}
	old := current(a)
	n.store.fault = nil
	n.sync(b)
	n.sync(a)
	if !bytes.Equal(current(a), current(b)) || !accepts(a, old) {
		t.Error("the nodes do not agree again")
	}
	n.now = n.now.Add(rollingPeriod)
	if bytes.Equal(current(a), old) {
		t.Error("no rollover after the store works again")
	}
	n.store.fault = errors.New("down")
	if _, err := NewRollingSecrets(t.Context(), RollingConfig{Store: &n.store, Period: rollingPeriod}); err == nil {
		t.Error("a node starts without the store")
	}
}

// TestRollingLate: a node that starts after a missed rollover waits for the next one, as Hadoop does.
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
	n.sync(a)
	if want := n.now.Add(rollingPeriod); !n.store.state.Rollover.Equal(want) {
		t.Errorf("the next rollover is at %v, not %v", n.store.state.Rollover, want)
	}
}

// TestRollingRemoved: if the secrets were removed from the store, they are written again.
func TestRollingRemoved(t *testing.T) {
	n := &rollingNodes{t: t, now: time.UnixMilli(1795442630957)}
	a, b := n.start(), n.start()
	signs, next := current(a), a.state.Next
	n.store.state = metastore.SignerSecrets{}
	n.sync(a)
	n.sync(b)
	if !bytes.Equal(current(a), signs) || !bytes.Equal(current(b), signs) ||
		!bytes.Equal(n.store.state.Current, signs) || !bytes.Equal(n.store.state.Next, next) {
		t.Error("the secrets were not written again")
	}
}

// TestRollingRun: three nodes that run at the same time roll over again and again, and end with their context.
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
