package kmsapi

import (
	"context"
	"sync"
	"time"
)

// operationContext is the context of an operation: that of its request, with the deadline of its route.
// context.WithDeadline would start a timer and register with the request's context for each operation, although nearly
// all operations end long before. This context does neither. If Done is called, the sweeper checks the context once
// each sweepEvery. So Done is closed up to sweepEvery after the deadline, or after the client has disconnected. Err is
// exact.
type operationContext struct {
	context.Context // of the request
	deadline        time.Time
	sweeper         *sweeper

	mu    sync.Mutex
	err   error                // not nil after the end
	done  chan struct{}        // nil until Done is called
	funcs map[*func()]struct{} // to call at the end, registered by AfterFunc
	// The place in the sweeper's list, guarded by the sweeper's lock.
	next, previous *operationContext
}

// Deadline is part of context.Context.
func (c *operationContext) Deadline() (time.Time, bool) { return c.deadline, true }

// Done is part of context.Context.
func (c *operationContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		} else {
			c.sweeper.add(c)
		}
	}
	return c.done
}

// Err is part of context.Context.
func (c *operationContext) Err() error {
	c.mu.Lock()
	err := c.err
	c.mu.Unlock()
	if err == nil {
		if err = c.due(time.Now()); err != nil {
			c.end(err)
		}
	}
	return err
}

// due returns the reason why the operation must end; nil if it may go on.
func (c *operationContext) due(now time.Time) error {
	if err := c.Context.Err(); err != nil {
		return err
	}
	if !now.Before(c.deadline) {
		return context.DeadlineExceeded
	}
	return nil
}

// AfterFunc calls f in a goroutine after the end, unless stop is called before. Package context uses it for contexts
// that are made of this one.
func (c *operationContext) AfterFunc(f func()) (stop func() bool) {
	c.Done() // registers with the sweeper
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go f()
		return func() bool { return false }
	}
	if c.funcs == nil {
		c.funcs = make(map[*func()]struct{})
	}
	c.funcs[&f] = struct{}{}
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, there := c.funcs[&f]
		delete(c.funcs, &f)
		return there
	}
}

// end ends the context with err. It is also called when the operation has returned.
func (c *operationContext) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	if c.done == nil {
		return
	}
	close(c.done)
	c.sweeper.remove(c)
	for f := range c.funcs {
		go (*f)()
	}
	c.funcs = nil
}

// sweepEvery is the time between two sweeps.
const sweepEvery = 100 * time.Millisecond

// sweeper ends the contexts in its list that are due. It has a timer only while the list has contexts.
type sweeper struct {
	mu    sync.Mutex
	first *operationContext
	armed bool // a timer will call sweep
}

// add puts a context into the list. The caller holds the context's lock.
func (s *sweeper) add(c *operationContext) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.next = s.first; c.next != nil {
		c.next.previous = c
	}
	s.first = c
	if !s.armed {
		s.armed = true
		time.AfterFunc(sweepEvery, s.sweep)
	}
}

// remove takes a context off the list. The caller holds the context's lock.
func (s *sweeper) remove(c *operationContext) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.previous != nil {
		c.previous.next = c.next
	} else {
		s.first = c.next
	}
	if c.next != nil {
		c.next.previous = c.previous
	}
	c.next, c.previous = nil, nil
}

// sweep ends the contexts that are due. It calls end without the sweeper's lock, because end locks the context first
// and then the sweeper.
func (s *sweeper) sweep() {
	now := time.Now()
	var ended []*operationContext
	var errs []error
	s.mu.Lock()
	for c := s.first; c != nil; c = c.next {
		if err := c.due(now); err != nil {
			ended, errs = append(ended, c), append(errs, err)
		}
	}
	if s.armed = s.first != nil; s.armed {
		time.AfterFunc(sweepEvery, s.sweep)
	}
	s.mu.Unlock()
	for i, c := range ended {
		c.end(errs[i])
	}
}
