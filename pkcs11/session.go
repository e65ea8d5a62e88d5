package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/pkcs11/worker"
	"claviger/trace"
)

// Pauses between resets for a lost token. A pause is twice the pause before, unless calmPeriod passed without a
// reset. It is at least as long as the reset took, so that a slow library is not busy with resets alone.
const (
	firstBackoff = 250 * time.Millisecond
	maxBackoff   = time.Second
	calmPeriod   = time.Minute
)

// callLimit is the time limit of a call whose ctx has no deadline.
const callLimit = 30 * time.Second

// damage is the part that a call's error has broken; a larger value includes the smaller ones.
type damage int

const (
	none    damage = iota // the session works as before
	suspect               // the state of the session is unknown
	broken                // the session does not work; another session will
	gone                  // all sessions, the login or the handles are invalid
	lost                  // the token or the library is lost
)

// Results, by the damage that they mean. A result in none of the lists makes the session suspect. tokenGone follows
// reports of Luna, nShield and YubiHSM users, whose libraries worked again only after C_Finalize and C_Initialize.
var (
	// harmless results are about the request. They end the operation (PKCS #11 v2.40, 5.1), so the session is free
	// for the next one. CKR_BUFFER_TOO_SMALL leaves the operation active, so it is not in this list.
	harmless = []uint{
		p11.CKR_ARGUMENTS_BAD, p11.CKR_ATTRIBUTE_READ_ONLY, p11.CKR_ATTRIBUTE_SENSITIVE, p11.CKR_ATTRIBUTE_TYPE_INVALID,
		p11.CKR_ATTRIBUTE_VALUE_INVALID,
		p11.CKR_TEMPLATE_INCOMPLETE, p11.CKR_TEMPLATE_INCONSISTENT, p11.CKR_MECHANISM_INVALID,
		p11.CKR_MECHANISM_PARAM_INVALID,
		p11.CKR_DATA_INVALID, p11.CKR_DATA_LEN_RANGE, p11.CKR_ENCRYPTED_DATA_INVALID, p11.CKR_ENCRYPTED_DATA_LEN_RANGE,
		p11.CKR_KEY_SIZE_RANGE, p11.CKR_KEY_TYPE_INCONSISTENT, p11.CKR_KEY_FUNCTION_NOT_PERMITTED,
		p11.CKR_FUNCTION_NOT_SUPPORTED, p11.CKR_ACTION_PROHIBITED, p11.CKR_RANDOM_NO_RNG,
		p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_EXPIRED, p11.CKR_PIN_LOCKED,
	}
	sessionBroken = []uint{p11.CKR_OPERATION_ACTIVE, p11.CKR_OPERATION_NOT_INITIALIZED}
	loginGone     = []uint{
		p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_SESSION_CLOSED, p11.CKR_USER_NOT_LOGGED_IN,
		p11.CKR_OBJECT_HANDLE_INVALID, p11.CKR_KEY_HANDLE_INVALID,
	}
	tokenGone = []uint{
		p11.CKR_DEVICE_ERROR, p11.CKR_DEVICE_REMOVED, p11.CKR_TOKEN_NOT_PRESENT, p11.CKR_TOKEN_NOT_RECOGNIZED,
		p11.CKR_SLOT_ID_INVALID, p11.CKR_CRYPTOKI_NOT_INITIALIZED, p11.CKR_GENERAL_ERROR, p11.CKR_FUNCTION_FAILED,
	}
)

// errConnect marks a failed attempt to find the token and log in again.
type errConnect struct{ error }

func (e errConnect) Unwrap() error { return e.error }

// errLength marks a result of C_Encrypt whose length is not that of its input.
type errLength struct{ got, want int }

func (e errLength) Error() string { return fmt.Sprintf("the HSM made %d bytes of %d", e.got, e.want) }

// judged marks a result that the operation explains to its caller, and that is no fault of the session.
type judged struct{ error }

func (e judged) Unwrap() error { return e.error }

// damageOf returns the worst damage of all errors in err.
func damageOf(err error) damage {
	switch e := err.(type) { //nolint:errorlint // it walks the chain itself
	case nil, judged:
		return none
	case errConnect, worker.GoneError:
		return lost
	case errLength:
		return suspect
	case p11.Error:
		switch code := uint(e); {
		case slices.Contains(harmless, code):
			return none
		case slices.Contains(sessionBroken, code):
			return broken
		case slices.Contains(loginGone, code):
			return gone
		case slices.Contains(tokenGone, code):
			return lost
		}
		return suspect
	case interface{ Unwrap() []error }:
		worst := none
		for _, err := range e.Unwrap() {
			worst = max(worst, damageOf(err))
		}
		return worst
	}
	return damageOf(errors.Unwrap(err))
}

// isOneOf reports whether err has one of these results of the library.
func isOneOf(err error, codes ...uint) bool {
	return slices.ContainsFunc(codes, func(code uint) bool { return errors.Is(err, p11.Error(code)) })
}

// limited gives ctx a deadline if it has none.
func (t *Token) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, t.limit)
}

// do runs f with a session of its own. If f fails, do may repair the session, login or library, and run f again; see
// repair.go. f must make its calls on that session only. f may run on after ctx has ended and do has returned. If f
// returns errNoneShown also after a new start of the library, do returns nil: the token has no key.
func (t *Token) do(ctx context.Context, op string, f func(*login, p11.SessionHandle) error) error {
	err := t.doAndNotify(ctx, op, subject{name: op}, nil, f, func(error) {})
	if errors.Is(err, errNoneShown) {
		return nil
	}
	return err
}

// doWithKey does the same as do, for an operation with the key of that label.
func (t *Token) doWithKey(ctx context.Context, op, label string, f func(*login, p11.SessionHandle) error) error {
	p := &progress{parent: &t.progress}
	ctx, cancel := untilStalled(ctx, p.last)
	defer cancel()
	return t.doAndNotify(ctx, op, keySubject(label), p, f, func(error) {})
}

// doAndNotify does the same as do, records the operation in p, and calls onEnd when f has returned for the last time.
// If ctx ends first, doAndNotify returns before that. The memory that f uses may be cleared in onEnd, and not earlier.
func (t *Token) doAndNotify(ctx context.Context, op string, s subject, p *progress,
	f func(*login, p11.SessionHandle) error, onEnd func(error)) (err error) {
	ctx, span := trace.Start(ctx, op)
	defer span.EndWith(&err)
	ctx, cancel := t.limited(ctx)
	defer cancel()
	leave, err := t.takeSlotFor(ctx, op, s)
	if err != nil {
		onEnd(err)
		return err
	}
	p.begin()
	done := make(chan error, 1)
	go func() {
		defer leave()
		defer p.end()
		err := withKind(op, s, t.explained(t.attempt(ctx, s, f)))
		onEnd(err)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		// The C call runs on; its slot in the pool stays taken until it returns.
		return notInTime(ctx, op)
	}
}

// notInTime is the error of a call that has not returned before ctx ended.
func notInTime(ctx context.Context, op string) error {
	return claviger.Errorf(op, claviger.Unavailable, "", "the HSM did not answer in time: %w", context.Cause(ctx))
}

// doHere does the same as doAndNotify with the token's time limit, but on the caller's goroutine: it returns when onEnd
// has returned. If the limit ends first, it calls late with the error, on another goroutine.
func (t *Token) doHere(op string, s subject, p *progress, f func(*login, p11.SessionHandle) error, onEnd,
	late func(error)) {
	ctx, cancel := t.limited(context.Background())
	defer cancel()
	leave, err := t.takeSlotFor(ctx, op, s)
	if err != nil {
		onEnd(err)
		return
	}
	defer leave()
	p.begin()
	defer p.end()
	defer context.AfterFunc(ctx, func() { late(notInTime(ctx, op)) })()
	onEnd(withKind(op, s, t.explained(t.attempt(ctx, s, f))))
}

// takeSlotFor takes a slot for a subject. Operations without a key get at most about half of all slots. So if their
// calls hang, the other slots remain for operations with keys.
func (t *Token) takeSlotFor(ctx context.Context, op string, s subject) (leave func(), _ error) {
	if s.key {
		return func() { <-t.slots }, t.takeSlot(ctx, op)
	}
	select {
	case t.keyless <- struct{}{}:
	case <-t.end:
		return nil, claviger.E(op, claviger.Closed, "", nil)
	case <-ctx.Done():
		return nil, claviger.Errorf(op, claviger.Unavailable, "",
			"all %d sessions of the HSM for operations without a key were in use: %w", cap(t.keyless), ctx.Err())
	}
	if err := t.takeSlot(ctx, op); err != nil {
		<-t.keyless
		return nil, err
	}
	return func() { <-t.slots; <-t.keyless }, nil
}

// takeSlot takes a slot in the pool, or waits for one.
func (t *Token) takeSlot(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return claviger.E(op, claviger.Unavailable, "", err)
	}
	select {
	case t.slots <- struct{}{}:
		return nil
	default:
	}
	select {
	case t.slots <- struct{}{}:
		return nil
	case <-t.end:
		return claviger.E(op, claviger.Closed, "", nil)
	case <-ctx.Done():
		return claviger.Errorf(op, claviger.Unavailable, "", "all %d sessions of the HSM were in use: %w",
			cap(t.slots), context.Cause(ctx))
	}
}

// ErrRefused means that the token refuses to use a key: its result is about the key or the request, and not about the
// token. SoftHSM does so with a damaged object.
var ErrRefused = errors.New("the token refuses to use the key")

// refusedKey is an ErrRefused with the token's result.
type refusedKey struct{ error }

func (e refusedKey) Unwrap() error { return e.error }

func (refusedKey) Is(target error) bool { return target == ErrRefused }

// withKind makes a *claviger.Error from the error of an attempt. A result about the request itself is Internal, unless
// the request was to use a key: that key may work on the HSM of another node.
func withKind(op string, s subject, err error) error {
	var domain *claviger.Error
	var code p11.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &domain):
		return err
	case damageOf(err) > none:
		return claviger.E(op, claviger.Unavailable, "", err)
	case s.key && errors.As(err, &code):
		return claviger.E(op, claviger.Unavailable, "", refusedKey{err})
	}
	return claviger.E(op, claviger.Internal, "", err)
}

// runOnce runs f with a session, and keeps the session if it still works. It returns the login, which is nil if there
// is none, and the library's generation at that time.
func (t *Token) runOnce(ctx context.Context, f func(*login, p11.SessionHandle) error) (_ *login, generation uint64,
	err error) {
	visit, err := t.module.enter(ctx)
	if err != nil {
		return nil, 0, claviger.E("pkcs11.Token", claviger.Unavailable, "", err)
	}
	defer t.module.leave(visit)
	generation = t.module.current()
	l, s, err := t.acquireSession(ctx)
	if err != nil {
		return l, generation, err
	}
	err = f(l, s)
	severity := damageOf(err)
	if t.throttles(err) {
		severity = none // a new session would be one call more
	}
	if severity == gone {
		if t.stillLoggedIn(l.session) != nil {
			t.retire(l)
		} else if isOneOf(err, p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_SESSION_CLOSED) {
			t.dropStale(l)
		}
	}
	t.releaseSession(l, s, severity)
	return l, generation, err
}

// dropStale forgets the idle sessions of a login that the HSM has closed. An HSM that closes sessions which are not
// used closes many at once, and the calls that follow would each find another one.
func (t *Token) dropStale(l *login) {
	t.mu.Lock()
	idle := l.idle
	l.idle = nil
	t.mu.Unlock()
	idle = slices.DeleteFunc(idle, func(s p11.SessionHandle) bool { return t.stillLoggedIn(s) != nil })
	t.mu.Lock()
	if t.login == l {
		l.idle, idle = append(idle, l.idle...), nil
	}
	t.mu.Unlock()
	for _, s := range idle { // the login has ended meanwhile
		_ = t.b.CloseSession(s) // the library may have closed it already
	}
}

// errNoSession means that the HSM allows no further session now.
var errNoSession = errors.New("the HSM allows no further session")

// acquireSession logs in if necessary, and returns an idle session or a new one. If the HSM allows no session beside
// the login's, the login's session is used for one call at a time.
func (t *Token) acquireSession(ctx context.Context) (*login, p11.SessionHandle, error) {
	l, err := t.loggedIn(ctx)
	if err != nil {
		return nil, 0, err
	}
	t.mu.Lock()
	l.used++
	if n := len(l.idle); n > 0 {
		s := l.idle[n-1]
		l.idle = l.idle[:n-1]
		t.mu.Unlock()
		return l, s, nil
	}
	t.mu.Unlock()
	s, err := t.openSession(l.found)
	if err == nil {
		return l, s, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	l.used--
	if isOneOf(err, p11.CKR_SESSION_COUNT) {
		if l.used == 0 && t.login == l {
			l.used++
			l.lent = true
			return l, l.session, nil
		}
		return l, 0, fmt.Errorf("%w: %w", errNoSession, err)
	}
	if damageOf(err) >= gone && !t.throttles(err) {
		t.retireLocked(l)
	}
	return l, 0, err
}

// openSession opens a session of a token. Only a session that may write gives the state that stillLoggedIn expects.
func (t *Token) openSession(c candidate) (p11.SessionHandle, error) {
	return t.b.OpenSession(c.slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
}

// releaseSession keeps a session for the next call, or closes it.
func (t *Token) releaseSession(l *login, s p11.SessionHandle, severity damage) {
	t.mu.Lock()
	l.used--
	if l.lent && s == l.session {
		l.lent = false
		retired := t.login != l
		if severity != none {
			t.retireLocked(l) // to close this session is to log out
		}
		t.mu.Unlock()
		if retired {
			_ = t.b.CloseSession(s) // the library may have closed it already
		}
		return
	}
	if severity == none && t.login == l && !t.closed {
		l.idle = append(l.idle, s)
		t.mu.Unlock()
		return
	}
	t.mu.Unlock()
	_ = t.b.CloseSession(s) // the library may have closed it already
}

// reset initialises the library again after the token was lost in that generation. Its intervals grow. The next call
// logs in again.
func (t *Token) reset(ctx context.Context, generation uint64, cause error) error {
	if err := t.awaitRetry(ctx, cause); err != nil {
		return err
	}
	t.mu.Lock()
	if t.module.current() != generation {
		t.mu.Unlock()
		return nil // another reset was faster
	}
	f := t.resetting
	switch wait := time.Until(t.retryAt); {
	case f != nil:
		t.mu.Unlock()
		return f.wait(ctx)
	case wait > 0:
		t.mu.Unlock()
		return fmt.Errorf("the token was lost; the next attempt to get it back is in %v", wait.Round(time.Millisecond))
	case wait < -calmPeriod:
		t.backoff = 0
	}
	t.backoff = min(max(2*t.backoff, firstBackoff), maxBackoff)
	f = newFlight()
	t.resetting = f
	t.mu.Unlock()

	t.log.Warn("the token was lost; initialising the PKCS#11 library again", "module", t.cfg.Module, "err",
		cause)
	begun := time.Now()
	err := t.module.reset(ctx, generation, t.b)
	if err != nil {
		err = fmt.Errorf("initialising %s again: %w", t.cfg.Module, err)
	}
	t.mu.Lock()
	t.resetting = nil
	t.retryAt = time.Now().Add(t.backoff)
	if !errors.Is(err, errHung) { // errHung costs the HSM nothing
		t.retryAt = time.Now().Add(max(t.backoff, time.Since(begun)))
	}
	t.mu.Unlock()
	f.finish(err)
	return err
}

// awaitRetry waits until the next reset is allowed, if that is soon: within the first pause, or within the longest if
// the library's process has ended, because to start another process costs the HSM no more than a login.
func (t *Token) awaitRetry(ctx context.Context, cause error) error {
	longest := firstBackoff
	if ended := (worker.GoneError{}); errors.As(cause, &ended) {
		longest = maxBackoff
	}
	t.mu.Lock()
	pause := time.Until(t.retryAt)
	t.mu.Unlock()
	if pause <= 0 || pause > longest {
		return nil
	}
	return t.pause(ctx, pause)
}

// pause waits for that time. It returns an error if ctx ends or the token is closed before.
func (t *Token) pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-t.end:
		return claviger.E("pkcs11.Token", claviger.Closed, "", nil)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flight is work that one goroutine does and others wait for.
type flight struct {
	done chan struct{}
	err  error
}

func newFlight() *flight { return &flight{done: make(chan struct{})} }

// finish ends the flight with a result.
func (f *flight) finish(err error) {
	f.err = err
	close(f.done)
}

// wait returns the result of finish, or ctx's error.
func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}
