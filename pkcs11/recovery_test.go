package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
)

// within fails the test if f takes longer than d, which must be generous.
func within(t *testing.T, d time.Duration, what string, f func()) {
	t.Helper()
	c := make(chan struct{})
	go func() { defer close(c); f() }()
	select {
	case <-c:
	case <-time.After(d):
		t.Errorf("%s: still hangs after %v", what, d)
	}
}

// eventually calls f again until it succeeds, for as long as a token may need to come back.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// pingHangs starts a call of that name that hangs in the library. Its caller gives up once more calls than before have
// been made.
func pingHangs(t *testing.T, tok *Token, m *Meter, call string, before int) {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	pinged := make(chan error, 1)
	go func() { pinged <- tok.Ping(ctx) }()
	eventually(t, func() error {
		if m.Count(call) == before {
			return fmt.Errorf("%s has not been called", call)
		}
		return nil
	})
	leave()
	if err := <-pinged; !claviger.Is(err, claviger.Unavailable) {
		t.Fatalf("a ping that hangs: %v", err)
	}
}

// sessionCounter returns a function that counts the open sessions. It must be called on a fresh token.
func sessionCounter(tok *Token, m *Meter) func() int {
	tok.mu.Lock()
	defer tok.mu.Unlock()
	first := 1 + len(tok.login.idle)
	return func() int { return first + m.Count("OpenSession") - m.Count("CloseSession") }
}

// goneToken is a token that is lost until the library is initialised again.
type goneToken struct {
	Boundary
	gone *atomic.Bool
}

func (a goneToken) Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle,
	data []byte) ([]byte, error) {
	time.Sleep(5 * time.Millisecond) // the duration of a call
	if a.gone.Load() {
		return nil, p11.Error(p11.CKR_DEVICE_REMOVED)
	}
	return a.Boundary.Encrypt(s, m, key, data)
}

func (a goneToken) Finalize() error {
	a.gone.Store(false)
	return a.Boundary.Finalize()
}

// GenerateRandom works all the time, and takes so long that a call of it is always running.
func (a goneToken) GenerateRandom(s p11.SessionHandle, n int) ([]byte, error) {
	time.Sleep(20 * time.Millisecond) // the duration of a call
	return a.Boundary.GenerateRandom(s, n)
}

// TestRecoveryUnderLoad: callers without a pause do not prevent a reset of the library.
func TestRecoveryUnderLoad(t *testing.T) {
	c := config(softhsmtest.New(t))
	c.MaxSessions = 12
	gone := new(atomic.Bool)
	c.Wrap = func(b Boundary) Boundary { return goneToken{b, gone} }
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close() //nolint:errcheck // the calls below are what is tested
	const callers = 4
	for i := range callers {
		generate(t, tok, byte(i), 128)
	}
	gone.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var back sync.WaitGroup
	var wg sync.WaitGroup
	back.Add(callers)
	for i := range callers {
		wg.Go(func() {
			served := sync.OnceFunc(back.Done)
			defer served()
			for ctx.Err() == nil {
				id, label := []byte{1, 2, 3, byte(i)}, fmt.Sprintf("k@%d", i)
				if tok.EncryptBlocks(ctx, id, label, nil, make([]byte, 16)) == nil {
					served() // and continue, as load for the others
				}
			}
		})
	}
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_ = tok.Ping(ctx)
			}
		})
	}
	back.Wait()
	if ctx.Err() != nil {
		t.Error("the token did not come back for all callers")
	}
	cancel()
	wg.Wait()
}

// TestHungCall: a call hangs in a library that runs in this process, so the library cannot be finalised and a lost
// token does not come back. The other callers get an error soon. When the call returns, the token comes back.
func TestHungCall(t *testing.T) {
	tok, m := openInProcess(t)
	sessions := sessionCounter(tok, m)
	id, label := generate(t, tok, 1, 256)
	other, otherLabel := generate(t, tok, 2, 256)
	for range 2 {
		if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
	}
	release := m.Hang("GenerateRandom")
	defer release()
	pingHangs(t, tok, m, "GenerateRandom", m.Count("GenerateRandom"))
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED))
	within(t, 20*time.Second, "a lost token beside a call that hangs", func() {
		if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); !claviger.Is(err,
			claviger.Unavailable) || !errors.Is(err, errHung) {
			t.Errorf("%v", err)
		}
	})
	// No reset is needed: the login was retired, and a new login may work.
	if err := tok.EncryptBlocks(t.Context(), other, otherLabel, nil, make([]byte, 16)); err != nil {
		t.Error(err)
	}
	if n := sessions(); n != 3 {
		t.Errorf("%d sessions are open, want the login's, an idle one, and the one that hangs", n)
	}
	// The same call does not block other calls a second time.
	time.Sleep(firstBackoff + 50*time.Millisecond) // after that pause the token is tried again
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED))
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); !errors.Is(err, errHung) ||
		tok.module.epoch != 1 {
		t.Errorf("%v; waited %d times", err, tok.module.epoch)
	}
	release()
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED))
	eventually(t, func() error { return tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)) })
}

// TestHungFinalize: while C_Finalize hangs, callers return when their time ends. When it returns, calls work again.
func TestHungFinalize(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	release := m.Hang("Finalize")
	defer release()
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED))
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if err := tok.EncryptBlocks(ctx, id, label, nil, make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("during C_Finalize: %v", err)
		}
		cancel()
	}
	within(t, 20*time.Second, "Info", func() { tok.Info() })
	release()
	eventually(t, func() error { return tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)) })
	eventually(t, func() error {
		tok.module.mu.Lock()
		defer tok.module.mu.Unlock()
		if tok.module.active != 0 {
			return fmt.Errorf("%d calls are in the library", tok.module.active)
		}
		return nil
	})
}

// TestHungOpenSession: a call of C_OpenSession hangs in a library that runs in this process. Only calls that need a new
// session wait for it.
func TestHungOpenSession(t *testing.T) {
	for _, loggedIn := range []bool{true, false} {
		t.Run(map[bool]string{true: "pool", false: "login"}[loggedIn], func(t *testing.T) {
			tok, m := openInProcess(t)
			open := sessionCounter(tok, m)
			tok.mu.Lock()
			idle := tok.login.idle
			tok.login.idle = nil
			tok.mu.Unlock()
			for _, s := range idle {
				if err := tok.b.CloseSession(s); err != nil {
					t.Fatal(err)
				}
			}
			if !loggedIn {
				tok.retire(tok.login)
			}
			before := m.Count("OpenSession")
			release := m.Hang("OpenSession")
			defer release()
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
					defer cancel()
					if err := tok.Ping(ctx); !claviger.Is(err, claviger.Unavailable) {
						t.Errorf("no session, but %v", err)
					}
				})
			}
			pingHangs(t, tok, m, "OpenSession", before)
			wg.Wait()
			within(t, 20*time.Second, "Info", func() { tok.Info() })
			within(t, 20*time.Second, "OnReset", func() { tok.OnReset(func() {}) })
			tok.closeTimeout = 200 * time.Millisecond
			within(t, 30*time.Second, "Close", func() {
				if err := tok.Close(); err == nil {
					t.Error("Close says nothing of a call that hangs")
				}
			})
			release()
			// The session that opens late must be closed. Then the library is free for the next test.
			eventually(t, func() error {
				tok.module.mu.Lock()
				defer tok.module.mu.Unlock()
				if tok.module.active > 0 {
					return fmt.Errorf("%d calls still in the library", tok.module.active)
				}
				return nil
			})
			if n := open(); n != 0 {
				t.Errorf("%d sessions stay open", n)
			}
		})
	}
}

// TestAfterHungClose: a library that runs in this process could not be unloaded. It is used again, and shows what has
// changed meanwhile.
func TestAfterHungClose(t *testing.T) {
	tok, m := openInProcess(t)
	release := m.Hang("GenerateRandom")
	pingHangs(t, tok, m, "GenerateRandom", m.Count("GenerateRandom"))
	tok.closeTimeout = 200 * time.Millisecond
	if err := tok.Close(); err == nil {
		t.Error("the library was unloaded under a call")
	}
	release()
	eventually(t, func() error {
		tok.module.mu.Lock()
		defer tok.module.mu.Unlock()
		if tok.module.active > 0 {
			return errors.New("the call is still in the library")
		}
		return nil
	})
	made := softhsmtest.New(t) // a token in another folder
	c := config(made)
	c.Worker = WorkerNo
	again, _ := openAs(t, c)
	if got := again.Info().Serial; got != made.Serial {
		t.Errorf("opened token %s, want %s", got, made.Serial)
	}
	if again.module != tok.module {
		t.Error("one library, two modules")
	}
	if err := again.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSuspectSession: a session is used again only after errors that surely leave it in order. After the other errors
// the call is repeated in another session, without a login.
func TestSuspectSession(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 128)
	const vendor = p11.CKR_VENDOR_DEFINED | 0x42
	for _, c := range []struct {
		code   uint
		closed int
		retry  bool
	}{
		{p11.CKR_DATA_INVALID, 0, false}, {p11.CKR_ARGUMENTS_BAD, 0, false},
		{vendor, 1, true}, {p11.CKR_HOST_MEMORY, 1, true}, {p11.CKR_BUFFER_TOO_SMALL, 1, true},
		{p11.CKR_FUNCTION_CANCELED, 1, true}, {p11.CKR_DEVICE_MEMORY, 1, true}, {p11.CKR_GENERAL_ERROR, 1, true},
		{p11.CKR_OPERATION_ACTIVE, 1, true},
	} {
		t.Run(p11.Error(c.code).Error(), func(t *testing.T) {
			m.Reset()
			m.Fail("Encrypt", 1, p11.Error(c.code))
			err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16))
			if (err == nil) != c.retry || err != nil && !claviger.Is(err, claviger.Unavailable) {
				t.Errorf("%v", err)
			}
			if n := m.Count("CloseSession"); n != c.closed {
				t.Errorf("%d sessions closed, want %d", n, c.closed)
			}
			if m.Count("Login")+m.Count("Initialize") > 0 {
				t.Error("logged in again")
			}
			if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLoggedOut: another user of the library logs out. Then the token does not show a key that was not used yet. The
// key must not count as missing.
func TestLoggedOut(t *testing.T) {
	made := softhsmtest.New(t)
	fault := faultmodule.New(t, made.Module)
	made.Module = fault.Path
	tok, _ := openAs(t, config(made))
	id, label := generate(t, tok, 1, 256)
	resets := 0
	tok.OnReset(func() { resets++ })
	fault.LogOut()
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); err != nil {
		t.Error(err)
	}
	if resets != 1 {
		t.Errorf("%d resets reported", resets)
	}
	if err := tok.EncryptBlocks(t.Context(), []byte("nil"), "no@1", nil, make([]byte, 16)); !claviger.Is(err,
		claviger.KeyNotFound) {
		t.Errorf("a key that does not exist: %v", err)
	}
	if resets != 1 {
		t.Errorf("logged in again for a key that does not exist")
	}
}

// TestTwoTokens: each token of a library notices a reset that another token caused.
func TestTwoTokens(t *testing.T) {
	made := softhsmtest.New(t)
	a, m := openAs(t, config(made))
	b, _ := openAs(t, config(made))
	id, label := generate(t, a, 1, 256)
	resets := 0
	b.OnReset(func() { resets++ })
	if err := b.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED))
	for _, tok := range []*Token{a, b} {
		if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); err != nil {
			t.Error(err)
		}
	}
	if resets != 1 {
		t.Errorf("the other token noticed %d resets", resets)
	}
}

// TestPing: Ping gets its answer from the HSM, not from the memory of the library.
func TestPing(t *testing.T) {
	tok, m := open(t)
	if err := tok.Ping(t.Context()); err != nil || m.Count("GenerateRandom") != 1 {
		t.Errorf("%d calls for random bytes, %v", m.Count("GenerateRandom"), err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tok.Ping(cancelled); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("with a cancelled context: %v", err)
	}
	m.Fail("GenerateRandom", 1, p11.Error(p11.CKR_RANDOM_NO_RNG))
	if err := tok.Ping(t.Context()); err != nil || m.Count("GetSessionInfo") != 1 {
		t.Errorf("without random numbers: %d questions, %v", m.Count("GetSessionInfo"), err)
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
	within(t, 20*time.Second, "Ping after Close", func() {
		if err := tok.Ping(t.Context()); !claviger.Is(err, claviger.Closed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestKeyMadeDespiteError: C_GenerateKey made a key and then returned that the device had failed. The second try uses
// that key if it has the requested attributes, and no other key.
func TestKeyMadeDespiteError(t *testing.T) {
	for _, c := range []struct {
		name   string
		change map[uint]any // attributes of the template that the token changes
		keys   int          // keys on the token at the end
		text   string
	}{
		{"as ordered", nil, 1, ""},
		{"another length", map[uint]any{p11.CKA_VALUE_LEN: 16}, 0, "not what was asked for"},
		{"extractable", map[uint]any{p11.CKA_EXTRACTABLE: true}, 0, "not what was asked for"},
		{"not sensitive", map[uint]any{p11.CKA_SENSITIVE: false}, 0, "not what was asked for"},
		{"decrypts", map[uint]any{p11.CKA_DECRYPT: true}, 0, "not what was asked for"},
		// Another process may have made a key with the same id.
		{"another label", map[uint]any{p11.CKA_LABEL: "other@0"}, 1, "already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(softhsmtest.New(t))
			first := true
			cfg.Wrap = func(b Boundary) Boundary { return &misreporter{b, &first, c.change} }
			tok, err := Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer tok.Close() //nolint:errcheck // the calls below are what is tested
			id, label := []byte{0, 1}, "k@0"
			err = tok.GenerateKey(t.Context(), id, label, 256)
			switch {
			case c.text == "" && err != nil:
				t.Errorf("made: %v", err)
			case c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)):
				t.Errorf("made: %v, want %q", err, c.text)
			}
			if list, err := tok.List(t.Context()); err != nil || len(list) != c.keys {
				t.Errorf("%d keys, want %d, %v", len(list), c.keys, err)
			}
			if c.keys == 0 {
				return
			}
			if err := tok.GenerateKey(t.Context(), id, label, 256); !claviger.Is(err, claviger.KeyExists) {
				t.Errorf("made twice: %v", err)
			}
		})
	}
}

// misreporter makes the first key with other attributes, and then returns that the device has failed.
type misreporter struct {
	Boundary
	first  *bool
	change map[uint]any
}

func (l *misreporter) GenerateKey(s p11.SessionHandle, m []*p11.Mechanism,
	a []*p11.Attribute) (p11.ObjectHandle, error) {
	if !*l.first || !slices.ContainsFunc(a, func(x *p11.Attribute) bool { return x.Type == p11.CKA_ID }) {
		return l.Boundary.GenerateKey(s, m, a)
	}
	a = slices.Clone(a)
	for i, x := range a {
		if to, ok := l.change[x.Type]; ok {
			a[i] = p11.NewAttribute(x.Type, to)
		}
	}
	o, err := l.Boundary.GenerateKey(s, m, a)
	if err != nil {
		return o, err
	}
	*l.first = false
	return 0, p11.Error(p11.CKR_DEVICE_ERROR)
}

// sizeLimitedToken refuses calls with more than limit bytes.
type sizeLimitedToken struct {
	Boundary
	limit int
}

func (n sizeLimitedToken) Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle,
	data []byte) ([]byte, error) {
	if len(data) > n.limit {
		return nil, p11.Error(p11.CKR_DATA_LEN_RANGE)
	}
	return n.Boundary.Encrypt(s, m, key, data)
}

// TestLabel: a caller with the wrong label does not get the key, and does not disturb other callers.
func TestLabel(t *testing.T) {
	tok, _ := open(t)
	id, label := generate(t, tok, 1, 256)
	for _, l := range []string{"wrong", label, "wrong", label} {
		err := tok.EncryptBlocks(t.Context(), id, l, nil, make([]byte, 16))
		if claviger.Is(err, claviger.KeyNotFound) != (l == "wrong") || l == label && err != nil {
			t.Errorf("label %s: %v", l, err)
		}
	}
	if _, ok := tok.gather.Load(keyName{string(id), "wrong"}); ok {
		t.Error("a key that does not exist stays in memory")
	}
}
