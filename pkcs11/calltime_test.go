package pkcs11

import (
	"testing"
	"testing/synctest"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/softhsm/softhsmtest"
)

// TestCallTime: the time of a call falls at once, and rises when no shorter call was seen for two periods.
func TestCallTime(t *testing.T) {
	var c callTime
	at := time.Now()
	for i, step := range []struct {
		after, took, want time.Duration
	}{
		{0, 60 * time.Millisecond, 60 * time.Millisecond},
		{time.Millisecond, 70 * time.Millisecond, 60 * time.Millisecond},
		{time.Millisecond, time.Millisecond, time.Millisecond},
		{callTimePeriod, 60 * time.Millisecond, time.Millisecond},
		{callTimePeriod, 50 * time.Millisecond, 50 * time.Millisecond},
		{3 * callTimePeriod, 90 * time.Millisecond, 90 * time.Millisecond},
	} {
		at = at.Add(step.after)
		c.add(step.took, at)
		if got := time.Duration(c.shortest.Load()); got != step.want {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
}

// forget lets the next call count alone.
func (c *callTime) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.since = time.Time{}
}

// TestCallsAtOnce: a key makes more calls at the same time if a call takes long, and no more than a quarter of the
// sessions, so that other keys work also while all of these calls hang.
func TestCallsAtOnce(t *testing.T) {
	for i, c := range []struct {
		sessions, want int
		took           time.Duration
	}{
		{33, 1, time.Millisecond}, {33, 6, 60 * time.Millisecond}, {33, 8, 200 * time.Millisecond},
		{4, 1, 200 * time.Millisecond},
	} {
		cfg := config(softhsmtest.New(t))
		cfg.MaxSessions = c.sessions
		tok, m := openAs(t, cfg)
		id, label := generate(t, tok, byte(i), 128)
		if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, blockSize)); err != nil {
			t.Fatal(err)
		}
		tok.callTime.forget()
		tok.callTime.add(c.took, time.Now())
		release := m.Hang("Encrypt")
		m.Reset()
		answers := make(chan error)
		const callers = 10
		for range callers {
			go func() {
				answers <- tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, gatherLimit)) // shares no call
			}()
		}
		for m.Count("Encrypt") < c.want {
			time.Sleep(time.Millisecond)
		}
		for range 20 { // no further one begins
			time.Sleep(time.Millisecond)
			if calls := m.Count("Encrypt"); calls != c.want {
				t.Fatalf("%v: %d calls at the same time, want %d", c.took, calls, c.want)
			}
		}
		release()
		for range callers {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
	}
}

// TestCallTimeIsMeasured: the time of an encryption counts, unless it failed: an error may come quicker than a result.
func TestCallTimeIsMeasured(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 128)
	encrypt := func() error { return tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, blockSize)) }
	const latency = 20 * time.Millisecond
	m.SetLatency(latency)
	if err := encrypt(); err != nil || tok.callTime.shortest.Load() < int64(latency) {
		t.Errorf("%v; a call took %v, want at least %v", err, time.Duration(tok.callTime.shortest.Load()), latency)
	}
	m.SetLatency(0)
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_DATA_INVALID))
	if err := encrypt(); err == nil || tok.callTime.shortest.Load() < int64(latency) {
		t.Errorf("%v; a call that failed counts: %v", err, time.Duration(tok.callTime.shortest.Load()))
	}
}

// TestCallsAreSpread: calls of a busy key begin at equal distances over the time of one call. The first after a pause
// begins at once, and so do all while calls are short.
func TestCallsAreSpread(t *testing.T) {
	const took, calls = 60 * time.Millisecond, 6
	synctest.Test(t, func(t *testing.T) {
		tok := &Token{inFlight: 1, slots: make(chan struct{}, 4*calls)}
		g := &gatherer{token: tok}
		expect := func(when string, want time.Duration) {
			t.Helper()
			if got := g.untilBegin(); got != want {
				t.Errorf("%s: the call begins after %v, want %v", when, got, want)
			}
		}
		tok.callTime.add(took, time.Now())
		expect("no waiter", 0)
		g.queue(&waiter{})
		for i := range calls {
			expect("a busy key", time.Duration(i)*took/calls)
		}
		time.Sleep(took)
		expect("a call later", 0)
		time.Sleep(took / calls)
		expect("after the distance", 0)
		expect("at the same time", took/calls)
		tok.callTime = callTime{}
		tok.callTime.add(shortCall-1, time.Now())
		expect("short calls", 0)
		expect("short calls", 0)
	})
}
