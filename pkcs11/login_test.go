package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/secret"
)

// TestPINIsWiped: the bytes of the PIN are wiped after the login.
func TestPINIsWiped(t *testing.T) {
	c := config(softhsmtest.New(t))
	read := c.PIN
	var kept secret.Bytes
	c.PIN = func() (pin secret.Bytes, err error) {
		kept, err = read()
		return kept, err
	}
	openAs(t, c)
	if len(kept) == 0 || !zero(kept) {
		t.Errorf("%d bytes were not wiped", len(kept))
	}
	if triedPINs.key == [len(triedPINs.key)]byte{} {
		t.Error("the hash of a PIN has no key")
	}
}

// TestIsPINRefused: only a refusal of the PIN needs a person.
func TestIsPINRefused(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false}, {errHung, false}, {refusal{errHung, false}, false}, {refusal{errHung, true}, true},
		{fmt.Errorf("text: %w", refusal{errHung, true}), true},
	} {
		if got := IsPINRefused(c.err); got != c.want {
			t.Errorf("%v: %t", c.err, got)
		}
	}
	code := p11.Error(p11.CKR_PIN_LOCKED)
	if err := codeOf(fmt.Errorf("text: %w", code)); err != code { //nolint:errorlint // the same value
		t.Error(err)
	}
	if err := codeOf(errHung); err != errHung { //nolint:errorlint // the same value
		t.Error(err)
	}
}

// TestRefusedPINOfOneToken: a PIN that a token refused is not tried at that token again, and is tried at each other
// token. A caller that waits for another trial gives up when its context ends.
func TestRefusedPINOfOneToken(t *testing.T) {
	refused := newPINTrials()
	tries := 0
	token := candidate{info: p11.TokenInfo{Label: "kms", SerialNumber: "1"}}
	other := candidate{info: p11.TokenInfo{Label: "kms", SerialNumber: "2"}}
	label := candidate{info: p11.TokenInfo{Label: "old", SerialNumber: "1"}}
	try := func(module string, c candidate, pin string) error {
		of := trial{module: module, token: c, pin: secret.Bytes(pin), started: time.Now()}
		return refused.try(t.Context(), of, func(bool) (bool, error) {
			tries++
			return false, loginError{p11.Error(p11.CKR_PIN_INCORRECT)}
		})
	}
	for i, c := range []struct {
		module string
		of     candidate
		pin    string
		tries  int
	}{
		{"/a.so", token, "1", 1}, {"/a.so", token, "1", 1}, {"/a.so", other, "1", 2}, {"/a.so", label, "1", 3},
		{"/b.so", token, "1", 4}, {"/a.so", token, "2", 5}, {"/a.so", token, "1", 5},
	} {
		if err := try(c.module, c.of, c.pin); !errors.Is(err, p11.Error(p11.CKR_PIN_INCORRECT)) || tries != c.tries {
			t.Errorf("trial %d: %v, %d tries", i, err, tries)
		}
	}
	third := trial{module: "/c.so", token: token, pin: secret.Bytes("1")}
	hangs, begun := make(chan error), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- refused.try(t.Context(), third, func(bool) (bool, error) {
			close(begun)
			return false, <-hangs
		})
	}()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	never := func(bool) (bool, error) { t.Error("tried beside another trial"); return false, nil }
	if err := refused.try(ctx, third, never); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
	hangs <- errHung
	if err := <-ended; !errors.Is(err, errHung) {
		t.Error(err)
	}
	accept := func(bool) (bool, error) { return true, nil }
	if err := refused.try(t.Context(), third, accept); err != nil {
		t.Errorf("after a trial that said nothing of the PIN: %v", err)
	}
}

// TestWaitForLogin: callers that wait for another caller's login get its error, unless only that caller's time ended.
func TestWaitForLogin(t *testing.T) {
	failed := p11.Error(p11.CKR_DEVICE_ERROR)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	current := &login{generation: 1}
	for _, c := range []struct {
		name   string
		ctx    context.Context
		result error // of the other caller's login
		own    bool  // whether this caller logs in itself
		want   error
	}{
		{"logged in", t.Context(), nil, false, nil},
		{"failed", t.Context(), errHung, false, errHung},
		{"cancelled", t.Context(), context.Canceled, true, failed},
		{"out of time", t.Context(), context.DeadlineExceeded, true, failed},
		{"own time ended", ended, nil, false, context.Canceled},
	} {
		meter := new(Meter)
		meter.Fail("GetSlotList", 1, failed)
		f := newFlight()
		tok := &Token{module: &module{generation: 1}, b: meter.Wrap(nil), connecting: f}
		waits := waitingContext{c.ctx, make(chan struct{}, 10)}
		got := make(chan error, 1)
		go func() {
			l, err := tok.loggedIn(waits)
			if err == nil && l != current {
				err = errors.New("another login")
			}
			got <- err
		}()
		<-waits.asked
		tok.mu.Lock()
		tok.connecting = nil
		if c.result == nil {
			tok.login = current
		}
		tok.mu.Unlock()
		if c.ctx != ended {
			f.finish(c.result)
		}
		err := <-got
		if !errors.Is(err, c.want) || c.want == nil && err != nil || (meter.Count("GetSlotList") > 0) != c.own {
			t.Errorf("%s: %v, %d logins; want %v", c.name, err, meter.Count("GetSlotList"), c.want)
		}
	}
}

// TestSharedLogin: a caller that waits for another caller's login gets that login when it is made.
func TestSharedLogin(t *testing.T) {
	tok, m := open(t)
	tok.retire(tok.login)
	m.Reset()
	release := m.Hang("GetSlotList")
	defer release()
	type result struct {
		l   *login
		err error
	}
	got := make(chan result, 2)
	loggedIn := func(ctx context.Context) {
		l, err := tok.loggedIn(ctx)
		got <- result{l, err}
	}
	go loggedIn(t.Context())
	eventually(t, func() error {
		if m.Count("GetSlotList") == 0 {
			return errors.New("no login has begun")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	waits := waitingContext{ctx, make(chan struct{}, 10)}
	go loggedIn(waits)
	<-waits.asked
	release()
	first, second := <-got, <-got
	if first.err != nil || second.err != nil || first.l != second.l || first.l == nil || m.Count("Login") != 1 {
		t.Errorf("%v and %v, %d logins", first.err, second.err, m.Count("Login"))
	}
}

// waitingContext reports that a goroutine waits for its end.
type waitingContext struct {
	context.Context
	asked chan struct{}
}

func (c waitingContext) Done() <-chan struct{} {
	select {
	case c.asked <- struct{}{}:
	default:
	}
	return c.Context.Done()
}

// sessionRecorder keeps the handles of closed sessions.
type sessionRecorder struct {
	Boundary
	closed []p11.SessionHandle
}

func (r *sessionRecorder) CloseSession(s p11.SessionHandle) error {
	r.closed = append(r.closed, s)
	return nil
}

// TestClosedMeanwhile: a login that succeeds after Close is undone. No later login begins.
func TestClosedMeanwhile(t *testing.T) {
	r := &sessionRecorder{}
	tok := &Token{module: &module{generation: 1}, b: r, closed: true}
	if err := tok.publish(&login{session: 5}); !claviger.Is(err, claviger.Closed) || tok.login != nil ||
		!slices.Equal(r.closed, []p11.SessionHandle{5}) {
		t.Errorf("published: %v, closed %v", err, r.closed)
	}
	if l, err := tok.loggedIn(t.Context()); !claviger.Is(err, claviger.Closed) || l != nil {
		t.Errorf("logged in: %v, %v", l, err)
	}
}

// TestCloseRetired: the sessions of a retired login are closed, unless the library was initialised again since: then
// their numbers may belong to new sessions.
func TestCloseRetired(t *testing.T) {
	r := &sessionRecorder{}
	tok := &Token{module: &module{generation: 2}, b: r, retired: []*login{
		{generation: 1, session: 5, idle: []p11.SessionHandle{6}},
		{generation: 2, session: 7, idle: []p11.SessionHandle{8, 9}},
	}}
	for range 2 {
		tok.closeRetired()
		if !slices.Equal(r.closed, []p11.SessionHandle{8, 9, 7}) {
			t.Errorf("closed %v", r.closed)
		}
	}
}

// TestLoginFailsAfterItsCallerLeft: a login fails after its caller gave up. The token still counts as lost, and is
// reset.
func TestLoginFailsAfterItsCallerLeft(t *testing.T) {
	tok, m := open(t)
	tok.retire(tok.login)
	m.Fail("GetSlotList", 1, p11.Error(p11.CKR_DEVICE_ERROR))
	release := m.Hang("GetSlotList")
	defer release()
	pingHangs(t, tok, m, "GetSlotList", 0)
	release()
	eventually(t, func() error {
		if m.Count("Initialize") != 1 {
			return errors.New("the library was not initialised again")
		}
		return nil
	})
}

// TestSessionsThatDoNotOpen: if the result of C_OpenSession means that the login is lost, the next try logs in again.
// Without a session, the call is not made.
func TestSessionsThatDoNotOpen(t *testing.T) {
	tok, m := open(t)
	for code, logins := range map[uint]int{p11.CKR_SESSION_CLOSED: 1, p11.CKR_HOST_MEMORY: 0} {
		if err := tok.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		tok.mu.Lock()
		idle := tok.login.idle
		tok.login.idle = nil
		tok.mu.Unlock()
		for _, s := range idle {
			_ = tok.b.CloseSession(s) // it works
		}
		m.Reset()
		m.Fail("OpenSession", 1, p11.Error(code))
		if err := tok.Ping(t.Context()); err != nil || m.Count("Login") != logins || m.Count("GenerateRandom") != 1 {
			t.Errorf("%v: %v, the calls are %v", p11.Error(code), err, m.Counts())
		}
	}
}

// TestLostTwice: a token that is lost at the second try too is reported as such.
func TestLostTwice(t *testing.T) {
	tok, m := open(t)
	m.Fail("GenerateRandom", 2, p11.Error(p11.CKR_SESSION_CLOSED))
	if err := tok.Ping(t.Context()); !claviger.Is(err, claviger.Unavailable) ||
		!errors.Is(err, p11.Error(p11.CKR_SESSION_CLOSED)) || m.Count("GenerateRandom") != 2 {
		t.Errorf("%v, %d tries", err, m.Count("GenerateRandom"))
	}
}

// TestEnded: the function that may clear the memory of a call gets the call's error, also if the call was never made or
// its caller has left.
func TestEnded(t *testing.T) {
	tok, _ := open(t)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	never := func(*login, p11.SessionHandle) error { t.Error("called after the context ended"); return nil }
	err := tok.doAndNotify(ctx, "test", subject{}, nil, never, func(err error) { ended <- err })
	if got := <-ended; !claviger.Is(err, claviger.Unavailable) || !claviger.Is(got, claviger.Unavailable) {
		t.Errorf("an ended context: %v, %v", err, got)
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	err = tok.doAndNotify(ctx, "test", subject{}, nil, func(*login, p11.SessionHandle) error {
		cancel()
		return p11.Error(p11.CKR_SESSION_CLOSED)
	}, func(err error) { ended <- err })
	if got := <-ended; !claviger.Is(err, claviger.Unavailable) || !errors.Is(got, p11.Error(p11.CKR_SESSION_CLOSED)) {
		t.Errorf("the caller left: %v, %v", err, got)
	}
}

// endPauseOfLogins makes the next call log in.
func endPauseOfLogins(tok *Token) {
	triedPINs.mu.Lock()
	for _, d := range triedPINs.doubts {
		d.last = d.last.Add(-time.Hour)
	}
	triedPINs.mu.Unlock()
	tok.mu.Lock()
	defer tok.mu.Unlock()
	tok.loginAt = time.Now()
}

// TestDoubtIsCareful: after a login that may have been a wrong PIN, the PIN is not tried while the token's flags show a
// wrong try. After a login by another program the server goes on.
func TestDoubtIsCareful(t *testing.T) {
	made := softhsmtest.New(t)
	right, err := os.ReadFile(made.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	tok, m := openAs(t, config(made))
	generate(t, tok, 1, 256)
	tok.retire(tok.login)
	m.Fail("Login", 1, p11.Error(p11.CKR_VENDOR_DEFINED|9))
	m.Reset()
	if err := tok.Ping(t.Context()); !claviger.Is(err, claviger.Unavailable) {
		t.Fatal(err)
	}
	loginElsewhere := func(pin string) error {
		s, err := tok.openSession(tok.found)
		if err != nil {
			t.Fatal(err)
		}
		defer tok.b.CloseSession(s) //nolint:errcheck // the login's result counts
		return tok.module.b.Login(s, p11.CKU_USER, pin)
	}
	if err := loginElsewhere("87654321"); !errors.Is(err, p11.Error(p11.CKR_PIN_INCORRECT)) {
		t.Fatal(err)
	}
	endPauseOfLogins(tok)
	if err := encryptWith(t, tok, 1); !IsPINRefused(err) || m.Count("Login") != 1 ||
		!strings.Contains(err.Error(), "this server then logs in by itself") {
		t.Errorf("%v after %d logins", err, m.Count("Login"))
	}
	if err := loginElsewhere(strings.TrimSpace(string(right))); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return encryptWith(t, tok, 1) })
}

// TestOtherLoginAcceptsNoPIN: a token that some other call has logged in to does not compare the PIN, so its answer
// does not end the doubt about the PIN. Neither does another fault.
func TestOtherLoginAcceptsNoPIN(t *testing.T) {
	tried := newPINTrials()
	vendors := loginError{p11.Error(p11.CKR_VENDOR_DEFINED | 9)}
	for i, c := range []struct {
		accepts bool
		err     error
		doubted bool
	}{
		{false, nil, false}, {false, vendors, false}, {false, nil, true}, {false, errHung, true}, {true, nil, true},
		{false, nil, false},
	} {
		called := false
		_ = tried.try(t.Context(), trial{module: "/a.so", pin: secret.Bytes("1")}, func(doubted bool) (bool, error) {
			if called = true; doubted != c.doubted {
				t.Errorf("trial %d: in doubt: %v", i, doubted)
			}
			return c.accepts, c.err
		})
		if !called {
			t.Errorf("trial %d was not made", i)
		}
		for _, d := range tried.doubts {
			d.last = time.Time{}
		}
	}
}

// TestPINResultOfAnotherCall: a result about the PIN that C_OpenSession returns says nothing about the PIN, so that the
// login is tried again.
func TestPINResultOfAnotherCall(t *testing.T) {
	tok, m := open(t)
	generate(t, tok, 1, 256)
	for _, code := range []uint{p11.CKR_PIN_EXPIRED, p11.CKR_PIN_LOCKED, p11.CKR_PIN_INCORRECT} {
		tok.retire(tok.login)
		m.Fail("OpenSession", 1, p11.Error(code))
		eventually(t, func() error { return encryptWith(t, tok, 1) })
	}
}

// TestTrialEnds: callers that wait for the trial of their PIN go on when it ends.
func TestTrialEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tried, of := newPINTrials(), trial{module: "/a.so", pin: secret.Bytes("1")}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		goOn, ended := make(chan struct{}), make(chan error, 2)
		for range 2 {
			go func() {
				ended <- tried.try(ctx, of, func(bool) (bool, error) { <-goOn; return true, nil })
			}()
		}
		synctest.Wait() // one caller tries the PIN, and the other one waits
		close(goOn)
		synctest.Wait()
		if n := len(ended); n != 2 {
			t.Errorf("%d of 2 callers have ended", n)
		}
	})
}
