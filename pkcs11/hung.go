package pkcs11

import (
	"context"
	"errors"
	"sync"
	"time"

	"claviger/pkcs11/worker"
)

// A call that hangs in a worker can be ended only together with the worker, and so with all calls that run there. The
// other calls are made again in the next worker. If the other keys work, a key whose calls hang is not tried again at
// once, because each try would end another worker.

// Pauses after calls with one key that hung while the token worked for others.
const (
	firstPauseOfHungKey = 5 * time.Second
	maxPauseOfHungKey   = 5 * time.Minute
)

// hungAlone reports whether a call of the subject hung until its worker was ended, while the token worked for other
// keys. If so, hungAlone records that, and starts the library again for the other keys. The call began at the time
// begun, when Token.successes had the value successes.
func (t *Token) hungAlone(ctx context.Context, s subject, begun time.Time, successes, generation uint64,
	err error) bool {
	var ended worker.GoneError
	if !s.key || !errors.As(err, &ended) || !ended.Hung || t.successes.Load() == successes {
		return false
	}
	t.mu.Lock()
	f := t.faultOf(s)
	known := begun.Before(f.last) // another call hung together with this one
	if !known {
		f.failures++
		f.hangs++
		f.last, f.successes, f.cause = time.Now(), t.successes.Load(), err
		f.until = f.last.Add(min(firstPauseOfHungKey<<min(f.hangs-1, 10), maxPauseOfHungKey))
	}
	pause := time.Until(f.until)
	t.mu.Unlock()
	if !known {
		t.log.Warn("calls with a key hang in the HSM's library, and other keys work; the key is not used for a while",
			"key", s.name, "pause", pause.Round(time.Second), "err", err)
	}
	_ = t.reset(ctx, generation, err) // if it fails, the next call tries it again
	return true
}

// hangs returns an error while the subject must not be tried because its calls hang.
func (t *Token) hangs(s subject) error {
	if t.failing.Load() == 0 {
		return nil
	}
	t.mu.Lock()
	f := t.faults[s]
	hung := f != nil && f.hangs > 0
	t.mu.Unlock()
	if !hung {
		return nil
	}
	return t.paused(s)
}

// hanging is the state of a call that may hang.
type hanging struct {
	g     *gatherer
	batch []part

	mu           sync.Mutex
	begun, ended bool
}

// begin gives err to all waiters of a call that does not return. The call may still read the bytes of its batch, so
// they must not be wiped or used for another call.
func (h *hanging) begin(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return
	}
	h.begun = true
	h.g.hangs(err)
	for _, p := range h.batch {
		if p.w.state.CompareAndSwap(waiting, served) {
			p.w.done <- err
		}
	}
}

// end records that the call has returned.
func (h *hanging) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended = true; h.begun {
		h.g.recordReturn()
	}
}
