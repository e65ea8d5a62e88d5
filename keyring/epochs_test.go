package keyring

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/secret"
)

// sharedKeys counts the changes of a provider that two Rings share. It sends notices only when the test says so.
type sharedKeys struct {
	provider.Provider
	provider.BlockEncrypter
	epoch, reads atomic.Int64
	slow         time.Duration
	fail         atomic.Pointer[error]
	heard        atomic.Pointer[time.Time] // nil: just now

	mu        sync.Mutex
	announced []metastore.Notice
}

func newShared(t *testing.T) *sharedKeys {
	p := memory.New(memory.Config{SequentialIDs: true})
	t.Cleanup(func() { _ = p.Close() })
	s := &sharedKeys{Provider: p, BlockEncrypter: p}
	s.epoch.Store(1)
	return s
}

func (s *sharedKeys) Roll(ctx context.Context, key string, m secret.Bytes) (claviger.KeyVersion, error) {
	v, err := s.Provider.Roll(ctx, key, m)
	s.epoch.Add(1)
	return v, err
}

func (s *sharedKeys) Epoch(ctx context.Context, _ string) (int64, error) {
	s.reads.Add(1)
	epoch := s.epoch.Load() // read before the delay, so that the answer is as old as possible
	select {
	case <-time.After(s.slow): // a slow store
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err := s.fail.Load(); err != nil {
		return 0, *err
	}
	return epoch, nil
}

func (s *sharedKeys) Announce(_ context.Context, n metastore.Notice) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.announced = append(s.announced, n)
	return nil
}

func (s *sharedKeys) Watch(ctx context.Context, _ func(metastore.Notice)) error {
	<-ctx.Done()
	return nil
}

func (s *sharedKeys) NoticesUntil() time.Time {
	if at := s.heard.Load(); at != nil {
		return *at
	}
	return time.Now()
}

func (s *sharedKeys) ring(t *testing.T) *Ring {
	t.Helper()
	cfg := config(t, s)
	cfg.Shared = s
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// TestRollElsewhere: after a roll at another node has returned, a request that needs the current version never uses the
// old one, even without a notice.
func TestRollElsewhere(t *testing.T) {
	ctx := t.Context()
	s := newShared(t)
	create(t, s, "k")
	here, there := s.ring(t), s.ring(t)
	u := caller("u")
	for range 200 {
		if _, err := there.Generate(ctx, u, "k", 3); err != nil { // remembers the old one
			t.Fatal(err)
		}
		v, err := here.Roll(ctx, u, "k", nil)
		if err != nil {
			t.Fatal(err)
		}
		es, err := there.Generate(ctx, u, "k", 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			if e.Version != v.Name {
				t.Fatalf("generated under %s after the roll to %s", e.Version, v.Name)
			}
		}
		current, err := there.Current(ctx, u, "k")
		if err != nil || current.Name != v.Name {
			t.Fatalf("current is %v (%v), not %s", current, err, v.Name)
		}
		v, err = here.Roll(ctx, u, "k", nil)
		if err != nil {
			t.Fatal(err)
		}
		e, err := there.Reencrypt(ctx, u, "k", true, es[0])
		if err != nil || e.Version != v.Name {
			t.Fatalf("re-encrypted under %s (%v), not %s", e.Version, err, v.Name)
		}
	}
}

// TestEpochReadsAreShared: requests share readings of the epoch, and no request uses a reading that began before the
// request.
func TestEpochReadsAreShared(t *testing.T) {
	ctx := t.Context()
	s := newShared(t)
	s.slow = 5 * time.Millisecond
	create(t, s, "k")
	r := s.ring(t)
	u := caller("u")
	const callers, each = 50, 10
	var group errgroup.Group
	for range callers {
		group.Go(func() error {
			for range each {
				if _, err := r.Generate(ctx, u, "k", 1); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := s.reads.Load(); n > callers*each/4 {
		t.Errorf("%d readings for %d requests", n, callers*each)
	}
	before := s.reads.Load()
	es, err := r.Generate(ctx, u, "k", 1)
	if err != nil || s.reads.Load() == before {
		t.Fatalf("no epoch was read (%v)", err)
	}
	before = s.reads.Load()
	dek, err := r.Decrypt(ctx, u, "k", true, es[0])
	if err != nil || s.reads.Load() != before {
		t.Errorf("a decrypt read an epoch (%v)", err)
	}
	dek.Wipe()
}

// TestEpochUnknown: if the store does not return the epoch, no old version is used, and decrypts are served.
func TestEpochUnknown(t *testing.T) {
	ctx := t.Context()
	s := newShared(t)
	create(t, s, "k")
	r := s.ring(t)
	u := caller("u")
	es, err := r.Generate(ctx, u, "k", 1)
	if err != nil {
		t.Fatal(err)
	}
	unreachable := error(claviger.E("test", claviger.Unavailable, "k", errors.New("no answer")))
	s.fail.Store(&unreachable)
	_, err = r.Generate(ctx, u, "k", 1)
	wantKind(t, err, claviger.Unavailable)
	_, err = r.Current(ctx, u, "k")
	wantKind(t, err, claviger.Unavailable)
	if _, err := r.Decrypt(ctx, u, "k", true, es[0]); err != nil {
		t.Error(err)
	}
	s.fail.Store(nil)
	if _, err := r.Generate(ctx, u, "k", 1); err != nil {
		t.Error(err)
	}
	s.slow = time.Hour
	short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	_, err = r.Generate(short, u, "k", 1)
	wantKind(t, err, claviger.Unavailable)
}

// TestHandleNotice: a notice empties the queue and the caches, for one key or for all keys.
func TestHandleNotice(t *testing.T) {
	ctx := t.Context()
	s := newShared(t)
	r := s.ring(t)
	u := caller("u")
	keys := []string{"a", "b", "c"}
	fill := func() {
		for _, k := range keys {
			if _, err := r.Generate(ctx, u, k, 1); err != nil {
				t.Fatal(err)
			}
			// A refill of the queue in the background caches the key again.
			for limit := time.Now().Add(10 * time.Second); r.queue.Len(k) < r.cfg.QueueSize/2 &&
				time.Now().Before(limit); {
				time.Sleep(time.Millisecond)
			}
		}
	}
	left := func() (l []string) {
		for _, k := range keys {
			if _, ok := r.current.get(k); ok {
				l = append(l, k)
			} else if r.queue.Len(k) > 0 {
				t.Errorf("the queue of %s is not drained", k)
			}
		}
		return l
	}
	for _, k := range keys {
		create(t, s, k)
	}
	fill()
	r.HandleNotice(metastore.Notice{Key: "b", Change: metastore.Rolled})
	if l := left(); !slices.Equal(l, []string{"a", "c"}) {
		t.Errorf("remembered after a notice of b: %v", l)
	}
	fill()
	r.HandleNotice(metastore.Notice{Change: metastore.Invalidated})
	if l := left(); len(l) > 0 {
		t.Errorf("remembered after a notice of any key: %v", l)
	}
	if err := r.Invalidate(ctx, u, "c"); err != nil {
		t.Fatal(err)
	}
	if want := []metastore.Notice{{Key: "c", Change: metastore.Invalidated}}; !slices.Equal(s.announced, want) {
		t.Errorf("announced %v, want %v", s.announced, want)
	}
}

// TestLease: cached keys are used while the store sends notices, not after the end of the lease, and again when the
// store sends notices again.
func TestLease(t *testing.T) {
	ctx := t.Context()
	s := newShared(t)
	create(t, s, "k")
	cfg := config(t, s)
	cfg.Shared, cfg.Lease = s, time.Minute
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	there := func() bool {
		t.Helper()
		m, err := r.Metadata(ctx, caller("u"), "k")
		if err != nil {
			t.Fatal(err)
		}
		return m != nil
	}
	if !there() {
		t.Fatal("the key is missing")
	}
	if err := s.Delete(ctx, "k"); err != nil { // as another node does it
		t.Fatal(err)
	}
	at := func(ago time.Duration) { heard := time.Now().Add(-ago); s.heard.Store(&heard) }
	at(50 * time.Second)
	if !there() || r.Leased() != nil {
		t.Errorf("within the lease it is not remembered: %v", r.Leased())
	}
	at(70 * time.Second)
	if there() {
		t.Error("the lease is over, and a deleted key is served from memory")
	}
	if err := r.Leased(); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("readiness does not know: %v", err)
	}
	s.heard.Store(new(time.Time))
	if there() || r.Leased() == nil {
		t.Error("the store has sent nothing yet, and a deleted key is served from memory")
	}
}

// TestEpochsApply: a change of the epoch drops the key from the caches once. A key that does not exist takes no memory.
func TestEpochsApply(t *testing.T) {
	forgotten := 0
	e := newEpochs(nil, func(string) { forgotten++ })
	defer e.close()
	for i, step := range []struct {
		epoch           int64
		seen, forgotten int
	}{{5, 1, 1}, {5, 1, 1}, {6, 1, 2}, {0, 0, 3}, {6, 1, 4}, {6, 1, 4}} {
		e.apply("k", step.epoch)
		if len(e.seen) != step.seen || forgotten != step.forgotten {
			t.Errorf("step %d: %d epochs are kept, and the key was dropped %d times", i, len(e.seen), forgotten)
		}
	}
}

// TestEpochsClose: close ends the readings and waits for them; after it no reading begins.
func TestEpochsClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := false
		e := newEpochs(func(ctx context.Context, _ string) (int64, error) {
			<-ctx.Done()
			time.Sleep(time.Second)
			ended = true
			return 0, ctx.Err()
		}, func(string) {})
		failed := make(chan error, 1)
		go func() { failed <- e.catchUp(t.Context(), "k") }()
		synctest.Wait()
		began := time.Now()
		e.close()
		if took := time.Since(began); !ended || took != time.Second {
			t.Errorf("close returned after %v; the reading had ended: %t", took, ended)
		}
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("the reading under way: %v", err)
		}
		wantKind(t, e.catchUp(t.Context(), "k"), claviger.Closed)
	})
}
