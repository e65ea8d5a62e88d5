package keyring

import (
	"context"
	"sync"
	"time"

	"claviger"
	"claviger/metastore"
)

// epochTimeout limits one reading of an epoch.
const epochTimeout = 15 * time.Second

// epochs drops from the caches the keys that other nodes have changed in the store. A key's epoch is a number that
// differs after each change, see metastore.Epochs. A reading of a key's epoch serves all callers that came before it
// began. So at most two readings of a key are needed at a time: one in progress and the next one.
type epochs struct {
	read   func(ctx context.Context, key string) (int64, error) // from the store
	forget func(key string)                                     // drops the key from the caches

	ctx  context.Context // ends with close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	seen  map[string]int64       // the epochs of keys that exist, as they were last read
	reads map[string]*epochReads // by key, while its epoch is read
}

// epochReads are the readings of one key's epoch: one is in progress, and next, if not nil, begins after it.
type epochReads struct{ next *epochCall }

type epochCall struct {
	done chan struct{} // closed at the end; read err after that
	err  error
}

func newEpochs(read func(context.Context, string) (int64, error), forget func(string)) *epochs {
	e := &epochs{read: read, forget: forget, seen: map[string]int64{},
		reads: map[string]*epochReads{}}
	e.ctx, e.stop = context.WithCancel(context.Background())
	return e
}

// catchUp drops the key from the caches if it was changed in the store since it was cached. It sees every change that
// was made before the call. A nil *epochs does nothing.
func (e *epochs) catchUp(ctx context.Context, key string) error {
	if e == nil {
		return nil
	}
	q, err := e.join(key)
	if err != nil {
		return err
	}
	select {
	case <-q.done:
		return q.err
	case <-ctx.Done():
		return claviger.E("keyring.catchUp", claviger.Unavailable, key, context.Cause(ctx))
	}
}

// join returns a reading that has not begun yet.
func (e *epochs) join(key string) (*epochCall, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return nil, claviger.E("keyring.catchUp", claviger.Closed, key, nil)
	}
	if r := e.reads[key]; r != nil {
		if r.next == nil {
			r.next = &epochCall{done: make(chan struct{})}
		}
		return r.next, nil
	}
	r, q := &epochReads{}, &epochCall{done: make(chan struct{})}
	e.reads[key] = r
	e.wg.Go(func() { e.run(key, r, q) })
	return q, nil
}

// run reads the epoch until no caller waits.
func (e *epochs) run(key string, r *epochReads, q *epochCall) {
	for q != nil {
		ctx, cancel := context.WithTimeout(e.ctx, epochTimeout)
		epoch, err := e.read(ctx, key)
		cancel()
		if err == nil {
			e.apply(key, epoch)
		}
		q.err = err
		close(q.done)
		e.mu.Lock()
		q, r.next = r.next, nil
		if q == nil {
			delete(e.reads, key)
		}
		e.mu.Unlock()
	}
}

// apply drops the key from the caches if its epoch changed. Its calls for one key do not overlap.
func (e *epochs) apply(key string, epoch int64) {
	e.mu.Lock()
	known := e.seen[key] == epoch
	e.mu.Unlock()
	if known {
		return
	}
	e.forget(key)
	e.mu.Lock()
	defer e.mu.Unlock()
	if epoch == 0 {
		delete(e.seen, key)
		return
	}
	e.seen[key] = epoch
}

func (e *epochs) close() {
	if e == nil {
		return
	}
	e.mu.Lock()
	e.stop()
	e.mu.Unlock()
	e.wg.Wait()
}

// leased returns c, a cache of keys that other nodes may change. After the end of the lease it returns nil, which
// caches nothing, so each request reads the store.
func leased[V any](r *Ring, c *cache[V]) *cache[V] {
	if r.cfg.Shared == nil || r.cfg.Lease <= 0 || time.Since(r.cfg.Shared.NoticesUntil()) < r.cfg.Lease {
		return c
	}
	return nil
}

// Leased returns nil if cached keys may be used. Its error has the time since which changes by other nodes may be
// missing.
func (r *Ring) Leased() error {
	if r.cfg.Shared == nil || r.cfg.Lease <= 0 {
		return nil
	}
	heard := r.cfg.Shared.NoticesUntil()
	switch {
	case heard.IsZero():
		return claviger.Errorf("keyring.Leased", claviger.Unavailable, "", "the metastore has sent nothing yet")
	case time.Since(heard) >= r.cfg.Lease:
		return claviger.Errorf("keyring.Leased", claviger.Unavailable, "",
			"the last notice of the metastore came at %s, which is longer ago than claviger.metastore.lease (%v): "+
				"another node may have deleted a key since, so nothing is served from "+
				"memory", stamp(heard), r.cfg.Lease)
	}
	return nil
}

// HandleNotice drops from the caches the key that a node has changed, or all keys if the notice has no key.
func (r *Ring) HandleNotice(n metastore.Notice) {
	if n.Key != "" {
		r.forget(n.Key)
		return
	}
	r.forgetAll()
}
