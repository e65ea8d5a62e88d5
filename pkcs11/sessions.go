package pkcs11

import (
	"context"
	"time"

	"claviger"
)

// learnedFor is the time for which the number of sessions that an HSM allowed is remembered. Other programs may have
// had sessions of the HSM, and have closed them since.
const learnedFor = time.Minute

// Sessions returns the number of calls that run now, and the largest number at the same time. That is one less than the
// allowed sessions, because one session holds the login.
func (t *Token) Sessions() (used, limit int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.slots) - t.parked, cap(t.slots) - t.parked
}

// awaitSession waits until another call has ended, after the HSM allowed no further session. The caller has a slot.
// That slot stays taken for learnedFor, so that fewer calls run at the same time, and the caller takes another.
func (t *Token) awaitSession(ctx context.Context) error {
	t.mu.Lock()
	if t.parked >= cap(t.slots)-1 {
		t.mu.Unlock()
		return claviger.Errorf("pkcs11.Token", claviger.Unavailable, "", "%w; other programs may have its sessions",
			errNoSession)
	}
	t.parked++
	first := t.parked == 1
	limit := cap(t.slots) - t.parked
	t.mu.Unlock()
	if first {
		t.log.Warn("the HSM allows fewer sessions than max-sessions; calls wait for each other", "max-sessions",
			t.cfg.MaxSessions, "calls at the same time", limit)
	}
	time.AfterFunc(learnedFor, func() { t.unpark(1) })
	if err := t.takeSlot(ctx, "pkcs11.Token"); err != nil {
		t.mu.Lock()
		t.parked = max(t.parked-1, 0) // the caller gives back its first slot
		t.mu.Unlock()
		return err
	}
	return nil
}

// unpark makes up to n parked slots free again.
func (t *Token) unpark(n int) {
	t.mu.Lock()
	n = min(n, t.parked)
	t.parked -= n
	t.mu.Unlock()
	for range n {
		<-t.slots
	}
}
