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

// Token is an open token. Its methods may be called from many goroutines. Errors are *claviger.Error: of kind
// Unavailable if the token is lost or does not answer before ctx ends, Closed after Close, and Internal for errors
// that should not happen.
type Token struct {
	cfg    Config
	module *module
	b      Boundary
	log    *slog.Logger
	slots  chan struct{} // one element for each running call
	// keyless has one element for each running operation without a key.
	keyless chan struct{}
	end     chan struct{} // closed by Close

	mechanisms   []uint                 // that the token offers, the best first
	fullData     int64                  // the profile's largest number of bytes for one C_Encrypt
	omitted      atomic.Pointer[[]uint] // attributes of new keys that the token refuses, see withOptional
	inFlight     int                    // calls with one key at the same time, at least; see callsAtOnce
	callTime     callTime               // of the encryptions
	limit        time.Duration          // callLimit; shorter in tests
	closeTimeout time.Duration          // closeTimeout; shorter in tests

	// No C call is made while mu is held: a C call may hang, and Info and Close must not.
	mu         sync.Mutex
	closed     bool
	found      candidate // the token of the last login
	login      *login    // nil if the next call must log in
	logins     int       // number of logins until now
	retired    []*login  // their sessions are still to be closed
	connecting *flight   // the running login
	resetting  *flight   // the running reset of the library
	onReset    []func()
	retryAt    time.Time // no reset before this time
	backoff    time.Duration
	parked     []*parkedSlot      // slots that awaitSession took out of use
	loginErr   error              // see loginAt
	loginAt    time.Time          // no login before this time
	inLogin    chan struct{}      // of the last C_Login, closed when it has returned; nil before the first
	loginBegan time.Time          // when the last C_Login began
	trying     *flight            // the running tryToken
	faults     map[subject]*fault // of the subjects that have failed
	failing    atomic.Int64       // len(faults)

	busySince atomic.Int64  // first result of a busy HSM since the last success, in UnixNano; 0: none
	successes atomic.Uint64 // calls that encrypted with a key
	progress  progress      // of the calls that encrypt
	aesKeys   heldKeys
	pairs     heldKeys     // private RSA keys
	signers   heldKeys     // private keys that sign
	emptied   emptied      // guarded by mu
	reduced   learned[int] // index in mechanisms of the best that the token does not refuse for a key
	// refusesPSS: the token has no CKM_RSA_PKCS_PSS.
	refusesPSS atomic.Bool
	maxData    learned[int64] // largest number of bytes for one C_Encrypt with a key, see dataLimit

	gather sync.Map // keyName -> *gatherer
	onCall atomic.Pointer[func(Call)]

	onFunction atomic.Pointer[func(Function)]
}

// keyName names a key by both CKA_ID and label. So a caller with a wrong label neither gets nor drops the gatherer
// and the handle of another key.
type keyName struct{ id, label string }

// Open loads the library, finds the token, logs in, and probes which mechanism works. Its errors name the problem and
// the cure.
func Open(ctx context.Context, cfg Config) (*Token, error) {
	const op = "pkcs11.Open"
	if _, err := ParseProfile(string(cfg.Profile)); err != nil {
		return nil, claviger.E(op, claviger.Invalid, "", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Log = claviger.LimitLog(cfg.Log)
	if cfg.PIN == nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "no source of the PIN is given")
	}
	t := &Token{cfg: cfg, log: cfg.Log, end: make(chan struct{}), limit: callLimit, closeTimeout: closeTimeout,
		aesKeys: heldKeys{match: allKeys}, pairs: heldKeys{match: allPairs}, signers: heldKeys{match: allPrivateKeys}}
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

// start loads the library and logs in. If a step hangs until ctx ends, start returns without it. If the step returns
// later, it is undone.
func (t *Token) start(ctx context.Context) error {
	m, err := openInTime(ctx, &t.cfg)
	if err != nil {
		return err
	}
	t.module = m
	t.b = t.module.b
	if t.cfg.Wrap != nil {
		t.b = t.cfg.Wrap(t.b)
	}
	t.b = traced{t.b, &t.onFunction}
	_, err = inTime(ctx, func() (struct{}, error) { return struct{}{}, withoutDomainError(t.firstLogin(ctx)) },
		nil, t.cfg.didNotAnswer)
	return err
}

// inTime returns the results of f. If ctx ends before f does, which may hang in a library, inTime returns without it,
// with the error of ended. If f succeeds later, late gets the result, unless late is nil.
func inTime[T any](ctx context.Context, f func() (T, error), late func(T), ended func(error) error) (T, error) {
	type results struct {
		of  T
		err error
	}
	done := make(chan results, 1)
	go func() {
		of, err := f()
		done <- results{of, err}
	}()
	select {
	case r := <-done:
		return r.of, r.err
	case <-ctx.Done():
		if late != nil {
			go func() {
				if r := <-done; r.err == nil {
					late(r.of)
				}
			}()
		}
		var none T
		return none, ended(ctx.Err())
	}
}

// didNotAnswer is the error of an HSM that did not answer until a context ended with err.
func (c *Config) didNotAnswer(err error) error {
	return fmt.Errorf("the HSM behind %s did not answer in time: %w", c.Module, err)
}

// openInTime loads the library. If that hangs until ctx ends, openInTime returns without it. If the library is loaded
// later, openInTime unloads it.
func openInTime(ctx context.Context, c *Config) (*module, error) {
	return inTime(ctx, func() (*module, error) {
		return openModule(ctx, c.Module, c.Worker.inWorker(), c.CallLimit, c.OwnWorker)
	}, func(m *module) {
		_ = m.release() // openInTime has returned: there is no caller for an error
	}, func(err error) error {
		return fmt.Errorf("PKCS#11 module %s did not start in time: %w; the HSM client's own log or check "+
			"program says more", c.Module, err)
	})
}

// firstLogin logs in. If SoftHSM read the token's file while another process wrote it, or if the library may know an
// old PIN only, firstLogin initialises the library again, since the library reads tokens only then.
func (t *Token) firstLogin(ctx context.Context) error {
	until := time.Now().Add(writeTimeout)
	for pause := firstPause; ; pause *= 2 {
		visit, err := t.module.enter(ctx)
		if err != nil {
			return err
		}
		seen := t.module.current()
		_, err = t.loggedIn(ctx)
		t.module.leave(visit)
		stale := errors.As(err, new(staleLibrary))
		late := time.Now().Add(pause).After(until) // a stale library is not waited for, but started again
		if err == nil || ctx.Err() != nil || !stale && (late || !readDuringWrite(&t.cfg, err)) {
			return err
		}
		if !stale {
			select {
			case <-ctx.Done():
				return err
			case <-time.After(pause):
			}
		}
		if failed := t.module.reset(ctx, seen, t.b); failed != nil {
			return errors.Join(err, failed)
		}
	}
}

// withoutDomainError removes the *claviger.Error around an error of the first login. No client gets this error and no
// code retries it, so its operation and kind do not matter.
func withoutDomainError(err error) error {
	var e *claviger.Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Err
	}
	return err
}

// setUp applies the profile of the configuration, or else of the token's manufacturer, and probes the mechanism.
func (t *Token) setUp(ctx context.Context) error {
	if t.cfg.Profile == "" {
		t.cfg.Profile = profileOf(t.found.info.ManufacturerID)
	}
	traits := profiles[t.cfg.Profile]
	if t.cfg.MaxSessions == 0 {
		t.cfg.MaxSessions = traits.sessions
	}
	t.slots = make(chan struct{}, max(1, t.cfg.MaxSessions-1)) // one session holds the login
	t.keyless = make(chan struct{}, (cap(t.slots)+1)/2)
	t.fullData = int64(traits.dataLimit)
	t.inFlight = traits.inFlight
	if t.cfg.SignOnly {
		return nil
	}
	return t.probe(ctx, traits.mechanisms)
}

// Info describes the token, as it was at the last login.
func (t *Token) Info() TokenInfo {
	t.mu.Lock()
	found := t.found
	t.mu.Unlock()
	i := TokenInfo{
		Label: strings.TrimSpace(found.info.Label), Serial: strings.TrimSpace(found.info.SerialNumber),
		Manufacturer: strings.TrimSpace(found.info.ManufacturerID), Model: strings.TrimSpace(found.info.Model),
		Firmware: fmt.Sprintf("%d.%d", found.info.FirmwareVersion.Major, found.info.FirmwareVersion.Minor),
		Slot:     found.slot, Profile: t.cfg.Profile,
		MaxSessions: t.cfg.MaxSessions, MaxData: int(t.fullData),
	}
	if len(t.mechanisms) > 0 {
		i.Mechanism = mechanismName(t.mechanisms[0])
	}
	if found.info.FreePrivateMemory != unavailable {
		i.FreePrivateMemory = found.info.FreePrivateMemory
	}
	return i
}

// OnReset adds f to the functions that are called at each new login after the first, before the token is used
// again. Whatever the caller knows about the token's keys may then be wrong, and must be verified again. f must not
// call the token.
func (t *Token) OnReset(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onReset = append(t.onReset, f)
}

// Ping asks the token for a few random bytes: one round trip, without a key. If the token makes no random numbers,
// Ping reads the session's state instead. That is weaker: a library may answer it from its memory although the HSM
// is gone.
func (t *Token) Ping(ctx context.Context) error {
	return t.do(ctx, "pkcs11.Ping", func(_ *login, s p11.SessionHandle) error { return t.ping(s) })
}

func (t *Token) ping(s p11.SessionHandle) error {
	_, err := t.b.GenerateRandom(s, 8)
	if errors.Is(err, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED)) || errors.Is(err, p11.Error(p11.CKR_RANDOM_NO_RNG)) {
		_, err = t.b.GetSessionInfo(s)
	}
	return err
}

// closeTimeout is the time that Close waits for running calls, and then again for the library.
const closeTimeout = 5 * time.Second

// Close closes the sessions, which logs out. With the last token of a library, it unloads the library. It waits up
// to closeTimeout for running calls, and for a login until that has run so long. A second Close does nothing.
func (t *Token) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	name := t.found.String()
	close(t.end)
	t.mu.Unlock()
	t.unparkAll()
	if !t.drain() {
		t.log.Warn("a call to the HSM did not return before the token was closed", "token", name)
	}
	t.awaitLogin()
	t.module.awaitLeft() // the caller of a login that has just returned is still counted
	ctx, cancel := context.WithTimeout(context.Background(), t.closeTimeout)
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
		return fmt.Errorf("PKCS#11 module %s: the library does not release token %s", t.cfg.Module, name)
	}
}

// drain takes all slots of the pool. It returns false if a running call keeps its slot.
func (t *Token) drain() bool {
	deadline := time.NewTimer(t.closeTimeout)
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
