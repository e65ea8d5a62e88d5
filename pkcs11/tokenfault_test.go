package pkcs11

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11/worker"
)

// TestIsTokenFault: on a token that works with a new key, the records alone decide whether a failure is a fault of the
// token.
func TestIsTokenFault(t *testing.T) {
	tok, _ := open(t)
	this, other := keySubject("this"), keySubject("other")
	for _, c := range []struct {
		name    string
		records map[subject]*fault
		want    bool
	}{
		{"no record", nil, false},
		{"the key fails again", map[subject]*fault{this: {failures: 1, successes: 5}}, true},
		{"another key worked since the last failure", map[subject]*fault{this: {failures: 1, successes: 4}}, false},
		{"another key fails too", map[subject]*fault{other: {failures: 1, successes: 5}}, true},
		{"another key failed, and a key worked since", map[subject]*fault{other: {failures: 1, successes: 4}}, false},
		{"the failure of another key is not recorded yet", map[subject]*fault{other: {successes: 5}}, false},
		{"the key caused a reset before",
			map[subject]*fault{this: {failures: 1, successes: 5, resetAt: time.Now().Add(time.Hour)}}, false},
	} {
		tok.successes.Store(5)
		tok.faults = c.records
		if got := tok.isTokenFault(t.Context(), this); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
}

// TestTryToken: the try uses a session of its own if the token allows one more. It leaves neither a session nor a key.
func TestTryToken(t *testing.T) {
	tok, m := open(t)
	for _, refused := range []int{0, 1} {
		m.Reset()
		m.Fail("OpenSession", refused, p11.Error(p11.CKR_SESSION_COUNT))
		if err := tok.tryToken(t.Context()); err != nil || m.Count("GenerateKey") != 1 || m.Count("Encrypt") != 1 {
			t.Errorf("%d sessions refused: %v, the calls are %v", refused, err, m.Counts())
		}
		if m.Count("OpenSession") != 1 || m.Count("CloseSession") != 1-refused || m.Count("DestroyObject") != 1 {
			t.Errorf("%d sessions refused: a session or key is left: %v", refused, m.Counts())
		}
	}
}

// TestTryTokenWithoutKey: a token that makes no key by its policy is not taken for lost.
func TestTryTokenWithoutKey(t *testing.T) {
	tok, m := open(t)
	refused := p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED)
	m.Fail("GenerateKey", 2, refused)
	if err := tok.tryToken(t.Context()); !errors.Is(err, refused) || m.Count("Encrypt") != 0 {
		t.Errorf("%v, the calls are %v", err, m.Counts())
	}
	if tok.isTokenFault(t.Context(), keySubject("k")) {
		t.Error("the token is taken for lost")
	}
}

// tryRecorder keeps the running try of the token.
type tryRecorder struct {
	Boundary
	tok  *Token
	kept *flight
}

func (r *tryRecorder) GenerateKey(s p11.SessionHandle, m []*p11.Mechanism, a []*p11.Attribute) (p11.ObjectHandle,
	error) {
	r.tok.mu.Lock()
	r.kept = r.tok.trying
	r.tok.mu.Unlock()
	return 0, p11.Error(p11.CKR_DEVICE_ERROR)
}

// TestTryTokenOnce: a caller that fails during a try of the token waits for its result, and makes no try of its own.
func TestTryTokenOnce(t *testing.T) {
	tok, m := open(t)
	r := &tryRecorder{Boundary: tok.b, tok: tok}
	tok.b = r
	lost := p11.Error(p11.CKR_DEVICE_ERROR)
	if err := tok.tryToken(t.Context()); !errors.Is(err, lost) || tok.trying != nil {
		t.Errorf("the first caller: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := r.kept.wait(ctx); !errors.Is(err, lost) {
		t.Errorf("a caller that waits: %v", err)
	}
	m.Reset()
	tok.trying = r.kept
	if err := tok.tryToken(t.Context()); !errors.Is(err, lost) || len(m.Counts()) > 0 {
		t.Errorf("a caller during the try: %v, the calls are %v", err, m.Counts())
	}
	tok.trying = newFlight()
	cancel()
	if err := tok.tryToken(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller whose time ended: %v", err)
	}
	tok.trying = nil
}

// cancelOnLog is a log that ends a context at each record.
type cancelOnLog struct {
	slog.Handler
	cancel func()
}

func (c cancelOnLog) Enabled(context.Context, slog.Level) bool { return true }

func (c cancelOnLog) Handle(context.Context, slog.Record) error {
	c.cancel()
	return nil
}

// TestContextEndsDuringAttempt: an operation that fails is not reported as done, wherever its time ends.
func TestContextEndsDuringAttempt(t *testing.T) {
	tok, _ := open(t)
	fails := p11.Error(p11.CKR_GENERAL_ERROR)
	ctx, cancel := context.WithCancel(t.Context())
	runs := 0
	err := tok.attempt(ctx, keySubject("k"), func(*login, p11.SessionHandle) error {
		runs++
		cancel()
		return fails
	})
	if !errors.Is(err, fails) || runs != 1 {
		t.Errorf("during the call: %v, %d runs", err, runs)
	}
	ctx, cancel = context.WithCancel(t.Context())
	tok.log = slog.New(cancelOnLog{slog.DiscardHandler, cancel})
	tok.login.made = time.Now().Add(-time.Hour)
	tok.faults = map[subject]*fault{keySubject("k"): {failures: 1}} // so a new login is the second step
	runs = 0
	err = tok.attempt(ctx, keySubject("k"), func(*login, p11.SessionHandle) error {
		runs++
		return fails
	})
	if !errors.Is(err, fails) || runs != 2 || tok.login != nil {
		t.Errorf("during the logout: %v, %d runs", err, runs)
	}
}

// TestManyFaults: records of keys that are not used any more do not fill the memory.
func TestManyFaults(t *testing.T) {
	tok := new(Token)
	old := time.Now().Add(-2 * maxPauseOfResets)
	for i := range maxFaults {
		f := tok.faultOf(subject{name: string(rune(i + 1))})
		if i > 0 {
			f.last = old
		} else {
			f.last = time.Now()
		}
	}
	if n := len(tok.faults); n != maxFaults {
		t.Errorf("%d records, want %d", n, maxFaults)
	}
	tok.faultOf(keySubject("new"))
	if len(tok.faults) != 2 || tok.faults[subject{name: "\x01"}] == nil || tok.failing.Load() != 2 {
		t.Errorf("%d records, %d counted; want the new one and the one of a failure a moment ago", len(tok.faults),
			tok.failing.Load())
	}
}

// TestLostLibrary: an operation that finds the library or the token gone is not repeated before the library is
// initialised again.
func TestLostLibrary(t *testing.T) {
	tok, m := open(t)
	for _, c := range []struct {
		call string
		err  error
	}{
		{"GenerateRandom", p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED)},
		{"GetSlotList", p11.Error(p11.CKR_DEVICE_ERROR)},
	} {
		if c.call == "GetSlotList" {
			tok.retire(tok.login)
		}
		tok.retryAt = time.Time{}
		m.Reset()
		m.Fail(c.call, 1, c.err)
		if err := tok.Ping(t.Context()); err != nil || m.Count("Initialize") != 1 || m.Count(c.call) != 2 {
			t.Errorf("%v of %s: %v, the calls are %v", c.err, c.call, err, m.Counts())
		}
	}
}

// TestRefusalEndsTheAttempt: a result about the request is final; the operation runs once.
func TestRefusalEndsTheAttempt(t *testing.T) {
	tok, _ := open(t)
	for _, result := range []error{p11.Error(p11.CKR_DATA_INVALID), claviger.E("op", claviger.KeyNotFound, "k", nil)} {
		runs := 0
		err := tok.attempt(t.Context(), keySubject("k"), func(*login, p11.SessionHandle) error {
			runs++
			return result
		})
		if !errors.Is(err, result) || runs != 1 {
			t.Errorf("%v: %v, %d runs", result, err, runs)
		}
	}
}

// TestAllMechanismsRefused: if the token refuses each mechanism for a key, the caller gets the result of the last.
func TestAllMechanismsRefused(t *testing.T) {
	tok, m := open(t)
	generate(t, tok, 1, 256)
	m.Reset()
	refused := p11.Error(p11.CKR_MECHANISM_INVALID)
	m.Fail("Encrypt", len(tok.mechanisms), refused)
	if err := encryptWith(t, tok, 1); !errors.Is(err, refused) || !errors.Is(err, ErrRefused) ||
		m.Count("Encrypt") != len(tok.mechanisms) {
		t.Errorf("%v after %d calls, want one for each of %d mechanisms", err, m.Count("Encrypt"), len(tok.mechanisms))
	}
	if at, known := tok.mechanismOf(keyName{string([]byte{1, 2, 3, 1}), "k@1"}); at != 0 || known {
		t.Errorf("mechanism %d is remembered: %t", at, known)
	}
}

// attempts makes an operation of a key that returns those errors, one after another, and then succeeds. It returns how
// often the operation ran.
func attempts(t *testing.T, tok *Token, results ...func() error) (runs int, err error) {
	t.Helper()
	err = tok.attempt(t.Context(), keySubject("k"), func(*login, p11.SessionHandle) error {
		if runs++; runs > len(results) {
			return nil
		}
		return results[runs-1]()
	})
	return runs, err
}

// TestAttemptOfAKeyThatHangs: an operation with a key whose call hung is not repeated, and the library starts again for
// the other keys. Neither is an operation that ran beside such a call.
func TestAttemptOfAKeyThatHangs(t *testing.T) {
	tok, m := open(t)
	hung := worker.GoneError{Reason: "C_Encrypt did not return", Hung: true}
	runs, err := attempts(t, tok, func() error {
		tok.successes.Add(1) // another key works
		return hung
	})
	if !errors.Is(err, hung) || runs != 1 || m.Count("Initialize") != 1 {
		t.Errorf("the call hung: %v after %d runs, %d starts of the library", err, runs, m.Count("Initialize"))
	}
	tok.faults = nil
	tok.failing.Store(0)
	fails := p11.Error(p11.CKR_GENERAL_ERROR)
	runs, err = attempts(t, tok, func() error {
		tok.mu.Lock()
		defer tok.mu.Unlock()
		f := tok.faultOf(keySubject("k"))
		f.hangs, f.until = 1, time.Now().Add(time.Hour)
		return fails
	})
	if !claviger.Is(err, claviger.Unavailable) || errors.Is(err, fails) || runs != 1 {
		t.Errorf("another call hung: %v after %d runs", err, runs)
	}
}

// TestAttemptEnds: an operation that fails after each step of repair fails, and so does one that gets no session
// and cannot wait for one.
func TestAttemptEnds(t *testing.T) {
	c := config(softhsmtest.New(t))
	c.MaxSessions = 1
	tok, m := openAs(t, c)
	runs, err := attempts(t, tok, func() error { return errNoSession })
	if !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, errNoSession) || runs != 1 {
		t.Errorf("no session: %v after %d runs", err, runs)
	}
	tok.login.made = time.Now().Add(-time.Hour)
	tok.faults = map[subject]*fault{keySubject("k"): {failures: 1}} // so the key is not the only cause
	tok.failing.Store(1)
	fails := func() error { return p11.Error(p11.CKR_GENERAL_ERROR) }
	runs, err = attempts(t, tok, fails, fails, fails, fails, fails, fails)
	if !errors.Is(err, fails()) || runs != 4 || m.Count("Login") != 2 || m.Count("Initialize") != 1 {
		t.Errorf("each call fails: %v after %d runs, the calls are %v", err, runs, m.Counts())
	}
}

// TestLoggedOutOnce: after the HSM has logged out all sessions, one new login is all that is needed.
func TestLoggedOutOnce(t *testing.T) {
	m, tok, keys := openFaulty(t, nil)
	logins, starts, calls := m.Calls(faultmodule.Login), m.Calls(faultmodule.Initialize),
		m.Calls(faultmodule.EncryptInit)
	m.LogOut()
	if err := keys[0].encrypts(tok, t, 1); err != nil {
		t.Error(err)
	}
	logins, starts, calls = m.Calls(faultmodule.Login)-logins, m.Calls(faultmodule.Initialize)-starts,
		m.Calls(faultmodule.EncryptInit)-calls
	if logins != 1 || starts != 0 || calls != 2 {
		t.Errorf("%d logins, %d starts of the library, %d calls with the key; want 1, 0, 2", logins, starts, calls)
	}
}
