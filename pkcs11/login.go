package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/filestamp"
	"claviger/secret"
)

// login is one login to the token, until the token is lost. Sessions and object handles are valid in one login
// only: in the next login the same number may mean another key.
type login struct {
	found      candidate
	made       time.Time
	generation uint64              // the library's generation when the login was made
	session    p11.SessionHandle   // stays open: closing the last session logs out
	idle       []p11.SessionHandle // last in, first out; guarded by Token.mu
	used       int                 // calls with a session of the login; guarded by Token.mu
	lent       bool                // a call uses session; guarded by Token.mu
	handles    sync.Map            // keyName -> p11.ObjectHandle
}

// refusal marks an error of a login that failed, or was not tried, for a reason that does not go away when the
// library is initialised again.
type refusal struct {
	error
	pin bool // see IsPINRefused
}

func (e refusal) Unwrap() error { return e.error }

// IsPINRefused reports whether a token refused the PIN, or whether no login was tried because the token is locked,
// or would lock after one more wrong PIN. A person must correct that: each start without a correction may be one
// more wrong PIN.
func IsPINRefused(err error) bool {
	var r refusal
	return errors.As(err, &r) && r.pin
}

var errNoUserPIN = errors.New("has no user PIN yet")

// loggedIn returns the current login. If there is none, one caller logs in and the others wait for it, each until
// its ctx ends.
func (t *Token) loggedIn(ctx context.Context) (*login, error) {
	for {
		t.mu.Lock()
		if t.closed {
			t.mu.Unlock()
			return nil, claviger.E("pkcs11.Token", claviger.Closed, "", nil)
		}
		l := t.login
		if l != nil && l.generation == t.module.current() {
			t.mu.Unlock()
			return l, nil
		}
		t.login = nil // a reset for another token of the library ended it
		if time.Until(t.loginAt) > 0 {
			err := t.loginErr
			t.mu.Unlock()
			return nil, claviger.E("pkcs11.Token", claviger.Unavailable, "", err)
		}
		f := t.connecting
		if f != nil {
			t.mu.Unlock()
			err := f.wait(ctx)
			if ctx.Err() != nil {
				return nil, claviger.E("pkcs11.Token", claviger.Unavailable, "", ctx.Err())
			}
			if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
				return nil, err
			}
			continue // the other caller logged in, or its time ended and the time of this caller did not
		}
		f = newFlight()
		t.connecting = f
		t.mu.Unlock()

		l, err := t.connect(ctx)
		var refused refusal
		switch {
		case err == nil:
			err = t.publish(l)
		case errors.As(err, &refused), ctx.Err() != nil && errors.Is(err, ctx.Err()):
			err = claviger.E("pkcs11.Token", claviger.Unavailable, "", err)
		default:
			err = errConnect{err}
		}
		t.mu.Lock()
		t.connecting = nil
		t.pauseLogins(err)
		t.mu.Unlock()
		f.finish(err)
		return l, err
	}
}

// pauseLogins sets the time of the next attempt to log in after an attempt that ended with err. If the PIN may be
// wrong, the next attempt only reads it again, unless the pause of the PIN is over: see doubt. The caller holds t.mu.
func (t *Token) pauseLogins(err error) {
	if err == nil || !MayBeWrongPIN(err) {
		return
	}
	var refused refusal
	if errors.As(err, &refused) {
		t.loginErr = refused
	} else {
		t.loginErr = heldBack{err.Error()}
	}
	t.loginAt = time.Now().Add(recheckPause)
}

// publish makes l the current login. It calls the functions of OnReset before any call can use l.
func (t *Token) publish(l *login) error {
	t.mu.Lock()
	var call []func()
	if t.logins > 0 {
		call = append(call, t.onReset...)
	}
	t.mu.Unlock()
	for _, f := range call {
		f()
	}
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.login, t.found = l, l.found
		t.logins++
	}
	t.mu.Unlock()
	if closed {
		_ = t.b.CloseSession(l.session) // Close has returned: there is no caller for an error
		return claviger.E("pkcs11.Token", claviger.Closed, "", nil)
	}
	return nil
}

// retire takes a login out of use. closeRetired closes its sessions later.
func (t *Token) retire(l *login) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retireLocked(l)
}

// retireLocked is retire for a caller that holds t.mu.
func (t *Token) retireLocked(l *login) {
	if t.login == l {
		t.login = nil
		t.retired = append(t.retired, l)
	}
}

// closeRetired closes the sessions of retired logins, except those that the library lost in a reset. The caller is
// between enter and leave.
func (t *Token) closeRetired() {
	t.mu.Lock()
	list := t.retired
	t.retired = nil
	generation := t.module.current()
	var sessions []p11.SessionHandle
	for _, l := range list {
		if l.generation == generation { // else the same number may be a new session
			sessions = append(sessions, l.idle...)
			if !l.lent { // else releaseSession closes it
				sessions = append(sessions, l.session)
			}
		}
		l.idle = nil
	}
	t.mu.Unlock()
	for _, s := range sessions {
		_ = t.b.CloseSession(s) // most libraries have closed it themselves
	}
}

// connect finds the token and logs in. The caller is between enter and leave.
func (t *Token) connect(ctx context.Context) (*login, error) {
	t.closeRetired()
	cfg := t.cfg
	t.mu.Lock()
	cfg.used = t.found.info.SerialNumber
	t.mu.Unlock()
	found, err := findToken(t.b, &cfg)
	if err != nil {
		return nil, t.notShownAgain(err)
	}
	name := found.String()
	then := t.loginCure(", then start again", "; this server then logs in by itself")
	if err := pinFault(found, t.cfg.Careful, then); err != nil {
		return nil, err
	}
	var file filestamp.Stamp
	if t.cfg.PINFile != "" {
		file, _ = filestamp.Of(t.cfg.PINFile) // PIN returns the error of a file that cannot be read
	}
	pin, err := t.cfg.PIN()
	if err != nil {
		return nil, refusal{err, false}
	}
	defer pin.Wipe()
	l := &login{found: found, made: time.Now(), generation: t.module.current()}
	tried := trial{t.module.name.resolved, found, pin, t.cfg.PINSource, file, t.module.startedAt()}
	err = triedPINs.try(ctx, tried, func(doubted bool) (accepted bool, _ error) {
		if err := pinFault(found, t.cfg.Careful || doubted, then); err != nil {
			return false, err
		}
		session, err := t.openSession(found)
		if err != nil {
			return false, fmt.Errorf("opening a session on token %s: %w", name, err)
		}
		if found.info.Flags&flagPINCountLow != 0 {
			t.log.Warn("a wrong PIN was tried at the token before", "token", name)
		}
		ended, err := t.beginLogin()
		if err != nil {
			_ = t.b.CloseSession(session) // the token is being closed
			return false, err
		}
		err = t.b.Login(session, p11.CKU_USER, string(pin))
		ended()
		if err == nil || errors.Is(err, p11.Error(p11.CKR_USER_ALREADY_LOGGED_IN)) {
			l.session = session
			return err == nil, nil // a token that is logged in already does not compare the PIN
		}
		_ = t.b.CloseSession(session) // only the login's error matters
		return false, loginError{fmt.Errorf("logging in to token %s: %w", name, err)}
	})
	if err != nil {
		return nil, t.withCure(name, pin, err)
	}
	return l, nil
}

// withCure adds the cure to an error about the PIN of the token of that name.
func (t *Token) withCure(name string, pin secret.Bytes, err error) error {
	switch {
	case isPIN(err) && isOneOf(err, p11.CKR_PIN_LOCKED):
		return refusal{fmt.Errorf("the PIN of token %s is locked after too many wrong tries (%w); the HSM's "+
			"security officer must reset it, %s", name, codeOf(err),
			t.loginCure("then start again", "then "+t.cfg.touchCure())), true}
	case errors.As(err, new(spentPIN)):
		return refusal{fmt.Errorf("token %s refuses the PIN of %s (%w)%s; it was tried %d times and is not tried "+
			"again, so that the token does not lock: correct the PIN, or restart this server if it is right", name,
			t.cfg.PINSource, codeOf(err), blankHint(pin), mostLogins), true}
	case isPIN(err):
		return refusal{fmt.Errorf("token %s refuses the PIN of %s (%w)%s; it was tried once and is not tried "+
			"again, so that the token does not lock: correct the PIN%s", name, t.cfg.PINSource, codeOf(err),
			blankHint(pin), t.loginCure(", then start again", t.cfg.refusedCure())), true}
	}
	return err
}

// blankHint returns the part of a message about a refused PIN that begins or ends with a blank. An editor does not show
// the blank. The result is "" for other PINs.
func blankHint(pin secret.Bytes) string {
	if len(bytes.TrimSpace(pin)) == len(pin) {
		return ""
	}
	return ", which begins or ends with a blank"
}

// beginLogin must be called before C_Login. The caller calls ended when C_Login has returned. Once the token is closed,
// no login begins.
func (t *Token) beginLogin() (ended func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, claviger.E("pkcs11.Token", claviger.Closed, "", nil)
	}
	done := make(chan struct{})
	t.inLogin, t.loginBegan = done, time.Now()
	t.module.loginsBegun.Add(1)
	return func() {
		t.module.loginsEnded.Add(1)
		close(done)
	}, nil
}

// awaitLogin waits for a C_Login that runs, until it has run for closeTimeout. A worker that ends in the middle of a
// login can damage a token that keeps its state in files: SoftHSM empties the file of the token before it writes it.
func (t *Token) awaitLogin() {
	t.mu.Lock()
	done, began := t.inLogin, t.loginBegan
	t.mu.Unlock()
	if done == nil {
		return
	}
	timer := time.NewTimer(time.Until(began.Add(t.closeTimeout)))
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// loginCure returns the cure of a login that failed: startAgain for a process that must be started again, or byItself
// for a running server, which logs in again by itself.
func (t *Token) loginCure(startAgain, byItself string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cfg.Serving || t.logins > 0 {
		return byItself
	}
	return startAgain
}

// refusedCure ends the advice to correct the PIN, for a running server. See pinTrials.
func (c *Config) refusedCure() string {
	if c.PINFile == "" {
		return ", then " + c.touchCure()
	}
	return "; this server reads a corrected PIN file by itself; if the PIN of the file is right by now, " +
		c.touchCure()
}

// touchCure says how a running server tries a refused PIN once more.
func (c *Config) touchCure() string {
	if c.PINFile == "" {
		return "restart this server"
	}
	return "touch the file, and this server tries the PIN once more"
}

// loginError is an error of C_Login.
type loginError struct{ error }

func (e loginError) Unwrap() error { return e.error }

// MayBeWrongPIN reports whether err is a login that failed with a code of the vendor's own, or that was not tried
// because of such a failure. The code may mean that the PIN is wrong, see doubt.
func MayBeWrongPIN(err error) bool {
	if errors.As(err, new(heldBack)) {
		return true
	}
	var failed loginError
	var code p11.Error
	return errors.As(err, &failed) && errors.As(failed, &code) && uint(code) >= p11.CKR_VENDOR_DEFINED
}

// isPIN reports whether err is a result of C_Login about the PIN. The same result of another function is a fault.
func isPIN(err error) bool {
	var failed loginError
	return errors.As(err, &failed) && isOneOf(failed, p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE,
		p11.CKR_PIN_EXPIRED, p11.CKR_PIN_LOCKED)
}

// codeOf returns the library's result code in err, or err if it holds none.
func codeOf(err error) error {
	var code p11.Error
	if errors.As(err, &code) {
		return code
	}
	return err
}
