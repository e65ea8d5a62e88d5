package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// Token is an open token. Its methods may be called from many goroutines. Errors
// are *claviger.Error: kind Unavailable where the token is away or does not
// answer before ctx ends, Closed after Close, Internal for what should not
// happen.
type Token struct {
	cfg    Config
	module *module
	b      Boundary
	log    *slog.Logger
	slots  chan struct{} // one place per call under way
	end    chan struct{} // closed by Close

	mechanism uint
	maxData   int

	mu         sync.Mutex
	closed     bool
	found      candidate
	generation uint64              // of the sessions below
	login      p11.SessionHandle   // stays open: closing the last session logs out
	idle       []p11.SessionHandle // last in, first out
	badPIN     error               // the PIN was refused: it is not tried again
	onReset    []func()
	retryAt    time.Time // before it, a lost token is not tried again
	backoff    time.Duration

	handles sync.Map // string(id) -> handle
	gather  sync.Map // string(id) -> *gatherer
}

// handle is a cached object handle. It is good in one generation only: after a
// token came back, the same number may name another key.
type handle struct {
	object     p11.ObjectHandle
	label      string
	generation uint64
}

// Open loads the library, finds the token, logs in, and finds out which
// mechanism works. Its errors say what is wrong and how to mend it.
func Open(ctx context.Context, cfg Config) (*Token, error) {
	const op = "pkcs11.Open"
	if _, err := ParseProfile(string(cfg.Profile)); err != nil {
		return nil, claviger.E(op, claviger.Invalid, "", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.PIN == nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "no source of the PIN is given")
	}
	m, err := openModule(cfg.Module)
	if err != nil {
		return nil, claviger.E(op, claviger.Invalid, "", err)
	}
	t := &Token{cfg: cfg, module: m, b: m.b, log: cfg.Log, end: make(chan struct{})}
	if cfg.Wrap != nil {
		t.b = cfg.Wrap(t.b)
	}
	err = t.call(ctx, func() error {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.connect()
	})
	if err == nil {
		err = t.setUp(ctx)
	}
	if err != nil {
		kind := claviger.Invalid
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			kind = claviger.Unavailable
		}
		return nil, claviger.E(op, kind, "", errors.Join(err, t.Close()))
	}
	return t, nil
}

// setUp applies the profile, which may be the one of the token's maker, and
// finds the mechanism.
func (t *Token) setUp(ctx context.Context) error {
	if t.cfg.Profile == "" {
		t.cfg.Profile = profileOf(t.found.info.ManufacturerID)
	}
	traits := profiles[t.cfg.Profile]
	if t.cfg.MaxSessions == 0 {
		t.cfg.MaxSessions = traits.sessions
	}
	t.slots, t.maxData = make(chan struct{}, t.cfg.MaxSessions), traits.dataLimit
	return t.probe(ctx, traits.ladder)
}

// call runs f, which makes C calls, and leaves it behind when ctx ends: a C
// call cannot be stopped. What is left behind keeps its place in the pool, so
// that no more than MaxSessions of them can pile up.
func (t *Token) call(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		t.module.busy.RLock()
		err := f()
		t.module.busy.RUnlock()
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connect finds the token and logs in. t.mu is held.
func (t *Token) connect() error {
	if t.badPIN != nil {
		return t.badPIN
	}
	found, err := findToken(t.b, &t.cfg)
	if err != nil {
		return err
	}
	who := found.String()
	switch flags := found.info.Flags; {
	case flags&flagPINLocked != 0:
		return fmt.Errorf("the PIN of token %s is locked after too many wrong tries; the HSM's security officer must reset it", who)
	case flags&flagPINInitialized == 0:
		return fmt.Errorf("token %s has no user PIN yet; the HSM's security officer must set one", who)
	case flags&flagPINFinalTry != 0:
		return fmt.Errorf("token %s would lock at one more wrong PIN, so it is not tried; log in once with the HSM's own tool and the right PIN, then start again", who)
	case flags&flagPINCountLow != 0:
		t.log.Warn("a wrong PIN was tried at the token before", "token", who)
	}
	session, err := t.b.OpenSession(found.slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	if err != nil {
		return fmt.Errorf("opening a session on token %s: %w", who, err)
	}
	pin, err := t.cfg.PIN()
	if err != nil {
		return errors.Join(err, t.b.CloseSession(session))
	}
	err = t.b.Login(session, p11.CKU_USER, string(pin))
	pin.Wipe()
	switch {
	case err == nil, errors.Is(err, p11.Error(p11.CKR_USER_ALREADY_LOGGED_IN)):
	case isPIN(err):
		t.badPIN = fmt.Errorf("token %s refuses the PIN of %s (%w); it was tried once and is not tried again, lest the token lock: correct the PIN, then start again", who, t.cfg.PINSource, err)
		return errors.Join(t.badPIN, t.b.CloseSession(session))
	default:
		return errors.Join(fmt.Errorf("logging in to token %s: %w", who, err), t.b.CloseSession(session))
	}
	t.found, t.login, t.generation = found, session, t.module.current()
	t.idle = nil
	return nil
}

func isPIN(err error) bool {
	for _, code := range []uint{p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_EXPIRED, p11.CKR_PIN_LOCKED} {
		if errors.Is(err, p11.Error(code)) {
			return true
		}
	}
	return false
}

// Info tells what is known of the token.
func (t *Token) Info() TokenInfo {
	t.mu.Lock()
	found := t.found
	t.mu.Unlock()
	i := TokenInfo{
		Label: strings.TrimSpace(found.info.Label), Serial: strings.TrimSpace(found.info.SerialNumber),
		Manufacturer: strings.TrimSpace(found.info.ManufacturerID), Model: strings.TrimSpace(found.info.Model),
		Firmware: fmt.Sprintf("%d.%d", found.info.FirmwareVersion.Major, found.info.FirmwareVersion.Minor),
		Slot:     found.slot, Profile: t.cfg.Profile, Mechanism: mechanismName(t.mechanism), MaxSessions: t.cfg.MaxSessions, MaxData: t.maxData,
	}
	if found.info.FreePrivateMemory != unavailable {
		i.FreePrivateMemory = found.info.FreePrivateMemory
	}
	return i
}

// OnReset has f called each time that the token was lost and came back: what
// was known of its keys must be verified anew. f must not call the token.
func (t *Token) OnReset(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onReset = append(t.onReset, f)
}

// Ping asks the token for its state: one round trip, no key.
func (t *Token) Ping(ctx context.Context) error {
	return t.do(ctx, "pkcs11.Ping", func(p11.SessionHandle) error {
		t.mu.Lock()
		slot := t.found.slot
		t.mu.Unlock()
		_, err := t.b.GetTokenInfo(slot)
		return err
	})
}

// Close closes the sessions, which logs out, and the library with its last
// token. It waits for calls under way, for a moment. A second Close does nothing.
func (t *Token) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	close(t.end)
	t.mu.Unlock()
	const patience = 5 * time.Second
	deadline := time.After(patience)
	for range cap(t.slots) {
		select {
		case t.slots <- struct{}{}:
			continue
		case <-deadline:
		}
		t.log.Warn("a call to the HSM did not return before the token was closed", "token", t.found.String())
		break
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.login != 0 && t.generation == t.module.current() {
		for _, s := range append(t.idle, t.login) {
			_ = t.b.CloseSession(s) // the library is finalised next
		}
	}
	t.idle, t.login = nil, 0
	return t.module.release()
}
