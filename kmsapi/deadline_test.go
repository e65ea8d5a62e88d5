package kmsapi

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// waitFor returns the time until ctx ends, and its error.
func waitFor(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	<-ctx.Done()
	return time.Since(began), ctx.Err()
}

// TestOperationContext: the context of an operation, and each context that is derived from it, ends at most sweepEvery
// after the deadline or after the end of the request.
func TestOperationContext(t *testing.T) {
	for name, of := range map[string]func(*testing.T, *operationContext) context.Context{
		"itself": func(_ *testing.T, c *operationContext) context.Context { return c },
		"with cancel": func(t *testing.T, c *operationContext) context.Context {
			ctx, cancel := context.WithCancel(c)
			t.Cleanup(cancel)
			return ctx
		},
		"with a value": func(t *testing.T, c *operationContext) context.Context {
			ctx, cancel := context.WithTimeout(context.WithValue(c, t, 1), time.Hour)
			t.Cleanup(cancel)
			return ctx
		},
		"after others": func(t *testing.T, c *operationContext) context.Context {
			for range 5 {
				other := &operationContext{Context: context.Background(), deadline: time.Now().Add(time.Hour),
					sweeper: c.sweeper}
				other.Done()
				t.Cleanup(func() { other.end(context.Canceled) })
			}
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testOperationContext(t, of) })
		})
	}
}

func testOperationContext(t *testing.T, of func(*testing.T, *operationContext) context.Context) {
	var s sweeper
	request, disconnect := context.WithCancel(t.Context())
	operation := func() *operationContext {
		return &operationContext{Context: request, deadline: time.Now().Add(time.Second), sweeper: &s}
	}
	c := operation()
	defer c.end(context.Canceled)
	if d, ok := of(t, c).Deadline(); !ok || !d.Equal(c.deadline) {
		t.Errorf("deadline %v, %v", d, ok)
	}
	if took, err := waitFor(of(t, c)); took < time.Second || took > time.Second+sweepEvery ||
		!errors.Is(err, context.DeadlineExceeded) || !errors.Is(context.Cause(of(t, c)), context.DeadlineExceeded) {
		t.Errorf("ended after %v with %v, %v", took, err, context.Cause(of(t, c)))
	}
	done := operation()
	ended := of(t, done)
	time.AfterFunc(time.Millisecond, func() { done.end(context.Canceled) })
	if took, err := waitFor(ended); took != time.Millisecond || !errors.Is(err, context.Canceled) {
		t.Errorf("an operation that is done: ended after %v with %v", took, err)
	}
	c = operation()
	defer c.end(context.Canceled)
	time.AfterFunc(sweepEvery/2, disconnect)
	if took, err := waitFor(of(t, c)); took < sweepEvery/2 || took > sweepEvery/2+sweepEvery ||
		!errors.Is(err, context.Canceled) {
		t.Errorf("its client has disconnected: ended after %v with %v", took, err)
	}
}

// TestOperationContextErr: Err is exact, although nobody waits. Without a waiter there is no timer.
func TestOperationContextErr(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sweeper
		request, disconnect := context.WithCancel(t.Context())
		first := &operationContext{Context: request, deadline: time.Now().Add(time.Second), sweeper: &s}
		second := &operationContext{Context: request, deadline: time.Now().Add(time.Hour), sweeper: &s}
		time.Sleep(time.Second - 1)
		if err := first.Err(); err != nil {
			t.Errorf("before the deadline: %v", err)
		}
		time.Sleep(time.Nanosecond)
		if err := first.Err(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("at the deadline: %v", err)
		}
		disconnect()
		if err := second.Err(); !errors.Is(err, context.Canceled) {
			t.Errorf("disconnected: %v", err)
		}
		if s.armed || s.first != nil {
			t.Error("the sweeper runs")
		}
		if _, err := waitFor(first); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// TestSweeperForgets: contexts that have ended are not in the sweeper's list, in whatever order they end, and stopped
// functions are not called.
func TestSweeperForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sweeper
		var all []*operationContext
		for range 6 {
			c := &operationContext{Context: context.Background(), deadline: time.Now().Add(time.Hour), sweeper: &s}
			stop := c.AfterFunc(func() { t.Error("a stopped function was called") })
			if !stop() || stop() {
				t.Error("stop")
			}
			all = append(all, c)
		}
		for _, i := range []int{3, 0, 5, 1, 4, 2} {
			all[i].end(context.Canceled)
			n := 0
			for c := s.first; c != nil; c = c.next {
				if n++; c == all[i] {
					t.Errorf("context %d is in the list", i)
				}
			}
			if want := len(all) - 1; n > want {
				t.Errorf("%d contexts in the list", n)
			}
		}
		if s.first != nil {
			t.Error("the list is not empty")
		}
		time.Sleep(2 * sweepEvery)
		s.mu.Lock()
		if s.armed {
			t.Error("the sweeper runs without contexts")
		}
		s.mu.Unlock()
		called := false
		all[0].AfterFunc(func() { called = true })
		if synctest.Wait(); !called {
			t.Error("a function was not called after the end")
		}
	})
}

// TestSweeperRaces: contexts that end, are waited for and pass their deadline at the same time.
func TestSweeperRaces(t *testing.T) {
	var s sweeper
	var all sync.WaitGroup
	for i := range 200 {
		c := &operationContext{Context: t.Context(), deadline: time.Now().Add(time.Duration(i%3) * time.Millisecond),
			sweeper: &s}
		all.Go(func() { <-c.Done() })
		all.Go(func() { _ = c.Err() })
		all.Go(func() { s.sweep() })
		all.Go(func() { c.end(context.Canceled) })
	}
	all.Wait()
}
