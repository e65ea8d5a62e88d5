package pkcs11

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/secret"
)

// login is a token that is found and logged in to, until it is lost. Sessions
// and object handles are good in one login only: after the next, the same number
// may name another key.
type login struct {
	found      candidate
	generation uint64              // of the library
	session    p11.SessionHandle   // stays open: closing the last session logs out
	idle       []p11.SessionHandle // last in, first out; guarded by Token.mu
	handles    sync.Map            // keyName -> p11.ObjectHandle
}

// refusal marks why no login was tried, or why it failed, where initialising the
// library anew would not help.
type refusal struct {
	error
	pin bool // the token has refused the PIN, or would: another start is a wrong try more, or needs the officer first
}

func (e refusal) Unwrap() error { return e.error }

// IsPINRefused tells whether a token has refused the PIN, or no login was tried since it
// would lock or is locked. A person must mend that; to start again without is a wrong try
// more.
func IsPINRefused(err error) bool {
	var r refusal
	return errors.As(err, &r) && r.pin
}

var errNoUserPIN = errors.New("has no user PIN yet")

// loggedIn returns the login in force. Where there is none, one caller makes it
// and the others wait, each as long as he can.
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
		t.login = nil // another token's reset ended it
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
			continue // or his time was up, but ours is not
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
		t.mu.Unlock()
		f.land(err)
		return l, err
	}
}

// publish puts a login in force. Those who asked for it by OnReset are told
// before anybody can use it.
func (t *Token) publish(l *login) error {
	t.mu.Lock()
	var tell []func()
	if t.logins > 0 {
		tell = append(tell, t.onReset...)
	}
	t.mu.Unlock()
	for _, f := range tell {
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
		_ = t.b.CloseSession(l.session) // nobody is left to hear of an error
		return claviger.E("pkcs11.Token", claviger.Closed, "", nil)
	}
	return nil
}

// retire takes a login out of use. Its sessions are closed by closeRetired.
func (t *Token) retire(l *login) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.login == l {
		t.login = nil
		t.retired = append(t.retired, l)
	}
}

// closeRetired closes what retired logins have left, as far as the library has
// not forgotten it. It is called between enter and leave.
func (t *Token) closeRetired() {
	t.mu.Lock()
	list := t.retired
	t.retired = nil
	generation := t.module.current()
	var sessions []p11.SessionHandle
	for _, l := range list {
		if l.generation == generation { // else the numbers may be another's by now
			sessions = append(append(sessions, l.idle...), l.session)
		}
		l.idle = nil
	}
	t.mu.Unlock()
	for _, s := range sessions {
		_ = t.b.CloseSession(s) // most libraries have closed it themselves
	}
}

// connect finds the token and logs in. It is called between enter and leave.
func (t *Token) connect(ctx context.Context) (*login, error) {
	t.closeRetired()
	found, err := findToken(t.b, &t.cfg)
	if err != nil {
		return nil, err
	}
	who := found.String()
	switch flags := found.info.Flags; {
	case flags&flagPINLocked != 0:
		return nil, refusal{fmt.Errorf("the PIN of token %s is locked after too many wrong tries; the HSM's security officer must reset it", who), true}
	case flags&flagPINInitialized == 0:
		return nil, refusal{fmt.Errorf("token %s %w; the HSM's security officer must set one", who, errNoUserPIN), true}
	case flags&flagPINFinalTry != 0:
		return nil, refusal{fmt.Errorf("token %s would lock at one more wrong PIN, so it is not tried; log in once with the HSM's own tool and the right PIN, then start again", who), true}
	case flags&flagPINCountLow != 0:
		t.log.Warn("a wrong PIN was tried at the token before", "token", who)
	}
	pin, err := t.cfg.PIN()
	if err != nil {
		return nil, refusal{err, false}
	}
	defer pin.Wipe()
	l := &login{found: found, generation: t.module.current()}
	err = refusedPINs.try(ctx, t.module.resolved, found, pin, func() error {
		session, err := t.b.OpenSession(found.slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
		if err != nil {
			return fmt.Errorf("opening a session on token %s: %w", who, err)
		}
		err = t.b.Login(session, p11.CKU_USER, string(pin))
		if err == nil || errors.Is(err, p11.Error(p11.CKR_USER_ALREADY_LOGGED_IN)) {
			l.session = session
			return nil
		}
		_ = t.b.CloseSession(session) // the login's error is the one that matters
		return fmt.Errorf("logging in to token %s: %w", who, err)
	})
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, p11.Error(p11.CKR_PIN_LOCKED)):
		return nil, refusal{fmt.Errorf("the PIN of token %s is locked after too many wrong tries (%w); the HSM's security officer must reset it, then start again", who, codeOf(err)), true}
	case isPIN(err):
		return nil, refusal{fmt.Errorf("token %s refuses the PIN of %s (%w); it was tried once and is not tried again, lest the token lock: correct the PIN, then start again", who, t.cfg.PINSource, codeOf(err)), true}
	}
	return nil, err
}

func isPIN(err error) bool {
	for _, code := range []uint{p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_EXPIRED, p11.CKR_PIN_LOCKED} {
		if errors.Is(err, p11.Error(code)) {
			return true
		}
	}
	return false
}

// codeOf is the library's own word within err.
func codeOf(err error) error {
	var code p11.Error
	if errors.As(err, &code) {
		return code
	}
	return err
}

// refusedPINs are this process's.
var refusedPINs = pinBook{trials: map[[sha256.Size]byte]*flight{}}

// pinBook remembers PINs that a token has refused. Each wrong try brings a token
// nearer to locking itself, and a process opens one token many times: at each
// reload, for each provider, and whenever the token was lost. It holds no PIN but
// a keyed hash of each, whose key lives and dies with the process.
type pinBook struct {
	once   sync.Once
	key    [sha256.Size]byte
	mu     sync.Mutex
	trials map[[sha256.Size]byte]*flight // under way, or refused
}

// try calls attempt, unless the same PIN was refused by the same token before:
// then it returns the error of that time. Of several who try one PIN at once, one
// does.
func (b *pinBook) try(ctx context.Context, module string, token candidate, pin secret.Bytes, attempt func() error) error {
	b.once.Do(func() { _, _ = rand.Read(b.key[:]) }) // it never fails
	h := hmac.New(sha256.New, b.key[:])
	fmt.Fprintf(h, "%q %q %q ", module, token.info.SerialNumber, token.info.Label)
	h.Write(pin)
	name := [sha256.Size]byte(h.Sum(nil))
	for {
		b.mu.Lock()
		f, ok := b.trials[name]
		if ok {
			b.mu.Unlock()
			if err := f.wait(ctx); isPIN(err) || ctx.Err() != nil {
				return err
			}
			continue
		}
		f = newFlight()
		b.trials[name] = f
		b.mu.Unlock()
		err := attempt()
		if !isPIN(err) {
			b.mu.Lock()
			delete(b.trials, name)
			b.mu.Unlock()
		}
		f.land(err)
		return err
	}
}
