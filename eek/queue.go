package eek

import (
	"context"
	"slices"
	"sync"
	"time"

	"claviger"
)

// FillFunc makes exactly n EDEKs of a key's current version, with as few calls to the provider as possible.
type FillFunc func(ctx context.Context, key string, n int) ([]claviger.EDEK, error)

// QueueConfig is the configuration of a Queue. The comments have the names of Hadoop's properties, without the prefix
// hadoop.security.kms.encrypted.key.cache.
type QueueConfig struct {
	Fill         FillFunc
	Size         int           // size: EDEKs per key after a refill
	LowWatermark float64       // low.watermark: fraction of Size below which a refill begins, in (0, 1]
	Expiry       time.Duration // expiry: the queue drops a key that no Take has used for this time
	Workers      int           // num.fill.threads: refills that run at the same time, for all keys together
	// FillTimeout bounds a refill in the background.
	FillTimeout time.Duration
	// OnError is called with the error of a refill in the background. nil ignores these errors. A Take that fills the
	// queue itself returns the error.
	OnError func(key string, err error)
}

// Queue has ready-made EDEKs of each key, so that a Take need not wait for the provider. Many goroutines may call its
// methods at the same time.
//
// A key needs memory only while the queue has EDEKs of it, or a fill or a Take of it is running. So names for which no
// EDEK can be made do not fill the memory.
type Queue struct {
	cfg QueueConfig
	low int // Size * LowWatermark

	ctx  context.Context // of background refills; cancelled by Close
	stop context.CancelFunc
	wg   sync.WaitGroup // workers and sweep

	mu      sync.Mutex
	keys    map[string]*keyQueue
	waiting []string // keys whose refill waits for a worker; no key twice
	workers int      // running workers
	closed  bool
}

// keyQueue has the ready EDEKs of one key.
type keyQueue struct {
	ready []claviger.EDEK
	gen   uint64    // number of Drains; EDEKs of a fill that began before the last Drain are dropped
	used  time.Time // time of the last Take
	users int       // running Takes
	// refill is true while a refill waits for a worker or is running.
	refill bool
	// first is not nil while the first fill is running. Later Takes of the key wait for it, and make no fill
	// themselves.
	first *firstFill
}

type firstFill struct {
	done   chan struct{} // closed after the fill; the other fields may be read only after that
	err    error         // result for all Takes that waited
	gaveUp bool          // the context of the filling Take ended, so err is not for the Takes that waited
}

// NewQueue starts a queue. Kind Invalid if a value of cfg is impossible; the text names the value.
func NewQueue(cfg QueueConfig) (*Queue, error) {
	invalid := func(format string, args ...any) error {
		return claviger.Errorf("eek.NewQueue", claviger.Invalid, "", format, args...)
	}
	// Compute in single precision, as Hadoop does: 100 * 0.29 is 29, not 28.
	low := int(float32(cfg.Size) * float32(cfg.LowWatermark))
	switch {
	case cfg.Fill == nil:
		return nil, claviger.Errorf("eek.NewQueue", claviger.Internal, "", "no fill function")
	case cfg.Size < 1:
		return nil, invalid("EDEK queue: size is %d; it must be at least 1", cfg.Size)
	case !(cfg.LowWatermark > 0 && cfg.LowWatermark <= 1):
		return nil, invalid("EDEK queue: low watermark is %v; it must be above 0 and at most 1", cfg.LowWatermark)
	case low < 1:
		return nil, invalid("EDEK queue: size %d times low watermark %v is below 1; raise one of them", cfg.Size,
			cfg.LowWatermark)
	case cfg.Expiry <= 0:
		return nil, invalid("EDEK queue: expiry is %v; it must be above 0", cfg.Expiry)
	case cfg.Workers < 1:
		return nil, invalid("EDEK queue: %d fill threads; there must be at least 1", cfg.Workers)
	case cfg.FillTimeout <= 0:
		return nil, invalid("EDEK queue: fill timeout is %v; it must be above 0", cfg.FillTimeout)
	}
	q := &Queue{cfg: cfg, low: low, keys: map[string]*keyQueue{}}
	q.ctx, q.stop = context.WithCancel(context.Background())
	q.wg.Add(1)
	go q.sweep()
	return q, nil
}

// Take returns exactly n EDEKs: ready ones, and the rest from one call of the fill function, within ctx. The first Take
// of a key makes at least Size times LowWatermark EDEKs. After a Drain of the key, Take returns no EDEK of a fill that
// began before the Drain. If n <= 0, it returns none. Kind Closed after Close; otherwise the fill function's errors.
func (q *Queue) Take(ctx context.Context, key string, n int) ([]claviger.EDEK, error) {
	if n <= 0 {
		return []claviger.EDEK{}, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, claviger.E("eek.Take", claviger.Closed, key, nil)
	}
	l := q.keys[key]
	if l == nil {
		l = &keyQueue{}
		q.keys[key] = l
		l.first = &firstFill{done: make(chan struct{})}
		l.users++
		defer q.endTake(key, l)
		return q.fillAndTake(ctx, key, l, n)
	}
	l.users++
	defer q.endTake(key, l)
	for f := l.first; f != nil; f = l.first {
		if err := q.await(ctx, key, f); err != nil {
			return nil, err
		}
		if f.err == nil && !f.gaveUp {
			break
		}
		if !f.gaveUp {
			return nil, f.err
		}
		if l.first == nil { // the filling Take gave up, so this Take makes the first fill
			l.first = &firstFill{done: make(chan struct{})}
			return q.fillAndTake(ctx, key, l, n)
		}
	}
	return q.take(ctx, key, l, n)
}

// await waits for another Take's first fill. It releases the lock while it waits.
func (q *Queue) await(ctx context.Context, key string, f *firstFill) error {
	q.mu.Unlock()
	defer q.mu.Lock()
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return claviger.E("eek.Take", claviger.Unavailable, key, context.Cause(ctx))
	}
}

// fillAndTake makes the first fill of a key, and takes n of its EDEKs. The caller holds the lock.
func (q *Queue) fillAndTake(ctx context.Context, key string, l *keyQueue, n int) ([]claviger.EDEK, error) {
	f := l.first
	f.gaveUp = true // if the fill panics
	defer func() {
		l.first = nil
		close(f.done)
	}()
	made, err := q.fill(ctx, key, l, max(n, q.low))
	f.err, f.gaveUp = err, err != nil && ctx.Err() != nil
	if err != nil {
		return nil, err
	}
	out := slices.Clone(made[:n])
	l.ready = append(l.ready, made[n:]...)
	q.touch(key, l)
	return out, nil
}

// take returns n EDEKs: ready ones, and the rest from one fill. The caller holds the lock.
func (q *Queue) take(ctx context.Context, key string, l *keyQueue, n int) ([]claviger.EDEK, error) {
	for {
		gen := l.gen
		have := min(n, len(l.ready))
		out := make([]claviger.EDEK, n)
		copy(out, l.ready[:have])
		clear(l.ready[:have]) // drop the references to returned EDEKs: the array stays in use
		l.ready = l.ready[have:]
		q.touch(key, l)
		if have == n {
			return out, nil
		}
		made, err := q.fill(ctx, key, l, n-have)
		if err != nil {
			if l.gen == gen {
				l.ready = append(out[:have:have], l.ready...)
			}
			return nil, err
		}
		if l.gen == gen {
			copy(out[have:], made)
			return out, nil
		}
		// There was a Drain in the meantime: made is from after the Drain, and the first part of out from before it.
		l.ready = append(l.ready, made...)
	}
}

// fill calls the fill function. It calls it again if there was a Drain in the meantime, so that the returned EDEKs are
// always from after the last Drain.
func (q *Queue) fill(ctx context.Context, key string, l *keyQueue, n int) ([]claviger.EDEK, error) {
	for {
		gen := l.gen
		made, err := q.callFill(ctx, key, n)
		if err != nil {
			return nil, err
		}
		if l.gen == gen {
			return made, nil
		}
	}
}

// callFill releases the lock, calls the fill function, and takes the lock again, even if the fill function panics.
func (q *Queue) callFill(ctx context.Context, key string, n int) ([]claviger.EDEK, error) {
	q.mu.Unlock()
	defer q.mu.Lock()
	if err := ctx.Err(); err != nil {
		return nil, claviger.E("eek.Take", claviger.Unavailable, key, context.Cause(ctx))
	}
	made, err := q.cfg.Fill(ctx, key, n)
	if err != nil {
		return nil, err
	}
	if len(made) != n {
		return nil, claviger.Errorf("eek.Take", claviger.Internal, key, "the fill function made %d EDEKs, want %d",
			len(made), n)
	}
	return made, nil
}

// touch records a use, and requests a refill below the watermark. The caller holds the lock.
func (q *Queue) touch(key string, l *keyQueue) {
	l.used = time.Now()
	if len(l.ready) >= q.low || l.refill || q.closed {
		return
	}
	l.refill = true
	q.waiting = append(q.waiting, key)
	if q.workers < q.cfg.Workers {
		q.workers++
		q.wg.Add(1)
		go q.work()
	}
}

// endTake ends a Take's use of a key's queue. The caller holds the lock.
func (q *Queue) endTake(key string, l *keyQueue) {
	l.users--
	q.dropIfIdle(key, l)
}

// dropIfIdle drops the queue of a key without EDEKs that no Take and no refill uses. The caller holds the lock.
func (q *Queue) dropIfIdle(key string, l *keyQueue) {
	if l.users == 0 && !l.refill && len(l.ready) == 0 {
		delete(q.keys, key)
	}
}

// work refills keys until no refill is waiting.
func (q *Queue) work() {
	defer q.wg.Done()
	q.mu.Lock()
	defer q.mu.Unlock()
	defer func() { q.workers-- }()
	for len(q.waiting) > 0 && !q.closed {
		key := q.waiting[0]
		q.waiting = q.waiting[1:]
		// The key's queue exists, because dropIfIdle keeps a queue that waits for a refill.
		q.refill(key, q.keys[key])
	}
}

// refill fills the queue of a key up to Size with one call. The caller holds the lock.
func (q *Queue) refill(key string, l *keyQueue) {
	gen, n := l.gen, q.cfg.Size-len(l.ready)
	if n > 0 {
		ctx, cancel := context.WithTimeout(q.ctx, q.cfg.FillTimeout)
		made, err := q.callFill(ctx, key, n)
		cancel()
		if err != nil && !q.closed && q.cfg.OnError != nil {
			q.mu.Unlock()
			q.cfg.OnError(key, err)
			q.mu.Lock()
		}
		if err == nil && l.gen == gen {
			l.ready = append(l.ready, made...)
		}
	}
	l.refill = false
	q.dropIfIdle(key, l)
}

// Drain drops the EDEKs of a key. After Drain has returned, no Take returns an EDEK of a fill that began before Drain.
// The EDEKs of running fills are dropped, and a waiting Take makes them again.
func (q *Queue) Drain(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.keys[key]
	if l == nil {
		return // no EDEKs, and no running fill
	}
	l.gen++
	l.ready = nil
	q.dropIfIdle(key, l)
}

// DrainAll is Drain for all keys.
func (q *Queue) DrainAll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for key, l := range q.keys {
		l.gen++
		l.ready = nil
		q.dropIfIdle(key, l)
	}
}

// Len returns the number of ready EDEKs of a key.
func (q *Queue) Len(key string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l := q.keys[key]; l != nil {
		return len(l.ready)
	}
	return 0
}

// Ready returns the number of ready EDEKs of all keys. It visits each key: do not call it for each request.
func (q *Queue) Ready() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, l := range q.keys {
		n += len(l.ready)
	}
	return n
}

// Keys returns the number of keys in the queue.
func (q *Queue) Keys() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.keys)
}

// sweep drops keys that were not used for Expiry.
func (q *Queue) sweep() {
	defer q.wg.Done()
	// With this interval, a key is dropped at most an eighth of Expiry too late.
	tick := time.NewTicker(max(q.cfg.Expiry/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-q.ctx.Done():
			return
		case now := <-tick.C:
			q.expire(now)
		}
	}
}

// expire drops keys that were not used for Expiry before now.
func (q *Queue) expire(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for key, l := range q.keys {
		if l.users == 0 && now.Sub(l.used) >= q.cfg.Expiry {
			l.gen++ // a running refill must not bring the key back
			l.ready = nil
			q.dropIfIdle(key, l)
		}
	}
}

// Close drops all EDEKs, cancels refills, and waits for the workers. Running Takes finish normally. A second Close does
// nothing.
func (q *Queue) Close() {
	q.mu.Lock()
	q.closed = true
	q.waiting = nil
	clear(q.keys)
	q.mu.Unlock()
	q.stop()
	q.wg.Wait()
}
