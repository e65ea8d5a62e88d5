package shares

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

// shortWait is the wait of requests that will not be served.
func shortWait(ctx context.Context) func() (context.Context, context.CancelFunc) {
	return func() (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, 10*time.Millisecond) }
}

// TestSharesLeaveRoom checks that another caller is served at once, however many units a few callers hold for ever.
func TestSharesLeaveRoom(t *testing.T) {
	for _, weight := range []int64{1, 3, 200} {
		s := New(64, false)
		for i, most := range []int64{32, 16, 8, 4} {
			name := fmt.Sprint("mallory", i)
			var held int64
			for range 200 {
				n, _, err := s.Acquire(name, weight, shortWait(t.Context()))
				if err != nil {
					break
				}
				held += n
			}
			if weight == 200 && i == 3 {
				continue // a large request gets at least an eighth of all units, which is not free
			}
			if held > most+most/8 || held == 0 {
				t.Errorf("weight %d: caller %d holds %d of 64, want at most %d", weight, i, held, most)
			}
			if _, own, err := s.Acquire(name, weight, shortWait(t.Context())); err == nil || !own {
				t.Errorf("weight %d: one more request: own %v, %v; want an error, because of the caller's own units",
					weight, own, err)
			}
			n, _, err := s.Acquire("alice", 1, shortWait(t.Context()))
			if err != nil {
				t.Fatalf("weight %d: alice gets nothing while %d others hold units: %v", weight, i+1, err)
			}
			s.Release("alice", n)
		}
		if used, most := s.Figures(); used < most || most > 32 {
			t.Errorf("weight %d: figures %d, %d", weight, used, most)
		}
	}
	one := New(1, false)
	if n, _, err := one.Acquire("a", 500, shortWait(t.Context())); n != 1 || err != nil {
		t.Errorf("the first request for a single unit: %d, %v", n, err)
	}
	if _, own, err := one.Acquire("b", 1, shortWait(t.Context())); err == nil || own {
		t.Errorf("the second request for a single unit: %v, %v", own, err)
	}
}

// TestSharesByCaller checks that a caller with many waiting requests does not delay a caller with few, and that small
// requests do not delay a large one for ever.
func TestSharesByCaller(t *testing.T) {
	s := New(8, true)
	long := func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), 10*time.Second) }
	get := func(caller string, n int64) <-chan string {
		t.Helper()
		before := s.queued()
		done := make(chan string, 1)
		go func() {
			if _, _, err := s.Acquire(caller, n, long); err != nil {
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
	s.Release("other", 1)
	if got := <-alice; got != "alice" {
		t.Error(got)
	}
	small := get("small", 1)
	s.Release("late", 1) // small passes the large request, which needs more
	if n := s.queued(); n != 51 {
		t.Errorf("%d wait, want mallory's 50 and a large request", n)
	}
	if got := <-small; got != "small" {
		t.Error(got)
	}
	for _, c := range []string{"small", "other", "later", "mallory"} {
		s.Release(c, 1)
	}
	if got := <-large; got != "large" {
		t.Error(got)
	}
	if n := s.queued(); n != 50 {
		t.Errorf("%d wait, want mallory's 50", n)
	}
	for _, c := range []string{"large", "large", "alice", "mallory"} {
		s.Release(c, 1)
	}
	served := 0
	for deadline := time.Now().Add(20 * time.Second); served == 0 && time.Now().Before(deadline); {
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
		t.Error("mallory gets nothing, although all units are free")
	}
}

func (s *Shares) queued() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.waiting {
		n += len(h.queue)
	}
	return n
}

// TestSharesAddUp checks that many concurrent requests never hold more units than there are, and that all units are
// free and no caller is left at the end.
func TestSharesAddUp(t *testing.T) {
	s := New(16, false)
	var held atomic.Int64
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			caller := fmt.Sprint("u", i%5)
			for range 200 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(300))*time.Microsecond)
				n, _, err := s.Acquire(caller, int64(1+rand.IntN(20)),
					func() (context.Context, context.CancelFunc) { return ctx, func() {} })
				cancel()
				if err != nil {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
					continue
				}
				if now := held.Add(n); now > s.size {
					t.Errorf("%d of %d units are held", now, s.size)
				}
				held.Add(-n)
				s.Release(caller, n)
			}
		})
	}
	wg.Wait()
	if used, most := s.Figures(); used != 0 || most != 0 || len(s.callers) != 0 || len(s.waiting) != 0 {
		t.Errorf("at the end %d units are in use, %d callers and %d waiting callers are left", used, len(s.callers),
			len(s.waiting))
	}
}

// TestSmallRequestsPassLargeOne checks that a large request which must wait does not delay small requests, and that
// only a limited number of small requests are served before it.
func TestSmallRequestsPassLargeOne(t *testing.T) {
	const size = 256
	s := New(size, true)
	for i, n := range []int64{128, 64, 32} {
		if got, _ := s.Try(fmt.Sprint("mallory", i), n); got != n {
			t.Fatalf("mallory %d gets %d of %d", i, got, n)
		}
	}
	done := make(chan int64)
	go func() {
		n, _, err := s.Acquire("eve", 30,
			func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), 10*time.Second) })
		if err != nil {
			t.Error(err)
		}
		done <- n
	}()
	for s.queued() == 0 {
		time.Sleep(time.Millisecond)
	}
	passed := 0
	for {
		n, own := s.Try("alice", 1)
		if n == 0 {
			if own {
				t.Error("alice is refused because of her own units, but she holds none")
			}
			break
		}
		s.Release("alice", n)
		if passed++; passed > size {
			break
		}
	}
	if passed != size/2 {
		t.Errorf("%d small requests were served before a large one, want %d", passed, size/2)
	}
	s.Release("mallory2", 32)
	if n := <-done; n != 30 {
		t.Errorf("the large request gets %d", n)
	}
	if n, _ := s.Try("alice", 1); n != 1 {
		t.Error("alice gets nothing after the large request was served")
	}
}
