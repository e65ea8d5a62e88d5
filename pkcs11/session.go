package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// Pauses between attempts to get a lost token back.
const (
	firstBackoff = 250 * time.Millisecond
	maxBackoff   = 10 * time.Second
)

// damage says how far what a call returned reaches.
type damage int

const (
	none    damage = iota // the session is as good as before
	session               // sessions, login or handles are no longer good
	lost                  // the token or the library is
)

// Return values by what they mean for a session; all others leave it usable.
// Sources of the second list: reports of Luna, nShield and YubiHSM users, whose
// libraries came back after C_Finalize and C_Initialize only.
var (
	sessionGone = []uint{
		p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_SESSION_CLOSED, p11.CKR_USER_NOT_LOGGED_IN,
		p11.CKR_OBJECT_HANDLE_INVALID, p11.CKR_KEY_HANDLE_INVALID, p11.CKR_OPERATION_ACTIVE, p11.CKR_OPERATION_NOT_INITIALIZED,
	}
	tokenGone = []uint{
		p11.CKR_DEVICE_ERROR, p11.CKR_DEVICE_REMOVED, p11.CKR_TOKEN_NOT_PRESENT, p11.CKR_TOKEN_NOT_RECOGNIZED,
		p11.CKR_SLOT_ID_INVALID, p11.CKR_CRYPTOKI_NOT_INITIALIZED, p11.CKR_GENERAL_ERROR, p11.CKR_FUNCTION_FAILED,
	}
)

// errConnect marks a failed attempt to find the token and log in again.
type errConnect struct{ error }

func (e errConnect) Unwrap() error { return e.error }

func harm(err error) damage {
	var c errConnect
	if errors.As(err, &c) {
		return lost
	}
	var code p11.Error
	if !errors.As(err, &code) {
		return none
	}
	for _, k := range sessionGone {
		if uint(code) == k {
			return session
		}
	}
	for _, k := range tokenGone {
		if uint(code) == k {
			return lost
		}
	}
	return none
}

// do runs f with a session of its own. Where the session, or the token behind
// it, turns out to be gone, it is brought back and f runs once more. f must make
// its calls on that session only, and may outlive ctx.
func (t *Token) do(ctx context.Context, op string, f func(p11.SessionHandle) error) error {
	select {
	case t.slots <- struct{}{}:
	default:
		select {
		case t.slots <- struct{}{}:
		case <-t.end:
			return claviger.E(op, claviger.Closed, "", nil)
		case <-ctx.Done():
			return claviger.Errorf(op, claviger.Unavailable, "", "all %d sessions of the HSM were in use: %w", cap(t.slots), ctx.Err())
		}
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-t.slots }()
		done <- t.attempt(f)
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		// The C call goes on; its place in the pool stays taken until it returns.
		return claviger.Errorf(op, claviger.Unavailable, "", "the HSM did not answer in time: %w", ctx.Err())
	}
	var domain *claviger.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &domain):
		return err
	case harm(err) != none:
		return claviger.E(op, claviger.Unavailable, "", err)
	}
	return claviger.E(op, claviger.Internal, "", err)
}

// attempt runs f, twice if need be.
func (t *Token) attempt(f func(p11.SessionHandle) error) error {
	var err error
	for try := 0; try < 2; try++ {
		if err = t.once(f); harm(err) == none {
			return err
		}
		if harm(err) == lost {
			if rerr := t.reset(); rerr != nil {
				return fmt.Errorf("%w (%w)", err, rerr)
			}
		}
	}
	return err
}

// once runs f with a session, and keeps the session if it is still good.
func (t *Token) once(f func(p11.SessionHandle) error) error {
	t.module.busy.RLock()
	defer t.module.busy.RUnlock()
	s, generation, err := t.take()
	if err != nil {
		return err
	}
	err = f(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch harm(err) {
	case none:
		if generation == t.generation && !t.closed {
			t.idle = append(t.idle, s)
			return err
		}
		_ = t.b.CloseSession(s) // it may be gone already
	case session:
		// Handles die with the sessions that they were found in, in some libraries;
		// and a logout hits all sessions at once.
		t.handles.Clear()
		if generation == t.generation {
			t.generation = 0
		}
		_ = t.b.CloseSession(s)
	case lost:
		t.handles.Clear()
	}
	return err
}

// take returns an idle session, or a new one, of a token that is logged in.
func (t *Token) take() (s p11.SessionHandle, generation uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0, 0, claviger.E("pkcs11.Token", claviger.Closed, "", nil)
	}
	if now := t.module.current(); t.generation != now {
		t.drop()
		if err := t.connect(); err != nil {
			if t.badPIN != nil {
				return 0, 0, claviger.E("pkcs11.Token", claviger.Unavailable, "", err)
			}
			return 0, 0, errConnect{err}
		}
		t.backoff = 0
	}
	if n := len(t.idle); n > 0 {
		s = t.idle[n-1]
		t.idle = t.idle[:n-1]
		return s, t.generation, nil
	}
	slot := t.found.slot
	generation = t.generation
	s, err = t.b.OpenSession(slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	if errors.Is(err, p11.Error(p11.CKR_SESSION_COUNT)) {
		return 0, 0, claviger.Errorf("pkcs11.Token", claviger.Unavailable, "", "the HSM allows no further session; set max-sessions below %d: %w", t.cfg.MaxSessions, err)
	}
	return s, generation, err
}

// drop closes the sessions that a login that is gone has left. t.mu is held.
func (t *Token) drop() {
	for _, s := range t.idle {
		_ = t.b.CloseSession(s) // most libraries have closed it themselves
	}
	if t.login != 0 {
		_ = t.b.CloseSession(t.login)
	}
	t.idle, t.login = nil, 0
}

// reset brings the library back to its beginning after the token was lost, at
// growing intervals. The next session logs in again.
func (t *Token) reset() error {
	t.mu.Lock()
	if wait := time.Until(t.retryAt); wait > 0 {
		t.mu.Unlock()
		return fmt.Errorf("the token was lost; the next attempt to get it back is in %v", wait.Round(time.Millisecond))
	}
	t.backoff = min(max(2*t.backoff, firstBackoff), maxBackoff)
	t.retryAt = time.Now().Add(t.backoff)
	seen := t.module.current()
	t.mu.Unlock()

	t.log.Warn("the token was lost; initialising the PKCS#11 library anew", "module", t.cfg.Module)
	ok, err := t.module.reset(seen, t.b)
	switch {
	case !ok:
		return errors.New("other calls have not come back from the HSM yet")
	case err != nil:
		return fmt.Errorf("initialising %s anew: %w", t.cfg.Module, err)
	}
	t.mu.Lock()
	t.handles.Clear()
	t.idle, t.login = nil, 0 // of the library's former life
	tell := append([]func(){}, t.onReset...)
	t.mu.Unlock()
	for _, f := range tell {
		f()
	}
	return nil
}
