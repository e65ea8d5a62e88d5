package pkcs11

import (
	"context"
	"slices"
	"time"

	"claviger"
)

// Sessions returns the number of calls that run now, and the largest number at the same time. If more than one session
// is allowed, one of them holds the login and serves no call.
func (t *Token) Sessions() (used, limit int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.slots) - len(t.parked), cap(t.slots) - len(t.parked)
}

// parkedSlot is a slot that stays taken, although no call uses it, until the timer ends.
type parkedSlot struct{ timer *time.Timer }

// awaitSession waits until another call has ended, after the HSM allowed no further session. The caller has a slot.
// That slot stays taken for learnedFor, so that fewer calls run at the same time, and the caller takes another. It has
// one slot in any case when awaitSession returns.
func (t *Token) awaitSession(ctx context.Context) error {
	const op = "pkcs11.Token"
	t.mu.Lock()
	switch {
	case t.closed:
		t.mu.Unlock()
		return claviger.E(op, claviger.Closed, "", nil)
	case len(t.parked) >= cap(t.slots)-1:
		t.mu.Unlock()
		return claviger.Errorf(op, claviger.Unavailable, "", "%w; other programs may have its sessions", errNoSession)
	}
	p := new(parkedSlot)
	p.timer = time.AfterFunc(learnedFor, func() {
		if t.unpark(p) {
			<-t.slots
		}
	})
	t.parked = append(t.parked, p)
	first := len(t.parked) == 1
	limit := cap(t.slots) - len(t.parked)
	t.mu.Unlock()
	if first {
		t.log.Warn("the HSM allows fewer sessions than max-sessions; calls wait for each other", "max-sessions",
			t.cfg.MaxSessions, "calls at the same time", limit)
	}
	err := t.takeSlot(ctx, op)
	if err == nil {
		return nil
	}
	if !t.unpark(p) { // another goroutine has given the caller's slot away
		select {
		case t.slots <- struct{}{}:
		case <-t.end:
		}
	}
	return err
}

// unpark ends the parking of a slot, and reports whether the caller has done so. The caller then owns the slot.
func (t *Token) unpark(p *parkedSlot) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := slices.Index(t.parked, p)
	if at < 0 {
		return false
	}
	t.parked = slices.Delete(t.parked, at, at+1)
	p.timer.Stop()
	return true
}

// unparkAll makes all parked slots free again.
func (t *Token) unparkAll() {
	t.mu.Lock()
	all := slices.Clone(t.parked)
	t.mu.Unlock()
	for _, p := range all {
		if t.unpark(p) {
			<-t.slots
		}
	}
}
