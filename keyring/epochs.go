package keyring

import (
	"context"
	"sync"
	"time"

	"claviger"
	"claviger/metastore"
)

// epochTimeout ends a question for an epoch that takes longer.
const epochTimeout = 15 * time.Second

// epochs makes what is remembered of keys as new as the store that other nodes
// change. A question for a key's epoch answers all who came before it was begun,
// so however many ask at a time, two are on their way at most.
type epochs struct {
	ask    func(ctx context.Context, key string) (int64, error)
	forget func(key string)

	ctx  context.Context // ends with close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	seen  map[string]int64 // of keys that are there
	lines map[string]*line // of keys that are asked for now
}

// line is what is asked of one key: a question is under way, and the next one, if
// there is, begins at its end.
type line struct{ next *epochCall }

type epochCall struct {
	done chan struct{} // closed at the end; err is read after that
	err  error
}

func newEpochs(ask func(context.Context, string) (int64, error), forget func(string)) *epochs {
	e := &epochs{ask: ask, forget: forget, seen: map[string]int64{}, lines: map[string]*line{}}
	e.ctx, e.stop = context.WithCancel(context.Background())
	return e
}

// catchUp forgets what is remembered of the key if the store has changed it since;
// what was changed before the call is seen. A nil *epochs has nothing to do.
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

// join returns a question that has not begun yet.
func (e *epochs) join(key string) (*epochCall, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return nil, claviger.E("keyring.catchUp", claviger.Closed, key, nil)
	}
	if l := e.lines[key]; l != nil {
		if l.next == nil {
			l.next = &epochCall{done: make(chan struct{})}
		}
		return l.next, nil
	}
	l, q := &line{}, &epochCall{done: make(chan struct{})}
	e.lines[key] = l
	e.wg.Go(func() { e.run(key, l, q) })
	return q, nil
}

// run asks until nobody waits.
func (e *epochs) run(key string, l *line, q *epochCall) {
	for q != nil {
		ctx, cancel := context.WithTimeout(e.ctx, epochTimeout)
		epoch, err := e.ask(ctx, key)
		cancel()
		if err == nil {
			e.apply(key, epoch)
		}
		q.err = err
		close(q.done)
		e.mu.Lock()
		q, l.next = l.next, nil
		if q == nil {
			delete(e.lines, key)
		}
		e.mu.Unlock()
	}
}

// apply forgets the key if it was changed. It is called for one answer after the
// other.
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

// leased is a cache of what other nodes may change, or nil, which remembers nothing,
// once the lease is over: then the store is asked each time.
func leased[V any](r *Ring, c *cache[V]) *cache[V] {
	if r.cfg.Shared == nil || r.cfg.Lease <= 0 || time.Since(r.cfg.Shared.Heard()) < r.cfg.Lease {
		return c
	}
	return nil
}

// Leased tells whether what is remembered of keys may be used: nil, or since when
// nothing was heard of other nodes' changes.
func (r *Ring) Leased() error {
	if r.cfg.Shared == nil || r.cfg.Lease <= 0 {
		return nil
	}
	heard := r.cfg.Shared.Heard()
	switch {
	case heard.IsZero():
		return claviger.Errorf("keyring.Leased", claviger.Unavailable, "", "the metastore has not been heard from yet")
	case time.Since(heard) >= r.cfg.Lease:
		return claviger.Errorf("keyring.Leased", claviger.Unavailable, "",
			"the metastore was last heard from %s, which is longer ago than claviger.metastore.lease (%v): another node may have deleted a key since, so nothing is served from memory", stamp(heard), r.cfg.Lease)
	}
	return nil
}

// Heed forgets what a change, of whichever node, has made untrue; a notice without
// a key makes it forget everything.
func (r *Ring) Heed(n metastore.Notice) {
	if n.Key != "" {
		r.forget(n.Key)
		return
	}
	r.forgetAll()
}
