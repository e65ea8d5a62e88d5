package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Histograms count microseconds, from one to a minute, to three digits.
const (
	slowest = int64(time.Minute / time.Microsecond)
	digits  = 3
)

// shape has the parameters of the load of one measurement.
type shape struct {
	load        string
	connections int
	rate        float64 // requests a second that are due; 0 sends the next request when the last is answered
	connect     string
	duration    time.Duration
}

// worker is one connection of a measurement.
type worker struct {
	conn     connection
	latency  *hdrhistogram.Histogram
	lateness *hdrhistogram.Histogram
	done     int // requests with the right answer
	edeks    int
	failed   map[string]int // number of failures by their text
	last     []byte         // body of the last answer to a request that has no only right answer
	wrong    error          // a wrong answer, which ends the measurement
}

// run is one measurement in progress.
type run struct {
	shape
	t     *target
	began time.Time
	next  atomic.Int64 // number of the next request
	sent  atomic.Int64
	errs  atomic.Int64
}

const (
	// tooMany is the share of failed requests that ends a measurement, from fewFailures failures on.
	tooMany     = 0.2
	fewFailures = 50
	// sampleInterval is how often the memory of the server is read.
	sampleInterval = 100 * time.Millisecond
)

var errTooManyFailures = errors.New("more than a fifth of the requests failed, so the load was stopped")

// measure loads a KMS for the duration of the shape.
func measure(ctx context.Context, t *target, s shape) (*Measurement, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.duration, errOver)
	defer cancel()
	r := &run{shape: s, t: t, began: time.Now()}
	before, counted := t.local.CPU()
	memory := t.sampleMemory(ctx)
	workers := make([]*worker, s.connections)
	var wg sync.WaitGroup
	for i := range workers {
		w := &worker{conn: connection{t: t, fresh: s.connect != connectKeep}, failed: map[string]int{},
			latency: hdrhistogram.New(1, slowest, digits), lateness: hdrhistogram.New(1, slowest, digits)}
		workers[i] = w
		wg.Go(func() { r.work(ctx, w, cancel) })
	}
	wg.Wait()
	cancel()
	m := r.merge(workers, time.Since(r.began))
	m.Memory = <-memory
	if after, ok := t.local.CPU(); ok && counted {
		m.setCPU(after - before)
	}
	return m, errors.Join(r.fault(ctx, workers), r.checkLast(workers))
}

var errOver = errors.New("the time of the measurement is over")

// fault returns the error that makes a measurement unusable, or nil.
func (r *run) fault(ctx context.Context, workers []*worker) error {
	for _, w := range workers {
		if w.wrong != nil {
			return w.wrong
		}
	}
	if r.tooManyFailures() {
		return fmt.Errorf("%s, %s: %w: %s", r.t.name, r.load, errTooManyFailures, firstFailure(workers))
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errOver) && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// checkLast verifies the last answer of one worker.
func (r *run) checkLast(workers []*worker) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	for _, w := range workers {
		if w.last != nil {
			if err := r.t.verifyAnswer(ctx, r.load, w.last); err != nil {
				return fmt.Errorf("%s, %s: %w", r.t.name, r.load, err)
			}
			return nil
		}
	}
	return nil
}

func firstFailure(workers []*worker) string {
	for _, w := range workers {
		for text := range w.failed {
			return text
		}
	}
	return ""
}

func (r *run) tooManyFailures() bool {
	errs := r.errs.Load()
	return errs >= fewFailures && float64(errs) > tooMany*float64(r.sent.Load())
}

// work sends requests until ctx is done.
func (r *run) work(ctx context.Context, w *worker, stop context.CancelFunc) {
	defer w.conn.close()
	for ctx.Err() == nil {
		w.conn.prepare()
		n := r.next.Add(1) - 1
		due, ok := r.wait(ctx, n, w)
		if !ok {
			return
		}
		if w.send(r, due, int(n)); w.wrong != nil || r.tooManyFailures() {
			stop()
			return
		}
	}
}

// wait waits until the n-th request is due, and returns that time. A request that is sent later because all
// connections were busy is the server's delay, and counts as latency. The lateness of this process is recorded apart.
func (r *run) wait(ctx context.Context, n int64, w *worker) (due time.Time, ok bool) {
	if r.rate == 0 {
		return time.Now(), true
	}
	due = r.began.Add(time.Duration(float64(n) / r.rate * float64(time.Second)))
	early := time.Until(due)
	if early <= 0 {
		return due, ctx.Err() == nil
	}
	timer := time.NewTimer(early)
	defer timer.Stop()
	select {
	case <-timer.C:
		record(w.lateness, time.Since(due))
		return due, true
	case <-ctx.Done():
		return due, false
	}
}

func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(d.Microseconds(), 1), slowest)) // within the bounds of the histogram
}

// send sends a request, and counts the answer. It waits for the answer also after the end of the measurement.
func (w *worker) send(r *run, due time.Time, n int) {
	q := r.t.next(r.load, n)
	r.sent.Add(1)
	status, body, err := w.conn.do(context.Background(), q.bytes)
	record(w.latency, time.Since(due))
	switch {
	case err != nil:
		w.fail(r, err.Error())
	case status != http.StatusOK:
		w.fail(r, answered(status, body))
	case q.want != nil && !bytes.Equal(q.want, body):
		w.wrong = fmt.Errorf("%s: WRONG ANSWER: a decrypt of an EDEK gave another DEK than before the load", r.t.name)
	default:
		w.done++
		w.edeks += q.edeks
		if q.want == nil {
			w.last = append(w.last[:0], body...)
		}
	}
}

// failurePause is the pause of a connection after a failure, so that a server that refuses at once is not flooded.
const failurePause = 10 * time.Millisecond

func (w *worker) fail(r *run, text string) {
	w.failed[text]++
	r.errs.Add(1)
	time.Sleep(failurePause)
}

// sampleMemory returns the greatest memory of the server's processes until ctx is done.
func (t *target) sampleMemory(ctx context.Context) <-chan float64 {
	result := make(chan float64, 1)
	go func() {
		tick := time.NewTicker(sampleInterval)
		defer tick.Stop()
		most := t.local.memory()
		for {
			select {
			case <-tick.C:
				most = max(most, t.local.memory())
			case <-ctx.Done():
				result <- most
				return
			}
		}
	}()
	return result
}
