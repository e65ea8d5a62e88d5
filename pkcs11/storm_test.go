package pkcs11

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
)

// queued returns a gatherer that makes no calls, so that a test can inspect its queues.
func queued(maxData int64, sizes ...int) (*gatherer, []*waiter) {
	tok := &Token{inFlight: 1}
	setDataLimit(tok, maxData)
	g := &gatherer{token: tok, running: 1}
	var all []*waiter
	for _, n := range sizes {
		w := &waiter{in: make([]byte, n), done: make(chan error, 1)}
		all = append(all, w)
		g.queue(w)
	}
	return g, all
}

// TestSmallRequestsFirst: a request for one EDEK is in the next call, however many requests wait. Each call also takes
// a part of the large requests.
func TestSmallRequestsFirst(t *testing.T) {
	var sizes []int
	for range 500 {
		sizes = append(sizes, 500*32)
	}
	sizes = append(sizes, 32, 3_200_000, 32) // a request for one EDEK comes last
	g, all := queued(32<<10, sizes...)
	batch := g.next()
	if len(batch) < 3 || batch[0].w != all[500] || batch[1].w != all[502] || batch[2].w != all[0] ||
		batch[2].size() != 16000 {
		t.Fatalf("the first call serves %d parts", len(batch))
	}
	size := 0
	for _, p := range batch {
		size += p.size()
	}
	if size > 32<<10 {
		t.Errorf("%d bytes in one call", size)
	}
}

// TestLargeRequestsGetHalf: under a flood of single EDEKs, half of each call is left for a large request that does not
// fit.
func TestLargeRequestsGetHalf(t *testing.T) {
	sizes := []int{1000 * 32}
	for range 5000 {
		sizes = append(sizes, 32)
	}
	g, all := queued(32<<10, sizes...)
	for calls := 1; ; calls++ {
		for _, p := range g.next() {
			if p.w != all[0] {
				continue
			}
			if p.size()%blockSize != 0 || p.size() < 8<<10 {
				t.Fatalf("a part of %d bytes", p.size())
			}
			if p.to == len(p.w.in) {
				return
			}
			p.w.at = p.to
			g.queue(p.w)
		}
		if calls == 3 {
			t.Fatal("not served by three calls")
		}
	}
}

// TestLargeRequestsInTurn: a very large request does not delay the other large requests.
func TestLargeRequestsInTurn(t *testing.T) {
	g, all := queued(32<<10, 3_200_000, 16000)
	first := g.next()
	if len(first) != 1 || first[0].w != all[0] || first[0].size() != 32<<10 {
		t.Fatalf("first call: %d parts", len(first))
	}
	first[0].w.at = first[0].to
	g.queue(first[0].w)
	second := g.next()
	if len(second) == 0 || second[0].w != all[1] || second[0].size() != 16000 {
		t.Fatalf("second call: %d parts", len(second))
	}
}

// TestAbandonedWaiters: no call serves an abandoned waiter.
func TestAbandonedWaiters(t *testing.T) {
	g, all := queued(32<<10, 32, 16000, 32)
	all[0].state.Store(abandoned)
	all[1].state.Store(served)
	batch := g.next()
	if len(batch) != 1 || batch[0].w != all[2] || g.waiting() != 0 || g.running != 1 {
		t.Errorf("%d parts, %d wait, %d runs", len(batch), g.waiting(), g.running)
	}
	if g.next() != nil || g.running != 0 {
		t.Error("the call continues without a waiter")
	}
}

// TestQueuedCopiesAreWiped: the copy of a waiter's blocks is wiped when the waiter has its result, and when it was
// abandoned before that.
func TestQueuedCopiesAreWiped(t *testing.T) {
	g, all := queued(32<<10, 32, 16000, 32, 32)
	for _, w := range all {
		copy(w.in, bytes.Repeat([]byte{0xff}, len(w.in)))
		w.blocks = make([]byte, len(w.in))
	}
	all[0].state.Store(abandoned)
	all[1].state.Store(abandoned)
	g.next()
	all[2].finish(nil)
	all[3].finish(errHung)
	for i, w := range all {
		if !zero(w.in) {
			t.Errorf("the copy of waiter %d was not wiped", i)
		}
	}
	if !bytes.Equal(all[2].blocks, bytes.Repeat([]byte{0xff}, 32)) || !zero(all[3].blocks) {
		t.Error("results were not handed out, or handed out beside an error")
	}
}

// bufferRecorder keeps the buffers that go to the library and come from it.
type bufferRecorder struct {
	Boundary
	on   *atomic.Bool
	mu   *sync.Mutex
	kept *[][]byte
}

func (k bufferRecorder) Encrypt(h p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle,
	data []byte) ([]byte, error) {
	out, err := k.Boundary.Encrypt(h, m, key, data)
	if k.on.Load() {
		k.mu.Lock()
		*k.kept = append(*k.kept, data, out)
		k.mu.Unlock()
	}
	return out, err
}

// TestBuffersAreWiped: counter blocks and keystream do not stay in the buffers of a call, whether the call is for one
// caller or for several, is a part of a larger request, has a proof, or was made with another key.
func TestBuffersAreWiped(t *testing.T) {
	var on atomic.Bool
	var mu sync.Mutex
	var kept [][]byte
	meter := new(Meter)
	c := config(softhsmtest.New(t))
	c.Wrap = func(b Boundary) Boundary { return bufferRecorder{meter.Wrap(b), &on, &mu, &kept} }
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tok.Close() })
	id, label := generate(t, tok, 1, 256)
	on.Store(true)
	check, err := tok.CheckValue(t.Context(), id, label)
	if err != nil {
		t.Fatal(err)
	}
	if out := kept[len(kept)-1]; !zero(out) {
		t.Error("the encrypted check block was not wiped")
	}
	kept = nil // the check block itself is no secret
	for _, c := range []struct {
		callers, bytes int
		check          []byte
		err            error
	}{
		{1, 32, nil, nil}, {64, 32, nil, nil}, {3, 20 << 10, nil, nil}, {1, 200 << 10, nil, nil},
		{1, 32, check, nil}, {1, 200 << 10, check, nil}, {1, 32, []byte{1, 2, 3}, ErrWrongKey},
	} {
		if c.callers > 1 {
			meter.SetLatency(20 * time.Millisecond) // so that callers share a call
		}
		var wg sync.WaitGroup
		for range c.callers {
			wg.Go(func() {
				blocks := bytes.Repeat([]byte{0xff}, c.bytes)
				if err := tok.EncryptBlocks(t.Context(), id, label, c.check, blocks); !errors.Is(err, c.err) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		meter.SetLatency(0)
		// A caller gets its blocks before the call wipes its copies.
		eventually(t, func() error {
			mu.Lock()
			defer mu.Unlock()
			for i, b := range kept {
				if !zero(b) {
					return fmt.Errorf("%d callers of %d bytes: %s of call %d was not wiped", c.callers, c.bytes,
						[]string{"the input", "the output"}[i%2], i/2)
				}
			}
			return nil
		})
	}
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// TestConcurrentBatches: batches of all sizes, cut into parts or not, give the same result as one by one.
func TestConcurrentBatches(t *testing.T) {
	tok, _ := open(t)
	setDataLimit(tok, 8<<10)
	id, label := generate(t, tok, 1, 256)
	var wg sync.WaitGroup
	for _, n := range []int{16, 32, 1024, 1040, 8192, 8208, 16000, 16384, 100_000, 300_000} {
		n = n / blockSize * blockSize
		in := make([]byte, n)
		if _, err := rand.Read(in); err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(in)
		for at := 0; at < n; at += 4096 {
			if err := tok.EncryptBlocks(t.Context(), id, label, nil, want[at:min(at+4096, n)]); err != nil {
				t.Fatal(err)
			}
		}
		for range 4 {
			wg.Go(func() {
				for range 3 {
					got := bytes.Clone(in)
					if err := tok.EncryptBlocks(t.Context(), id, label, nil, got); err != nil ||
						!bytes.Equal(got, want) {
						t.Errorf("%d bytes: %v, equal %t", n, err, bytes.Equal(got, want))
					}
				}
			})
		}
	}
	wg.Wait()
}

// TestSharedCallStaysWithinTheLimit: a large request beside a small one gets what is left of the call, and no more.
func TestSharedCallStaysWithinTheLimit(t *testing.T) {
	g, all := queued(32<<10, 32, 40000)
	batch := g.next()
	if len(batch) != 2 || batch[0].w != all[0] || batch[1].w != all[1] || batch[1].size() != 32<<10-32 {
		t.Fatalf("%d parts; the last has %d bytes", len(batch), batch[len(batch)-1].size())
	}
	g, _ = queued(200<<10, 200<<10)
	if batch := g.next(); len(batch) != 1 || batch[0].size() != 200<<10 {
		t.Errorf("a large request alone: %d parts of %d bytes", len(batch), batch[0].size())
	}
}

// TestAllCallsHang: while one of two calls hangs, callers are queued. When both hang, the queued callers and new ones
// get an error at once.
func TestAllCallsHang(t *testing.T) {
	g, all := queued(32<<10, 32, 16000)
	g.token.inFlight, g.running = 2, 2
	cause := errors.New("hangs")
	g.hangs(cause)
	late := &waiter{in: make([]byte, 32), done: make(chan error, 1)}
	g.add(late)
	if n := g.waiting(); n != 3 {
		t.Fatalf("%d of 3 callers wait", n)
	}
	g.hangs(cause)
	for _, w := range append(all, late) {
		select {
		case err := <-w.done:
			if !errors.Is(err, cause) {
				t.Error(err)
			}
		default:
			t.Error("a queued caller has no answer")
		}
	}
	last := &waiter{in: make([]byte, 32), done: make(chan error, 1)}
	g.add(last)
	select {
	case err := <-last.done:
		if !claviger.Is(err, claviger.Unavailable) {
			t.Error(err)
		}
	default:
		t.Error("a new caller has no answer")
	}
}

// TestAbandonedWaitersLeaveTheQueue: callers that gave up do not stay in the queue of a key whose calls hang.
func TestAbandonedWaitersLeaveTheQueue(t *testing.T) {
	g, all := queued(32<<10, 32, 32, 32, 16000)
	for _, w := range all[:3] {
		w.state.Store(abandoned)
		g.abandon()
	}
	if n := g.waiting(); n > 2 {
		t.Errorf("%d waiters are queued", n)
	}
}

// TestCallerLeavesTheQueue: a caller that gives up while the calls with its key run is dropped from the queue at once.
func TestCallerLeavesTheQueue(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 128)
	release := m.Hang("Encrypt")
	var wg sync.WaitGroup
	defer wg.Wait()
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g := tok.gathererOf(keyName{string(id), label}, nil)
	encrypt := func(ctx context.Context) error {
		return tok.EncryptBlocks(ctx, id, label, nil, make([]byte, 16))
	}
	queued := func(want int) error {
		if n := m.Count("Encrypt") + g.waiting(); n < want {
			return fmt.Errorf("%d callers are served or queued, want %d", n, want)
		}
		return nil
	}
	for i := range tok.inFlight {
		wg.Go(func() {
			if err := encrypt(t.Context()); err != nil {
				t.Error(err)
			}
		})
		eventually(t, func() error { return queued(i + 1) })
	}
	left := make(chan error, 1)
	go func() { left <- encrypt(ctx) }()
	eventually(t, func() error { return queued(tok.inFlight + 1) })
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) || g.waiting() > 0 {
		t.Errorf("%v, %d callers are queued", err, g.waiting())
	}
}

// TestEncryptAlone: EncryptAlone gives the result of EncryptBlocks, and makes a call for each caller at once. After an
// error the blocks are what they were.
func TestEncryptAlone(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	plain := bytes.Repeat([]byte{7}, 32)
	want := bytes.Clone(plain)
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, want); err != nil {
		t.Fatal(err)
	}
	m.Reset()
	release := m.Hang("Encrypt")
	var wg sync.WaitGroup
	defer wg.Wait()
	defer release()
	callers := tok.inFlight + 2
	for range callers {
		wg.Go(func() {
			got := bytes.Clone(plain)
			if err := tok.EncryptAlone(t.Context(), id, label, nil, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%x, %v; want %x", got, err, want)
			}
		})
	}
	eventually(t, func() error {
		if n := m.Count("Encrypt"); n != callers {
			return fmt.Errorf("%d calls, want %d", n, callers)
		}
		return nil
	})
	release()
	wg.Wait()
	got, refused := bytes.Clone(plain), p11.Error(p11.CKR_DATA_INVALID)
	m.Fail("Encrypt", 1, refused)
	if err := tok.EncryptAlone(t.Context(), id, label, nil, got); !errors.Is(err, refused) || !bytes.Equal(got, plain) {
		t.Errorf("a call that fails: %v, the blocks %x", err, got)
	}
}
