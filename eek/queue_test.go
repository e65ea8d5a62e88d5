package eek_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"claviger"
	"claviger/eek"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// maker has a fill function that numbers its EDEKs and records its calls.
type maker struct {
	mu    sync.Mutex
	calls []string // "key:n"
	next  int
	epoch map[string]int // number of the current version, by key
	err   error
	delay time.Duration
}

func (m *maker) fill(ctx context.Context, key string, n int) ([]claviger.EDEK, error) {
	m.mu.Lock()
	m.calls = append(m.calls, fmt.Sprintf("%s:%d", key, n))
	err, delay, epoch := m.err, m.delay, m.epoch[key]
	out := make([]claviger.EDEK, n)
	for i := range out {
		out[i] = claviger.EDEK{Version: fmt.Sprintf("%s@%d", key, epoch), IV: fmt.Appendf(nil, "%016d", m.next)}
		m.next++
	}
	m.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, claviger.E("test.fill", claviger.Unavailable, key, ctx.Err())
		}
	}
	return out, err
}

func (m *maker) set(f func()) { m.mu.Lock(); defer m.mu.Unlock(); f() }

// takeCalls returns the recorded calls, and clears them.
func (m *maker) takeCalls() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := strings.Join(m.calls, " ")
	m.calls = nil
	return s
}

func config(m *maker) eek.QueueConfig {
	return eek.QueueConfig{Fill: m.fill, Size: 100, LowWatermark: 0.3, Expiry: 12 * time.Hour, Workers: 2,
		FillTimeout: time.Minute}
}

func newQueue(t *testing.T, cfg eek.QueueConfig) *eek.Queue {
	t.Helper()
	q, err := eek.NewQueue(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	return q
}

func take(t *testing.T, q *eek.Queue, key string, n int) []claviger.EDEK {
	t.Helper()
	got, err := q.Take(t.Context(), key, n)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != max(n, 0) {
		t.Fatalf("took %d EDEKs of %d", len(got), n)
	}
	return got
}

// TestQueueWatermarks: a Take that leaves fewer EDEKs than the watermark starts a refill up to the size.
func TestQueueWatermarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{}
		q := newQueue(t, config(m))
		step := func(n int, wantCalls string, wantReady int) {
			t.Helper()
			take(t, q, "k", n)
			synctest.Wait()
			if got := m.takeCalls(); got != wantCalls {
				t.Errorf("Take(%d) made the calls %q, want %q", n, got, wantCalls)
			}
			if got := q.Len("k"); got != wantReady {
				t.Errorf("after Take(%d) %d ready, want %d", n, got, wantReady)
			}
		}
		step(1, "k:30 k:71", 100) // the first Take fills up to the watermark, and a refill up to the size
		step(70, "", 30)          // at the watermark: no refill
		step(1, "k:71", 100)      // below the watermark
		step(100, "k:100", 100)   // all ready EDEKs
		step(500, "k:400 k:100", 100)
		step(0, "", 100)
		step(-1, "", 100)

		// A first Take of more than the watermark also makes one call.
		take(t, q, "big", 150)
		synctest.Wait()
		if got := m.takeCalls(); got != "big:150 big:100" {
			t.Errorf("first Take of 150 made the calls %q", got)
		}
	})
}

// TestQueueReturnsOnce checks that no EDEK is returned twice.
func TestQueueReturnsOnce(t *testing.T) {
	m := &maker{}
	q := newQueue(t, config(m))
	var seen sync.Map
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				n := rand.IntN(40)
				key := fmt.Sprintf("k%d", rand.IntN(3))
				got, err := q.Take(t.Context(), key, n)
				if err != nil || len(got) != n {
					t.Errorf("Take(%d): %d, %v", n, len(got), err)
					return
				}
				for _, e := range got {
					if _, twice := seen.LoadOrStore(string(e.IV), true); twice {
						t.Errorf("%s was returned twice", e.IV)
					}
					if e.Version != key+"@0" {
						t.Errorf("%s for %s", e.Version, key)
					}
				}
			}
		})
	}
	wg.Wait()
}

// TestQueueBoundsWorkers checks that at most Workers refills run at the same time, and at most one for each key.
func TestQueueBoundsWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int32
		cfg := config(&maker{})
		inner := cfg.Fill
		var background atomic.Bool
		cfg.Fill = func(ctx context.Context, key string, n int) ([]claviger.EDEK, error) {
			if background.Load() {
				if v := now.Add(1); v > most.Load() {
					most.Store(v)
				}
				defer now.Add(-1)
				time.Sleep(time.Second)
			}
			return inner(ctx, key, n)
		}
		q := newQueue(t, cfg)
		for i := range 10 {
			take(t, q, fmt.Sprint("k", i), 1)
		}
		synctest.Wait()
		background.Store(true)
		start := time.Now()
		for i := range 10 {
			for range 80 {
				take(t, q, fmt.Sprint("k", i), 1)
			}
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("Takes of ready EDEKs waited %v", d)
		}
		time.Sleep(20 * time.Second)
		if most.Load() != 2 {
			t.Errorf("%d refills at once, want 2", most.Load())
		}
		for i := range 10 {
			if n := q.Len(fmt.Sprint("k", i)); n < 90 { // a refill computes its size when it begins
				t.Errorf("k%d has %d ready", i, n)
			}
		}
	})
}

// TestQueueDrain: after Drain, no EDEK of the version before is given out, also by a fill that runs meanwhile.
func TestQueueDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{epoch: map[string]int{}}
		q := newQueue(t, config(m))
		roll := func() {
			m.set(func() { m.epoch["k"]++ })
			q.Drain("k")
		}
		want := func(got []claviger.EDEK, version string) {
			t.Helper()
			for i, e := range got {
				if e.Version != version {
					t.Fatalf("EDEK %d of %d is under %s, want %s", i, len(got), e.Version, version)
				}
			}
		}
		want(take(t, q, "k", 1), "k@0")
		synctest.Wait()
		roll()
		if q.Len("k") != 0 {
			t.Errorf("%d left after Drain", q.Len("k"))
		}
		want(take(t, q, "k", 1), "k@1")
		synctest.Wait()

		// During a refill: its EDEKs are dropped.
		m.set(func() { m.delay = time.Second })
		want(take(t, q, "k", 90), "k@1")
		time.Sleep(time.Millisecond)
		roll()
		time.Sleep(2 * time.Second)
		want(take(t, q, "k", 100), "k@2")

		// During the fill of a Take: its EDEKs are dropped, and also the ready ones that the Take had.
		time.Sleep(2 * time.Second)
		done := make(chan []claviger.EDEK)
		go func() {
			got, err := q.Take(t.Context(), "k", 200)
			if err != nil {
				t.Error(err)
			}
			done <- got
		}()
		time.Sleep(time.Millisecond)
		roll()
		got := <-done
		if len(got) != 200 {
			t.Errorf("took %d of 200", len(got))
		}
		want(got, "k@3")

		// During the first fill, while other Takes wait for it.
		time.Sleep(time.Minute)
		roll()
		for range 3 {
			go func() {
				got, err := q.Take(t.Context(), "k", 5)
				if err != nil {
					t.Error(err)
				}
				done <- got
			}()
		}
		time.Sleep(time.Millisecond)
		roll()
		for range 3 {
			want(<-done, "k@5")
		}
		q.Drain("never used")
	})
}

// TestQueueDrainRace calls Drain while Takes and refills of all kinds run, in real time.
func TestQueueDrainRace(t *testing.T) {
	var epoch atomic.Int64 // number of the current version
	cfg := config(nil)
	cfg.Size = 20
	cfg.Fill = func(_ context.Context, _ string, n int) ([]claviger.EDEK, error) {
		out := make([]claviger.EDEK, n)
		e := epoch.Load()
		for i := range out {
			out[i].IV = []byte{byte(e), byte(e >> 8)}
		}
		if rand.IntN(4) == 0 {
			time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
		}
		return out, nil
	}
	q := newQueue(t, cfg)
	var drained atomic.Int64 // epoch of the last Drain that has returned
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				min := drained.Load()
				got, err := q.Take(t.Context(), "k", 1+rand.IntN(30))
				if err != nil {
					t.Error(err)
					return
				}
				for _, e := range got {
					if v := int64(e.IV[0]) | int64(e.IV[1])<<8; v < min {
						t.Errorf("an EDEK of epoch %d after the Drain of epoch %d", v, min)
						return
					}
				}
			}
		})
	}
	for range 1000 {
		e := epoch.Add(1)
		q.Drain("k")
		drained.Store(e)
		if rand.IntN(3) == 0 {
			time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
		}
	}
	close(stop)
	wg.Wait()
}

// TestQueueFirstFillIsShared: the first Takes of a key wait for one fill, and all get its error.
func TestQueueFirstFillIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{delay: time.Second}
		q := newQueue(t, config(m))
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { take(t, q, "k", 1) })
		}
		wg.Wait()
		synctest.Wait()
		if got := m.takeCalls(); !strings.HasPrefix(got, "k:30 k:") || strings.Count(got, "k:") != 2 {
			t.Errorf("20 first Takes made the calls %q", got)
		}

		// All Takes get its error.
		errFill := errors.New("the fill failed")
		m.set(func() { m.err = errFill })
		for range 20 {
			wg.Go(func() {
				if _, err := q.Take(t.Context(), "bad", 1); !errors.Is(err, errFill) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := m.takeCalls(); got != "bad:30" {
			t.Errorf("20 first Takes made the calls %q", got)
		}

		// But if the context of the filling Take ends, the other Takes do not get that error.
		m.set(func() { m.err = nil })
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		wg.Go(func() {
			if _, err := q.Take(short, "left", 1); err == nil {
				t.Error("no error for the Take whose context ended")
			}
		})
		synctest.Wait()
		for range 5 {
			wg.Go(func() { take(t, q, "left", 2) })
		}
		// The context of a waiting Take may also end.
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			if _, err := q.Take(ctx, "left", 1); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
		wg.Wait()
		if got := m.takeCalls(); !strings.HasPrefix(got, "left:30 left:30") {
			t.Errorf("calls %q", got)
		}
	})
}

// TestQueueErrors: names of missing keys are not kept, and a failed refill loses no ready EDEK.
func TestQueueErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{err: claviger.E("test", claviger.KeyNotFound, "k", nil)}
		cfg := config(m)
		var failures []string
		cfg.OnError = func(key string, err error) { failures = append(failures, key+": "+err.Error()) }
		q := newQueue(t, cfg)
		for i := range 1000 {
			if _, err := q.Take(t.Context(), fmt.Sprint("no", i), 1); !claviger.Is(err, claviger.KeyNotFound) {
				t.Fatal(err)
			}
		}
		if q.Keys() != 0 {
			t.Errorf("the queue has %d names of missing keys", q.Keys())
		}

		// An error loses no ready EDEK.
		m.set(func() { m.err = nil })
		first := take(t, q, "k", 1)
		synctest.Wait()
		m.takeCalls()
		m.set(func() { m.err = errors.New("the HSM does not answer") })
		if _, err := q.Take(t.Context(), "k", 101); err == nil || q.Len("k") != 100 {
			t.Errorf("%v; %d left", err, q.Len("k"))
		}
		if next := take(t, q, "k", 1); string(next[0].IV) <= string(first[0].IV) {
			t.Errorf("order lost: %s after %s", next[0].IV, first[0].IV)
		}
		take(t, q, "k", 80)
		synctest.Wait()
		if len(failures) == 0 || failures[0] != "k: the HSM does not answer" {
			t.Errorf("errors of refills: %q", failures)
		}
		m.set(func() { m.err = nil })
		take(t, q, "k", 1) // the next Take tries the refill again
		synctest.Wait()
		if q.Len("k") != 100 {
			t.Errorf("%d ready", q.Len("k"))
		}
	})

	cfg := config(nil)
	cfg.Fill = func(context.Context, string, int) ([]claviger.EDEK, error) { return make([]claviger.EDEK, 3), nil }
	q := newQueue(t, cfg)
	if _, err := q.Take(t.Context(), "k", 1); err == nil || q.Keys() != 0 {
		t.Errorf("a fill function that makes 3 of 30: %v, %d keys", err, q.Keys())
	}
}

// TestQueueSurvivesPanic checks that the queue works after a panic of the fill function.
func TestQueueSurvivesPanic(t *testing.T) {
	m := &maker{}
	cfg := config(m)
	var once sync.Once
	cfg.Fill = func(ctx context.Context, key string, n int) ([]claviger.EDEK, error) {
		once.Do(func() { panic("bug") })
		return m.fill(ctx, key, n)
	}
	q := newQueue(t, cfg)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_, _ = q.Take(t.Context(), "k", 1)
	}()
	if q.Keys() != 0 {
		t.Error("the queue still has the key")
	}
	take(t, q, "k", 1)
}

// TestQueueExpiry: the EDEKs of a key that is not used for the expiry time are dropped.
func TestQueueExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{}
		q := newQueue(t, config(m))
		take(t, q, "idle", 1)
		take(t, q, "busy", 1)
		for range 3 {
			time.Sleep(6 * time.Hour)
			take(t, q, "busy", 1)
		}
		if q.Len("idle") != 0 || q.Keys() != 1 || q.Len("busy") == 0 {
			t.Errorf("idle has %d, busy %d, %d keys", q.Len("idle"), q.Len("busy"), q.Keys())
		}
		m.takeCalls()
		take(t, q, "idle", 1)
		synctest.Wait()
		if got := m.takeCalls(); got != "idle:30 idle:71" {
			t.Errorf("an expired key's next Take made the calls %q", got)
		}
	})
}

// TestQueueClose: Close cancels refills, does not wait for a Take, and may be called again.
func TestQueueClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{}
		cfg := config(m)
		cfg.OnError = func(key string, err error) { t.Errorf("Close was reported as a failure of %s: %v", key, err) }
		q := newQueue(t, cfg)
		take(t, q, "k", 1)
		synctest.Wait()
		m.set(func() { m.delay = time.Second })
		take(t, q, "k", 90) // begins a refill, which Close cancels
		done := make(chan error)
		go func() { _, err := q.Take(t.Context(), "other", 1); done <- err }()
		synctest.Wait()
		start := time.Now()
		q.Close()
		q.Close()
		if d := time.Since(start); d != 0 {
			t.Errorf("Close took %v", d)
		}
		if err := <-done; err != nil {
			t.Errorf("a Take during Close: %v", err)
		}
		if _, err := q.Take(t.Context(), "k", 1); !claviger.Is(err, claviger.Closed) {
			t.Errorf("Take after Close: %v", err)
		}
		q.Drain("k")
		if q.Len("k") != 0 || q.Keys() != 0 {
			t.Error("the queue has EDEKs after Close")
		}
	})
}

// TestQueueFillTimeout: a refill that hangs ends after a time, and the error is reported.
func TestQueueFillTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{}
		cfg := config(m)
		var failures error
		cfg.OnError = func(_ string, err error) { failures = err }
		q := newQueue(t, cfg)
		take(t, q, "k", 1)
		synctest.Wait()
		m.set(func() { m.delay = time.Hour })
		take(t, q, "k", 90)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if !errors.Is(failures, context.DeadlineExceeded) {
			t.Errorf("a refill that hangs: %v", failures)
		}
	})
}

// TestNewQueueRefuses: NewQueue refuses settings with which a queue cannot work, and the error names the setting.
func TestNewQueueRefuses(t *testing.T) {
	for text, change := range map[string]func(*eek.QueueConfig){
		"no fill function": func(c *eek.QueueConfig) { c.Fill = nil },
		"size is 0":        func(c *eek.QueueConfig) { c.Size = 0 },
		"watermark is 0;":  func(c *eek.QueueConfig) { c.LowWatermark = 0 },
		"watermark is 1.5": func(c *eek.QueueConfig) { c.LowWatermark = 1.5 },
		"is below 1":       func(c *eek.QueueConfig) { c.Size = 3 },
		"expiry is 0s":     func(c *eek.QueueConfig) { c.Expiry = 0 },
		"0 fill threads":   func(c *eek.QueueConfig) { c.Workers = 0 },
		"fill timeout":     func(c *eek.QueueConfig) { c.FillTimeout = 0 },
	} {
		cfg := config(&maker{})
		change(&cfg)
		if _, err := eek.NewQueue(cfg); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("want %q, got %v", text, err)
		}
	}
	// In single precision, as in Hadoop, 100 * 0.29 is 29.
	m := &maker{}
	cfg := config(m)
	cfg.LowWatermark = 0.29
	q := newQueue(t, cfg)
	take(t, q, "k", 1)
	if got := m.takeCalls(); !strings.HasPrefix(got, "k:29") {
		t.Errorf("first fill %q", got)
	}
}

func BenchmarkQueueTake1(b *testing.B) {
	m := &maker{}
	cfg := config(m)
	cfg.Fill = func(_ context.Context, _ string, n int) ([]claviger.EDEK, error) {
		return make([]claviger.EDEK, n), nil
	}
	q, err := eek.NewQueue(cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer q.Close()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := q.Take(b.Context(), "k", 1); err != nil {
				b.Error(err)
			}
		}
	})
}
