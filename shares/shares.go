// Package shares has a weighted semaphore in which one caller cannot take what others
// need. It limits what users can make a server do at a time.
package shares

import (
	"context"
	"slices"
	"sync"
)

// Shares is a weighted semaphore in which one caller cannot take what others need. A
// caller never comes to hold more than what is left for all others: one caller half
// of it, a second a quarter, and so on. Waiters are served caller by caller, so a
// caller with many waiters does not hold up one with few.
type Shares struct {
	size  int64
	exact bool // see New

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

// waiter is a request that waits. granted is set before ready is closed. passed is what
// others got who came later, while this one needed more than there was.
type waiter struct {
	n, granted, passed int64
	ready              chan struct{}
}

// New makes one of that size. exact: a request gets what it asks for or nothing;
// otherwise it may get less, where it asks for more than a caller can have.
func New(size int64, exact bool) *Shares {
	return &Shares{size: size, exact: exact, callers: make(map[string]*holder)}
}

// Acquire waits for n, and returns what it got, to be given back with Release. own is
// true where it got nothing since the caller has a share already.
func (s *Shares) Acquire(caller string, n int64, wait func() (context.Context, context.CancelFunc)) (granted int64,
	own bool, err error) {
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

// Size is what there is of all.
func (s *Shares) Size() int64 { return s.size }

// Try is Acquire without waiting; granted is 0 where it would have to wait.
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
	s.settle(h)
	s.dispatch()
}

// settle drops a caller who waits no more, or holds nothing either. s.mu is held.
func (s *Shares) settle(h *holder) {
	if len(h.queue) > 0 {
		return
	}
	s.waiting = slices.DeleteFunc(s.waiting, func(other *holder) bool { return other == h })
	if h.held == 0 {
		delete(s.callers, h.caller)
	}
}

// dispatch serves whom it can. A caller who holds nothing and needs more than there is
// does not hold up those behind who need less, until these have got half of all together:
// small requests must not pass a large one for ever. s.mu is held.
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
			i++ // one who has a share already blocks no other
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

// grantable is what a caller gets who asks for n; 0 is nothing yet. s.mu is held.
func (s *Shares) grantable(h *holder, n int64) int64 {
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

// Figures returns what is in use, and the largest part of it that one caller has.
func (s *Shares) Figures() (used, most int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.callers {
		most = max(most, h.held)
	}
	return s.used, most
}
