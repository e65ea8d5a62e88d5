package eek

import (
	"context"
	"slices"
	"sync"
	"time"

	"claviger"
)

// FillFunc makes exactly n EDEKs of a key's current version, with as few calls
// to the provider as it takes.
type FillFunc func(ctx context.Context, key string, n int) ([]claviger.EDEK, error)

// QueueConfig is what a Queue is made of. The property names are Hadoop's,
// after hadoop.security.kms.encrypted.key.cache.
type QueueConfig struct {
	Fill         FillFunc
	Size         int           // size: EDEKs per key after a refill
	LowWatermark float64       // low.watermark: share of Size below which a refill begins, in (0, 1]
	Expiry       time.Duration // expiry: the queue drops a key that no Take used for that long
	Workers      int           // num.fill.threads: refills under way at once, over all keys
	// FillTimeout limits a refill in the background.
	FillTimeout time.Duration
	// OnError is called with the error of a refill in the background; nil ignores it. A Take that finds the queue
	// empty returns the error of its own fill.
	OnError func(key string, err error)
}

// Queue holds ready-made EDEKs, by key, so that a Take need not wait for the provider. Its methods may be called from
// many goroutines.
//
// A key costs memory only while the queue holds EDEKs of it, or a fill or a Take of it is under way: a name for which
// no EDEK can be made leaves nothing behind.
type Queue struct {
	cfg QueueConfig
	low int // Size * LowWatermark

	ctx  context.Context // of the background; ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup // workers and the sweeper

	mu      sync.Mutex
	keys    map[string]*line
	waiting []string // keys whose refill waits for a worker; each at most once
	workers int      // running
	closed  bool
}

// line is the queue's EDEKs of one key.
type line struct {
	ready []claviger.EDEK
	gen   uint64    // counts Drains: EDEKs of a fill that began before the last Drain are dropped
	used  time.Time // last Take
	users int       // Takes under way
	// refill: a refill waits for a worker or is under way.
	refill bool
	// first is not nil while the first fill is under way. Later Takes of the key wait for it rather than make fills
	// of their own.
	first *firstFill
}

type firstFill struct {
	done   chan struct{} // closed at the end; read the other fields after that
	err    error         // shared by all Takes that waited
	gaveUp bool          // err is only of the Take that made the fill: its context ended
}

// NewQueue starts a queue. Kind Invalid where the figures cannot work; the text names the figure.
func NewQueue(cfg QueueConfig) (*Queue, error) {
	invalid := func(format string, args ...any) error {
		return claviger.Errorf("eek.NewQueue", claviger.Invalid, "", format, args...)
	}
	// In single precision, as Hadoop does: 100 * 0.29 is 29, not 28.
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
	q := &Queue{cfg: cfg, low: low, keys: map[string]*line{}}
	q.ctx, q.stop = context.WithCancel(context.Background())
	q.wg.Add(1)
	go q.sweep()
	return q, nil
}

// Take returns exactly n EDEKs: what is ready, and the rest made by one call of
// the fill function, within ctx. The first Take of a key makes Size times
// LowWatermark of them at least. An EDEK whose making began before a Drain of the
// key is not returned after it.
// n <= 0 takes none. Kind Closed after Close; else the fill function's errors.
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
		l = &line{}
		q.keys[key] = l
		l.first = &firstFill{done: make(chan struct{})}
		l.users++
		defer q.leave(key, l)
		return q.takeFirst(ctx, key, l, n)
	}
	l.users++
	defer q.leave(key, l)
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
		if l.first == nil { // the Take that made it gave up, so this one makes the first fill
			l.first = &firstFill{done: make(chan struct{})}
			return q.takeFirst(ctx, key, l, n)
		}
	}
	return q.take(ctx, key, l, n)
}

// await waits, without the lock, for another Take's first fill.
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

// takeFirst makes the first fill of a key. The lock is held at both ends.
func (q *Queue) takeFirst(ctx context.Context, key string, l *line, n int) ([]claviger.EDEK, error) {
	f := l.first
	f.gaveUp = true // unless the fill comes to an end
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

// take returns n EDEKs: the ready ones, and the rest made by one fill. The lock is held at both ends.
func (q *Queue) take(ctx context.Context, key string, l *line, n int) ([]claviger.EDEK, error) {
	for {
		gen := l.gen
		have := min(n, len(l.ready))
		out := make([]claviger.EDEK, n)
		copy(out, l.ready[:have])
		clear(l.ready[:have]) // the array lives on; EDEKs that were given out must not
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
		// Drained meanwhile: made began after the Drain, the head of out before it.
		l.ready = append(l.ready, made...)
	}
}

// fill calls the fill function, again where a Drain came in between, so that the fill that it returns began after the
// last Drain.
func (q *Queue) fill(ctx context.Context, key string, l *line, n int) ([]claviger.EDEK, error) {
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

// callFill calls the fill function without the lock, which is held at both
// ends, even where it panics.
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
		return nil, claviger.Errorf("eek.Take", claviger.Internal, key, "fill function made %d EDEKs of %d",
			len(made), n)
	}
	return made, nil
}

// touch records a use, and requests a refill below the watermark. Needs the lock.
func (q *Queue) touch(key string, l *line) {
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

// leave ends a Take's use of the line. Needs the lock.
func (q *Queue) leave(key string, l *line) {
	l.users--
	q.forgetIfIdle(key, l)
}

// forgetIfIdle drops a line that holds no EDEKs and that no Take and no refill uses. Needs the lock.
func (q *Queue) forgetIfIdle(key string, l *line) {
	if l.users == 0 && !l.refill && len(l.ready) == 0 {
		delete(q.keys, key)
	}
}

// work refills keys until no refill waits.
func (q *Queue) work() {
	defer q.wg.Done()
	q.mu.Lock()
	defer q.mu.Unlock()
	defer func() { q.workers-- }()
	for len(q.waiting) > 0 && !q.closed {
		key := q.waiting[0]
		q.waiting = q.waiting[1:]
		// The line exists: a line that waits for a refill is not dropped.
		q.refill(key, q.keys[key])
	}
}

// refill fills a line up to Size by one call. The lock is held at both ends.
func (q *Queue) refill(key string, l *line) {
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
	q.forgetIfIdle(key, l)
}

// Drain drops the EDEKs of a key. After it has returned, no EDEK whose making began before it is given out: the EDEKs
// of fills under way are dropped, and made again where a Take waits for them.
func (q *Queue) Drain(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.keys[key]
	if l == nil {
		return // no EDEKs, and no fill under way
	}
	l.gen++
	l.ready = nil
	q.forgetIfIdle(key, l)
}

// DrainAll is Drain for all keys.
func (q *Queue) DrainAll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for key, l := range q.keys {
		l.gen++
		l.ready = nil
		q.forgetIfIdle(key, l)
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

// Keys returns the number of keys that the queue holds.
func (q *Queue) Keys() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.keys)
}

// sweep drops keys that were not used for Expiry.
func (q *Queue) sweep() {
	defer q.wg.Done()
	// A key stays at most an eighth longer than Expiry.
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

func (q *Queue) expire(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for key, l := range q.keys {
		if l.users == 0 && now.Sub(l.used) >= q.cfg.Expiry {
			l.gen++ // a refill under way must not bring the key back
			l.ready = nil
			q.forgetIfIdle(key, l)
		}
	}
}

// Close drops all EDEKs, ends refills, and waits for the workers. Takes that are under way come to their end. A
// second Close does nothing.
func (q *Queue) Close() {
	q.mu.Lock()
	q.closed = true
	q.waiting = nil
	clear(q.keys)
	q.mu.Unlock()
	q.stop()
	q.wg.Wait()
}
