package kmsapi

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// briefly is how long the tests wait for what does not come.
func briefly(ctx context.Context) func() (context.Context, context.CancelFunc) {
	return func() (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, 10*time.Millisecond) }
}

// TestSharesLeaveRoom: whatever one caller, or a few, hold for ever, others are served
// at once.
func TestSharesLeaveRoom(t *testing.T) {
	for _, weight := range []int64{1, 3, 200} {
		s := newShares(64, false)
		for i, most := range []int64{32, 16, 8, 4} {
			name := fmt.Sprint("mallory", i)
			var held int64
			for range 200 {
				n, _, err := s.acquire(name, weight, briefly(t.Context()))
				if err != nil {
					break
				}
				held += n
			}
			if weight == 200 && i == 3 {
				continue // it is content with an eighth of all, not with less
			}
			if held > most+most/8 || held == 0 {
				t.Errorf("weight %d: caller %d holds %d of 64, want at most %d", weight, i, held, most)
			}
			if _, own, err := s.acquire(name, weight, briefly(t.Context())); err == nil || !own {
				t.Errorf("weight %d: one more is not refused as beyond a share: %v, %v", weight, own, err)
			}
			n, _, err := s.acquire("alice", 1, briefly(t.Context()))
			if err != nil {
				t.Fatalf("weight %d: alice gets nothing beside %d others: %v", weight, i+1, err)
			}
			s.release("alice", n)
		}
		if used, most := s.figures(); used < most || most > 32 {
			t.Errorf("weight %d: figures %d, %d", weight, used, most)
		}
	}
	one := newShares(1, false)
	if n, _, err := one.acquire("a", 500, briefly(t.Context())); n != 1 || err != nil {
		t.Errorf("of a single place: %d, %v", n, err)
	}
	if _, own, err := one.acquire("b", 1, briefly(t.Context())); err == nil || own {
		t.Errorf("a second one of a single place: %v, %v", own, err)
	}
}

// TestSharesByCaller: a caller with many waiters does not stand before one with few,
// and a large request is not passed by small ones for ever.
func TestSharesByCaller(t *testing.T) {
	s := newShares(8, true)
	long := func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), 10*time.Second) }
	get := func(caller string, n int64) <-chan string {
		t.Helper()
		before := s.queued()
		done := make(chan string, 1)
		go func() {
			if _, _, err := s.acquire(caller, n, long); err != nil {
				done <- err.Error()
				return
			}
			done <- caller
		}()
		for len(done) == 0 && s.queued() == before {
			time.Sleep(time.Millisecond)
		}
		return done
	}
	for _, c := range []string{"mallory", "mallory", "mallory", "mallory", "other", "other", "late", "later"} {
		<-get(c, 1)
	}
	var many []<-chan string
	for range 50 {
		many = append(many, get("mallory", 1))
	}
	alice, large := get("alice", 1), get("large", 2)
	s.release("other", 1)
	if got := <-alice; got != "alice" {
		t.Error(got)
	}
	small := get("small", 1)
	s.release("late", 1)
	if n := s.queued(); n != 52 {
		t.Errorf("%d wait, want mallory's 50, a large request and the small one behind it", n)
	}
	for _, c := range []string{"other", "later", "mallory"} {
		s.release(c, 1)
	}
	for _, c := range []<-chan string{large, small} {
		if got := <-c; got != "large" && got != "small" {
			t.Error(got)
		}
	}
	if n := s.queued(); n != 50 {
		t.Errorf("%d wait, want mallory's 50", n)
	}
	for _, c := range []string{"large", "large", "small", "alice", "mallory"} {
		s.release(c, 1)
	}
	served := 0
	for range 3 {
		for _, m := range many {
			select {
			case got := <-m:
				if got != "mallory" {
					t.Error(got)
				}
				served++
			default:
			}
		}
		time.Sleep(time.Millisecond)
	}
	if served == 0 {
		t.Error("with everything free, mallory gets nothing")
	}
}

func (s *shares) queued() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.waiting {
		n += len(h.queue)
	}
	return n
}

// TestSharesAddUp: in a storm no more is given out than there is, all is given back,
// and no waiter is forgotten.
func TestSharesAddUp(t *testing.T) {
	s := newShares(16, false)
	var out atomic.Int64
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			caller := fmt.Sprint("u", i%5)
			for range 200 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(300))*time.Microsecond)
				n, _, err := s.acquire(caller, int64(1+rand.IntN(20)), func() (context.Context, context.CancelFunc) { return ctx, func() {} })
				cancel()
				if err != nil {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
					continue
				}
				if now := out.Add(n); now > s.size {
					t.Errorf("%d of %d are given out", now, s.size)
				}
				out.Add(-n)
				s.release(caller, n)
			}
		})
	}
	wg.Wait()
	if used, most := s.figures(); used != 0 || most != 0 || len(s.callers) != 0 || len(s.waiting) != 0 {
		t.Errorf("in the end %d are in use, %d callers and %d waiters are known", used, len(s.callers), len(s.waiting))
	}
}
