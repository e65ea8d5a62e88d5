// Package shares has a weighted semaphore in which one caller cannot take the units that others need. It limits the
// work that users can make a server do at the same time.
package shares

import (
	"context"
	"slices"
	"sync"
)

// Shares is a weighted semaphore in which one caller cannot take the units that others need. A caller never holds more
// units than are left for all others: the first caller holds at most half, a second caller a quarter, and so on.
// Waiting requests are served caller by caller, so a caller with many waiting requests does not delay a caller with
// few.
type Shares struct {
	size  int64
	exact bool // see New

	mu      sync.Mutex
	used    int64
	callers map[string]*holder
	waiting []*holder // callers that wait; the first is served next
}

// holder is a caller that holds units or waits for some.
type holder struct {
	caller string
	held   int64
	queue  []*waiter
}

// waiter is a request that waits. granted is set before ready is closed. passed is how many units
// later requests got while this request needed more than was free.
type waiter struct {
	n, granted, passed int64
	ready              chan struct{}
}

// New makes a semaphore with size units. If exact is true, a request gets all its units or nothing. Otherwise it may
// get fewer, if it needs more units than a caller can have.
func New(size int64, exact bool) *Shares {
	return &Shares{size: size, exact: exact, callers: make(map[string]*holder)}
}

// Acquire waits for n units, and returns how many the caller got. The caller gives them back with Release. wait returns
// the context that limits the waiting. own is true if the caller got nothing because it already holds units.
func (s *Shares) Acquire(caller string, n int64, wait func() (context.Context, context.CancelFunc)) (granted int64,
	own bool, err error) {
	s.mu.Lock()
	h := s.callers[caller]
	if h == nil {
		h = &holder{caller: caller}
		s.callers[caller] = h
	}
	if len(s.waiting) == 0 { // the usual case, in which dispatch would serve this request at once
		if granted = s.grantable(h, n); granted > 0 {
			h.held += granted
			s.used += granted
			s.mu.Unlock()
			return granted, false, nil
		}
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
	if w.granted > 0 { // granted at the same moment
		return w.granted, false, nil
	}
	own = h.held > 0
	h.queue = slices.DeleteFunc(h.queue, func(other *waiter) bool { return other == w })
	s.forget(h)
	s.dispatch() // requests behind the removed one may be served now
	return 0, own, context.Cause(ctx)
}

// Size returns the number of all units.
func (s *Shares) Size() int64 { return s.size }

// Try is Acquire without waiting. granted is 0 if Acquire would wait.
func (s *Shares) Try(caller string, n int64) (granted int64, own bool) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	granted, own, _ = s.Acquire(caller, n, func() (context.Context, context.CancelFunc) { return ended, func() {} })
	return granted, own
}

// Release gives back what Acquire or Try granted.
func (s *Shares) Release(caller string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.callers[caller]
	h.held -= n
	s.used -= n
	s.forget(h)
	s.dispatch()
}

// forget removes a caller that neither waits nor holds units. s.mu is held.
func (s *Shares) forget(h *holder) {
	if len(h.queue) > 0 {
		return
	}
	s.waiting = slices.DeleteFunc(s.waiting, func(other *holder) bool { return other == h })
	if h.held == 0 {
		delete(s.callers, h.caller)
	}
}

// dispatch serves waiting requests. If a caller holds nothing and needs more units than are free, smaller requests
// behind it are served first, until they have got half of all units. After that they wait, because a large request must
// not wait for ever. s.mu is held.
func (s *Shares) dispatch() {
	var large []*waiter
	for i := 0; i < len(s.waiting); {
		h := s.waiting[i]
		w := h.queue[0]
		n := s.grantable(h, w.n)
		if n == 0 {
			if h.held == 0 {
				large = append(large, w)
			}
			i++ // a caller that holds units blocks no other
			continue
		}
		for _, l := range large {
			if l.passed+n > s.size/2 {
				return
			}
		}
		for _, l := range large {
			l.passed += n
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

// grantable returns how many units a request for n gets now; 0 if it must wait. s.mu is held.
func (s *Shares) grantable(h *holder, n int64) int64 {
	free := s.size - s.used
	room := (free - h.held) / 2 // so that the caller then holds no more units than are left
	if h.held == 0 && free > 0 {
		room = max(room, 1)
	}
	n = min(n, max(1, s.size/2)) // a caller may have at most half
	const minShare = 8           // a large request gets at least 1/8 of all units
	switch {
	case n <= room:
		return n
	case h.held == 0 && !s.exact && room >= max(1, s.size/minShare):
		return room
	}
	return 0
}

// Figures returns how many units are in use, and how many of them the largest caller holds.
func (s *Shares) Figures() (used, largest int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.callers {
		largest = max(largest, h.held)
	}
	return s.used, largest
}
