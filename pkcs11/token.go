package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
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
	maxData   atomic.Int64           // bytes of one C_Encrypt; it may shrink, see encrypt
	spared    atomic.Pointer[[]uint] // attributes of new keys that it refuses, see withOptional
	inFlight  int                    // calls with one key under way at once
	limit     time.Duration          // callLimit, but in tests
	patience  time.Duration          // closePatience, but in tests

	// No C call is made while mu is held: it may hang, and Info and Close must not.
	mu         sync.Mutex
	closed     bool
	found      candidate // the last that was logged in to
	login      *login    // nil where the next call must log in
	logins     int       // how many there have been
	retired    []*login  // whose sessions are still to be closed
	connecting *flight   // the login that is being made
	resetting  *flight
	onReset    []func()
	retryAt    time.Time // before it, a lost token is not tried again
	backoff    time.Duration

	gather sync.Map // keyName -> *gatherer
	onCall atomic.Pointer[func(Call)]

	onFunction atomic.Pointer[func(Function)]
}

// keyName is what names a key for use: both its attributes, so that one who asks
// for the wrong label gets, and spoils, nobody else's key.
type keyName struct{ id, label string }

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
	t := &Token{cfg: cfg, log: cfg.Log, end: make(chan struct{}), limit: callLimit, patience: closePatience}
	ctx, cancel := t.limited(ctx)
	defer cancel()
	err := t.start(ctx)
	if err == nil {
		err = t.setUp(ctx)
	}
	if err == nil {
		return t, nil
	}
	kind := claviger.Invalid
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		kind = claviger.Unavailable
	}
	if t.module != nil {
		err = errors.Join(err, t.Close())
	}
	return nil, markAway(claviger.E(op, kind, "", err))
}

// start loads the library and logs in. Whatever of this hangs is left behind
// when ctx ends, and undone if it ever comes back.
func (t *Token) start(ctx context.Context) error {
	type loaded struct {
		m   *module
		err error
	}
	opened := make(chan loaded, 1)
	go func() {
		m, err := openModule(t.cfg.Module)
		opened <- loaded{m, err}
	}()
	select {
	case o := <-opened:
		if o.err != nil {
			return o.err
		}
		t.module = o.m
	case <-ctx.Done():
		go func() {
			if o := <-opened; o.err == nil {
				_ = o.m.release() // nobody is left to hear of an error
			}
		}()
		return fmt.Errorf("PKCS#11 module %s did not come up in time: %w; the HSM client's own log or check program tells more", t.cfg.Module, ctx.Err())
	}
	t.b = t.module.b
	if t.cfg.Wrap != nil {
		t.b = t.cfg.Wrap(t.b)
	}
	t.b = traced{t.b, &t.onFunction}
	done := make(chan error, 1)
	go func() { done <- plain(t.firstLogin(ctx)) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the HSM behind %s did not answer in time: %w", t.cfg.Module, ctx.Err())
	}
}

// firstLogin logs in. Where SoftHSM was read while another process wrote the token's file, the
// library is initialised anew, since it reads tokens at no other time.
func (t *Token) firstLogin(ctx context.Context) error {
	until := time.Now().Add(writtenWithin)
	for pause := writtenPause; ; pause *= 2 {
		visit, err := t.module.enter(ctx)
		if err != nil {
			return err
		}
		seen := t.module.current()
		_, err = t.loggedIn(ctx)
		t.module.leave(visit)
		if err == nil || time.Now().Add(pause).After(until) || !readWhileWritten(&t.cfg, err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
		if failed := t.module.reset(ctx, seen, t.b); failed != nil {
			return errors.Join(err, failed)
		}
	}
}

// plain takes off what the first login is not to be told with: it is neither
// repeated nor told to a client.
func plain(err error) error {
	var e *claviger.Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Err
	}
	return err
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
	t.slots = make(chan struct{}, t.cfg.MaxSessions)
	t.maxData.Store(int64(traits.dataLimit))
	t.inFlight = traits.inFlight
	return t.probe(ctx, traits.ladder)
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
		Slot:     found.slot, Profile: t.cfg.Profile, Mechanism: mechanismName(t.mechanism), MaxSessions: t.cfg.MaxSessions, MaxData: int(t.maxData.Load()),
	}
	if found.info.FreePrivateMemory != unavailable {
		i.FreePrivateMemory = found.info.FreePrivateMemory
	}
	return i
}

// OnReset has f called each time that the token was lost and came back, or was
// logged in to anew, before it is used again: what was known of its keys must be
// verified anew. f must not call the token.
func (t *Token) OnReset(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onReset = append(t.onReset, f)
}

// Ping asks the token for a few random bytes: one round trip, no key. What is
// known of tokens and sessions a library may tell from its memory, though the HSM
// be gone; that is asked where the token makes no random numbers.
func (t *Token) Ping(ctx context.Context) error {
	return t.do(ctx, "pkcs11.Ping", func(_ *login, s p11.SessionHandle) error {
		_, err := t.b.GenerateRandom(s, 8)
		if errors.Is(err, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED)) || errors.Is(err, p11.Error(p11.CKR_RANDOM_NO_RNG)) {
			_, err = t.b.GetSessionInfo(s)
		}
		return err
	})
}

// closePatience is how long Close waits for calls under way, and then for the
// library.
const closePatience = 5 * time.Second

// Close closes the sessions, which logs out, and the library with its last
// token. It waits for calls under way, for a moment. A second Close does nothing.
func (t *Token) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	who := t.found.String()
	close(t.end)
	t.mu.Unlock()
	if !t.drain() {
		t.log.Warn("a call to the HSM did not return before the token was closed", "token", who)
	}
	ctx, cancel := context.WithTimeout(context.Background(), t.patience)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		if visit, err := t.module.enter(ctx); err == nil {
			t.mu.Lock()
			if t.login != nil {
				t.retired, t.login = append(t.retired, t.login), nil
			}
			t.mu.Unlock()
			t.closeRetired()
			t.module.leave(visit)
		}
		done <- t.module.release()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("PKCS#11 module %s: the library does not let go of token %s", t.cfg.Module, who)
	}
}

// drain takes all places of the pool; false where a call keeps its own.
func (t *Token) drain() bool {
	deadline := time.NewTimer(t.patience)
	defer deadline.Stop()
	for range cap(t.slots) {
		select {
		case t.slots <- struct{}{}:
		case <-deadline.C:
			return false
		}
	}
	return true
}
