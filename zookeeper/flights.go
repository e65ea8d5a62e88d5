package zookeeper

import (
	"context"
	"sync"
)

// flights lets callers share an answer that must not be older than their
// question: who asks while an answer is under way waits for the next one,
// together with all others who do.
type flights[K comparable, V any] struct {
	mu    sync.Mutex
	under map[K]*flight[V]
}

// flight is what is under way for one key, and the call that comes after it; nil
// where nobody has asked yet.
type flight[V any] struct{ next *call[V] }

type call[V any] struct {
	done  chan struct{}
	value V
	err   error
}

// do returns what a call of fn returned that began after do was called. It
// returns early when ctx ends; fn does not.
func (f *flights[K, V]) do(ctx context.Context, key K, fn func() (V, error)) (V, error) {
	f.mu.Lock()
	var c *call[V]
	if now := f.under[key]; now == nil {
		if f.under == nil {
			f.under = make(map[K]*flight[V])
		}
		c = &call[V]{done: make(chan struct{})}
		f.under[key] = new(flight[V])
		go f.run(key, c, fn)
	} else {
		if now.next == nil {
			now.next = &call[V]{done: make(chan struct{})}
		}
		c = now.next
	}
	f.mu.Unlock()
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		var none V
		return none, context.Cause(ctx)
	}
}

// run makes one call after the other until nobody waits.
func (f *flights[K, V]) run(key K, c *call[V], fn func() (V, error)) {
	for c != nil {
		c.value, c.err = fn()
		close(c.done)
		f.mu.Lock()
		c = f.under[key].next
		f.under[key].next = nil
		if c == nil {
			delete(f.under, key)
		}
		f.mu.Unlock()
	}
}
