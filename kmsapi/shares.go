package kmsapi

import (
	"context"
	"slices"
	"sync"
)

// shares is a weighted semaphore in which one caller cannot take what others need. A
// caller never comes to hold more than what is left for all others: one caller half
// of it, a second a quarter, and so on. Waiters are served caller by caller, so a
// caller with many waiters does not hold up one with few.
type shares struct {
	size int64
	// exact: a request gets what it asks for or nothing. Otherwise it may get less,
	// where it asks for more than a caller can have.
	exact bool

	mu      sync.Mutex
	used    int64
	callers map[string]*holder
	waiting []*holder // those with waiters; the first is served next
}

// holder is a caller who holds something or waits.
type holder struct {
	caller string
	held   int64
	queue  []*waiter
}

// waiter is a request that waits. granted is set before ready is closed.
type waiter struct {
	n, granted int64
	ready      chan struct{}
}

func newShares(size int64, exact bool) *shares {
	return &shares{size: size, exact: exact, callers: make(map[string]*holder)}
}

// acquire waits for n, and returns what it got, to be given back with release. own is
// true where it got nothing since the caller has a share already.
func (s *shares) acquire(caller string, n int64, wait func() (context.Context, context.CancelFunc)) (granted int64, own bool, err error) {
	s.mu.Lock()
	h := s.callers[caller]
	if h == nil {
		h = &holder{caller: caller}
		s.callers[caller] = h
	}
	w := &waiter{n: n, ready: make(chan struct{})}
	if h.queue = append(h.queue, w); len(h.queue) == 1 {
		s.waiting = append(s.waiting, h)
	}
	s.dispatch()
	granted = w.granted
	s.mu.Unlock()
	if granted > 0 {
		return granted, false, nil
	}
	ctx, cancel := wait()
	defer cancel()
	select {
	case <-w.ready:
		return w.granted, false, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.granted > 0 { // in the same moment
		return w.granted, false, nil
	}
	own = h.held > 0
	h.queue = slices.DeleteFunc(h.queue, func(other *waiter) bool { return other == w })
	s.settle(h)
	s.dispatch() // it may have stood before others
	return 0, own, context.Cause(ctx)
}

// release gives back what acquire granted.
func (s *shares) release(caller string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.callers[caller]
	h.held -= n
	s.used -= n
	s.settle(h)
	s.dispatch()
}

// settle drops a caller who waits no more, or holds nothing either. s.mu is held.
func (s *shares) settle(h *holder) {
	if len(h.queue) > 0 {
		return
	}
	s.waiting = slices.DeleteFunc(s.waiting, func(other *holder) bool { return other == h })
	if h.held == 0 {
		delete(s.callers, h.caller)
	}
}

// dispatch serves whom it can. s.mu is held.
func (s *shares) dispatch() {
	for i := 0; i < len(s.waiting); {
		h := s.waiting[i]
		w := h.queue[0]
		n := s.grantable(h, w.n)
		if n == 0 {
			if h.held == 0 {
				return // it needs more than there is: those behind it must not pass it for ever
			}
			i++ // it has its share, and blocks no other
			continue
		}
		w.granted = n
		h.held += n
		s.used += n
		close(w.ready)
		h.queue = h.queue[1:]
		s.waiting = slices.Delete(s.waiting, i, i+1)
		if len(h.queue) > 0 {
			s.waiting = append(s.waiting, h)
		}
	}
}

// grantable is what a caller gets who asks for n; 0 is nothing yet. s.mu is held.
func (s *shares) grantable(h *holder, n int64) int64 {
	free := s.size - s.used
	room := (free - h.held) / 2 // afterwards it holds no more than is left
	if h.held == 0 && free > 0 {
		room = max(room, 1)
	}
	n = min(n, max(1, s.size/2)) // who asks for more than one may have gets that
	const least = 8              // part of all that a large request is content with
	switch {
	case n <= room:
		return n
	case h.held == 0 && !s.exact && room >= max(1, s.size/least):
		return room
	}
	return 0
}

// figures returns what is in use, and the largest part of it that one caller has.
func (s *shares) figures() (used, most int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.callers {
		most = max(most, h.held)
	}
	return s.used, most
}
