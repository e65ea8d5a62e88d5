package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/pkcs11/worker"
)

// A call that fails is tried again, after one step of repair each time: on another session, with the key's handle
// found again; after a new login; after a new start of the library. The last two steps disturb all calls, so they are
// for faults of the token. A fault of one key, on a token that works for others, fails the calls with that key alone.

// Pauses after failed operations with one key. The first failure has no pause.
const (
	firstPauseOfKey = 100 * time.Millisecond
	maxPauseOfKey   = time.Second
	// maxPauseOfResets is the longest time between two resets because of one subject that fails while a new key works.
	maxPauseOfResets = time.Minute
	// newLogin is the age of a login up to which another login would not help.
	newLogin = 10 * time.Second
)

// maxFaults is the number of records after which old ones are dropped.
const maxFaults = 1024

// subject is what a fault can be about: a key, or an operation without a key.
type subject struct {
	name string
	key  bool
}

func keySubject(label string) subject { return subject{label, true} }

// fault is the record of a subject whose operations fail. It is guarded by Token.mu.
type fault struct {
	failures  int       // failed operations without a success between them
	cause     error     // of the last failure
	last      time.Time // of the last failure
	until     time.Time // no operation before this time
	successes uint64    // Token.successes at the last failure
	resetAt   time.Time // before this time this subject alone causes no reset
	hangs     int       // failures that were calls which hung while other keys worked
}

// paused returns an error while operations of the subject wait for the next try.
func (t *Token) paused(s subject) error {
	if t.failing.Load() == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.faults[s]
	if f == nil {
		return nil
	}
	if wait := time.Until(f.until); wait > 0 {
		return claviger.Errorf("pkcs11.Token", claviger.Unavailable, s.name,
			"%d calls in a row failed on the HSM, the last with: %v; the next try is in %v", f.failures, f.cause,
			wait.Round(time.Millisecond))
	}
	return nil
}

// succeeded ends the record of the subject. A success with a key shows that the token works.
func (t *Token) succeeded(s subject) {
	if t.busySince.Load() != 0 {
		t.busySince.Store(0)
	}
	if s.key {
		t.successes.Add(1)
	}
	if t.failing.Load() == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.faults, s)
	t.failing.Store(int64(len(t.faults)))
}

// failed records a failed operation that began at that time. Operations that began before the last failure was
// recorded count as one failure with it.
func (t *Token) failed(s subject, begun time.Time, cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.faultOf(s)
	if begun.Before(f.last) {
		return
	}
	now := time.Now()
	f.failures++
	f.last, f.successes, f.cause = now, t.successes.Load(), cause
	if f.failures > 1 && s.key {
		f.until = now.Add(min(firstPauseOfKey<<min(f.failures-2, 10), maxPauseOfKey))
	}
}

// faultOf returns the record of the subject, or a new one. The caller holds t.mu.
func (t *Token) faultOf(s subject) *fault {
	if f := t.faults[s]; f != nil {
		return f
	}
	if len(t.faults) >= maxFaults {
		for old, f := range t.faults {
			if time.Since(f.last) > maxPauseOfResets {
				delete(t.faults, old)
			}
		}
	}
	f := new(fault)
	if t.faults == nil {
		t.faults = map[subject]*fault{}
	}
	t.faults[s] = f
	t.failing.Store(int64(len(t.faults)))
	return f
}

// isTokenFault decides whether a failed operation of the subject shows a fault of the token. It does not if another key
// worked since the subject's last failure. Otherwise it does if other subjects fail as well, if the subject fails
// again, or if a new session key does not work.
func (t *Token) isTokenFault(ctx context.Context, s subject) bool {
	t.mu.Lock()
	now, successes := time.Now(), t.successes.Load()
	f := t.faultOf(s)
	known := f.failures > 0
	othersWork := known && f.successes != successes
	several := false
	for other, o := range t.faults {
		several = several || other != s && o.failures > 0 && o.successes == successes
	}
	suspicious := !othersWork && (several || known) && now.After(f.resetAt)
	if suspicious {
		f.resetAt = now.Add(min(time.Second<<min(f.failures, 10), maxPauseOfResets))
	}
	t.mu.Unlock()
	switch {
	case othersWork:
		return false
	case suspicious:
		return true
	}
	err := t.tryToken(ctx)
	return damageOf(err) > none && !errors.Is(err, errNoSession) && ctx.Err() == nil
}

// tryToken encrypts with a new session key, in a session of its own. Callers at the same time share the result,
// unless the context of the caller who tried the token ended before the result.
func (t *Token) tryToken(ctx context.Context) error {
	t.mu.Lock()
	for t.trying != nil {
		f := t.trying
		t.mu.Unlock()
		err := f.wait(ctx)
		if ctx.Err() != nil || !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		t.mu.Lock()
	}
	f := newFlight()
	t.trying = f
	t.mu.Unlock()
	_, _, err := t.runOnce(ctx, func(l *login, used p11.SessionHandle) error {
		return t.inOwnSession(l, used, t.tryNewKey)
	})
	t.mu.Lock()
	t.trying = nil
	t.mu.Unlock()
	f.finish(err)
	return err
}

// inOwnSession calls f with a new session, or with used if the HSM opens no other one.
func (t *Token) inOwnSession(l *login, used p11.SessionHandle, f func(p11.SessionHandle) error) error {
	s, err := t.openSession(l.found)
	if err != nil {
		return f(used)
	}
	defer t.b.CloseSession(s) //nolint:errcheck // what f does is what counts
	return f(s)
}

// tryNewKey encrypts with a new session key. A token that only signs need not make such keys.
func (t *Token) tryNewKey(s p11.SessionHandle) error {
	if t.cfg.SignOnly {
		return t.ping(s)
	}
	key, err := t.sessionKey(s)
	if err != nil {
		return err
	}
	defer t.destroy(s, key, sessionKeyMatch) //nolint:errcheck // it ends with the session in any case
	if len(t.mechanisms) == 0 {
		return nil // the token is being opened
	}
	_, err = t.encryptBy(s, keyUse{}, key, []byte(checkBlock))
	return err
}

// attempt runs f. After a failure it makes the next step of repair, and runs f again.
func (t *Token) attempt(ctx context.Context, s subject, f func(*login, p11.SessionHandle) error) error {
	if err := t.paused(s); err != nil {
		return err
	}
	begun, busy := time.Now(), 0
	fresh := false // whether the library was started because the token showed no key
	for step := anotherSession; ; {
		successes, from := t.successes.Load(), time.Now()
		l, generation, err := t.runOnce(ctx, f)
		switch {
		case err == nil:
			t.succeeded(s)
			return nil
		case errors.Is(err, errNoSession):
			if err := t.awaitSession(ctx); err != nil {
				return err
			}
			continue
		case damageOf(err) == none || settled(err):
			if fresh {
				return err
			}
			var failed error
			if fresh, failed = t.startIfStale(ctx, generation, err); failed != nil {
				return claviger.E("pkcs11.Token", claviger.Unavailable, s.name, failed)
			} else if !fresh {
				return err
			}
			continue
		case t.isBusy(err):
			if !t.awaitBusy(ctx, busy) {
				t.failed(s, begun, err)
				return err
			}
			busy++
			continue
		case t.hungAlone(ctx, s, from, successes, generation, err):
			return err
		case libraryGone(err):
			step = max(step, anotherStart) // also for the callers that still wait
		case ctx.Err() != nil:
			return err
		}
		var failed error
		if step, failed = t.repair(ctx, s, step, l, generation, err); failed != nil {
			t.failed(s, begun, failed)
			return failed
		}
		if ctx.Err() != nil {
			return err
		}
		if err := t.hangs(s); err != nil { // another call with the same key hung meanwhile
			return err
		}
	}
}

// The steps of repair, which are made before the next run.
const (
	anotherSession = iota
	anotherLogin
	anotherStart
	noneLeft
)

// repair makes a step of repair, so that the operation can run again, and returns the step after it. It may skip a
// step. It returns an error if the operation does not run again.
func (t *Token) repair(ctx context.Context, s subject, step int, l *login, generation uint64, cause error) (int,
	error) {
	switch step {
	case anotherSession:
		return anotherLogin, nil
	case anotherLogin:
		if !t.isTokenFault(ctx, s) {
			return step, cause
		}
		if l != nil && time.Since(l.made) > newLogin {
			t.log.Warn("calls fail on the token; logging in again", "module", t.cfg.Module, "err", cause)
			t.retire(l)
			return anotherStart, nil
		}
		fallthrough // the login is new: another one will not help
	case anotherStart:
		if err := t.reset(ctx, generation, cause); err != nil {
			return step, fmt.Errorf("%w (%w)", cause, err)
		}
		return noneLeft, nil
	}
	return step, cause
}

// libraryGone reports whether a call cannot succeed before the library is initialised again.
func libraryGone(err error) bool {
	var connect errConnect
	var ended worker.GoneError
	return errors.As(err, &connect) || errors.As(err, &ended) ||
		errors.Is(err, p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED))
}

// settled reports whether the operation itself has judged the library's result.
func settled(err error) bool {
	var domain *claviger.Error
	return errors.As(err, &domain) && domain.Kind != claviger.Unavailable
}
