package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11/cryptoki"
)

// TestGivesUpDuringDelivery: a caller whose context ends while its result is delivered gets that result.
func TestGivesUpDuringDelivery(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 128)
	defer tok.OnCall(nil)
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		tok.OnCall(func(Call) { cancel() }) // the result is delivered next
		m.Fail("Encrypt", 1, p11.Error(p11.CKR_DATA_INVALID))
		if err := tok.EncryptBlocks(ctx, id, label, nil, make([]byte, 16)); err == nil {
			t.Fatal("an error became success")
		}
		cancel()
		m.Heal()
	}
}

// TestHungCallEndsAtTokenLimit: a call that hangs ends for all its callers at the token's time limit, also for callers
// that would wait longer. When it has returned, it does not count as a call that hangs.
func TestHungCallEndsAtTokenLimit(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 128)
	tok.limit = 200 * time.Millisecond
	release := m.Hang("Encrypt")
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	within(t, 20*time.Second, "EncryptBlocks", func() {
		if err := tok.EncryptBlocks(ctx, id, label, nil, make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) ||
			!errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
	g := tok.gathererOf(keyName{string(id), label}, nil)
	hung := func() int {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.hung
	}
	if n := hung(); n != 1 {
		t.Errorf("%d calls hang", n)
	}
	release()
	eventually(t, func() error { // otherwise a later call that hangs would end the waiters of calls that do not
		if n := hung(); n != 0 {
			return fmt.Errorf("%d calls hang after the return", n)
		}
		return nil
	})
}

// TestNoSlotForCall: if all slots are taken until the token's time limit, the callers get an error then.
func TestNoSlotForCall(t *testing.T) {
	tok, _ := open(t)
	id, label := generate(t, tok, 1, 128)
	tok.limit = 200 * time.Millisecond
	for range cap(tok.slots) {
		tok.slots <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	within(t, 20*time.Second, "EncryptBlocks", func() {
		if err := tok.EncryptBlocks(ctx, id, label, nil, make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("%v", err)
		}
	})
	for range cap(tok.slots) {
		<-tok.slots
	}
	if err := encryptWith(t, tok, 1); err != nil {
		t.Error(err)
	}
}

// TestBufferOfFailedCall: the buffer of a call that failed is not used again, because its library may still write to
// it.
func TestBufferOfFailedCall(t *testing.T) {
	for _, failed := range []error{nil, errors.New("failed")} {
		w := &waiter{in: makeInput(16)[:16], blocks: make([]byte, 16), done: make(chan error, 1)}
		if w.finish(failed); (w.in != nil) != (failed != nil) {
			t.Errorf("after the error %v the waiter has %d bytes", failed, len(w.in))
		}
	}
	g := new(gatherer)
	for range 20 {
		in, out := cryptoki.NewBuffer(8<<10), cryptoki.NewBuffer(8<<10)
		g.release(make([]part, 2), in, out, errors.New("failed"))
		for range 4 {
			if next := cryptoki.NewBuffer(8 << 10); &next[0] == &in[0] || &next[0] == &out[0] {
				t.Fatal("a buffer of a failed call is used again")
			}
		}
	}
}

// TestCallReturnsAtTheLimit: a call that has returned in the moment of the time limit does not count as one that hangs,
// and its waiters get no second answer.
func TestCallReturnsAtTheLimit(t *testing.T) {
	g := &gatherer{running: 1}
	w := &waiter{in: make([]byte, 16), done: make(chan error, 1)}
	h := hanging{g: g, batch: []part{{w, 0, 16}}}
	h.end()
	h.begin(errHung)
	if g.hung != 0 || len(w.done) > 0 || w.state.Load() != waiting {
		t.Errorf("%d calls hang, %d answers", g.hung, len(w.done))
	}
}

// TestErrorOfALargeCall: an error that is not about the size of the data is returned, and the size is not reduced. The
// size is not reduced below one block.
func TestErrorOfALargeCall(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 128)
	name := keyName{string(id), label}
	before := tok.dataLimit(name)
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_DATA_INVALID))
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 64)); !errors.Is(err,
		p11.Error(p11.CKR_DATA_INVALID)) || tok.dataLimit(name) != before {
		t.Errorf("%v; the limit is %d bytes, and was %d", err, tok.dataLimit(name), before)
	}
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_DATA_LEN_RANGE))
	within(t, 20*time.Second, "EncryptBlocks", func() {
		if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); !errors.Is(err,
			p11.Error(p11.CKR_DATA_LEN_RANGE)) {
			t.Errorf("one block is too long: %v", err)
		}
	})
}

// TestPartsAreWiped: keystream does not stay in the buffers of a call that was cut into parts.
func TestPartsAreWiped(t *testing.T) {
	var on atomic.Bool
	var mu sync.Mutex
	var kept [][]byte
	c := config(softhsmtest.New(t))
	c.Wrap = func(b Boundary) Boundary { return bufferRecorder{sizeLimitedToken{b, 1000}, &on, &mu, &kept} }
	tok := openBare(t, c)
	id, label := generate(t, tok, 1, 256)
	on.Store(true)
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, bytes.Repeat([]byte{0xff}, 4000)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { // a caller gets its blocks before the call wipes its copies
		mu.Lock()
		defer mu.Unlock()
		for i, b := range kept {
			if !zero(b) {
				return fmt.Errorf("buffer %d of %d was not wiped", i, len(kept))
			}
		}
		return nil
	})
	if len(kept) < 8 {
		t.Errorf("%d buffers: the call was not cut", len(kept))
	}
}

// TestRequestsThatAreAboutToBeMade: the first call waits for requests of goroutines that are ready to run.
func TestRequestsThatAreAboutToBeMade(t *testing.T) {
	tok, _ := open(t)
	id, label := generate(t, tok, 1, 128)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const callers = 10
	most := 0
	for range 20 { // the system may interrupt the goroutine that starts the others
		eventually(t, func() error { // no run is left that would take the next requests
			v, ok := tok.gather.Load(keyName{string(id), label})
			if !ok {
				return nil
			}
			g, _ := v.(*gatherer)
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.running > 0 {
				return fmt.Errorf("%d runs are left", g.running)
			}
			return nil
		})
		var first atomic.Int32
		tok.OnCall(func(c Call) { first.CompareAndSwap(0, int32(c.Callers)) }) // #nosec G115 -- at most callers
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		most = max(most, int(first.Load()))
	}
	tok.OnCall(nil)
	if most != callers {
		t.Errorf("the first call served %d of %d callers", most, callers)
	}
}
