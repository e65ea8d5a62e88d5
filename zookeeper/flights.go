package zookeeper

import (
	"context"
	"sync"
)

// flights lets callers share a result that must not be older than their request. A caller that comes while a call
// runs waits for the next call, and shares that with all other such callers.
type flights[K comparable, V any] struct {
	mu      sync.Mutex
	running map[K]*flight[V]
}

// flight is the running call for one key. next is the call after it; nil if no caller waits for one.
type flight[V any] struct{ next *call[V] }

type call[V any] struct {
	done  chan struct{}
	value V
	err   error
}

// do returns the result of a call of fn that began after do was called. When ctx ends, do returns early, and fn
// runs on.
func (f *flights[K, V]) do(ctx context.Context, key K, fn func() (V, error)) (V, error) {
	f.mu.Lock()
	var c *call[V]
	if current := f.running[key]; current == nil {
		if f.running == nil {
			f.running = make(map[K]*flight[V])
		}
		c = &call[V]{done: make(chan struct{})}
		f.running[key] = new(flight[V])
		go f.run(key, c, fn)
	} else {
		if current.next == nil {
			current.next = &call[V]{done: make(chan struct{})}
		}
		c = current.next
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

// run makes one call after the other until no caller waits.
func (f *flights[K, V]) run(key K, c *call[V], fn func() (V, error)) {
	for c != nil {
		c.value, c.err = fn()
		close(c.done)
		f.mu.Lock()
		c = f.running[key].next
		f.running[key].next = nil
		if c == nil {
			delete(f.running, key)
		}
		f.mu.Unlock()
	}
}
