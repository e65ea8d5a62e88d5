package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/internal/softhsm/softhsmtest"
)

// brokenKeys is a token on which calls with some keys fail.
type brokenKeys struct {
	Boundary
	labels []string      // of the keys
	code   uint          // the result of C_Encrypt with such a key
	hang   chan struct{} // nil, or such calls hang until it is closed
	heal   func() bool   // nil, or whether the keys work again
	found  *atomic.Value // map[p11.ObjectHandle]bool: their handles
}

func (b brokenKeys) FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error) {
	found, more, err := b.Boundary.FindObjects(s, limit)
	broken := map[p11.ObjectHandle]bool{}
	if old, ok := b.found.Load().(map[p11.ObjectHandle]bool); ok {
		for o := range old {
			broken[o] = true
		}
	}
	for _, o := range found {
		a, err := b.Boundary.GetAttributeValue(s, o, []*p11.Attribute{p11.NewAttribute(p11.CKA_LABEL, nil)})
		for _, label := range b.labels {
			if err == nil && string(a[0].Value) == label {
				broken[o] = true
			}
		}
	}
	b.found.Store(broken)
	return found, more, err
}

func (b brokenKeys) Encrypt(s p11.SessionHandle, m *p11.Mechanism, o p11.ObjectHandle, in []byte) ([]byte, error) {
	if broken, _ := b.found.Load().(map[p11.ObjectHandle]bool); broken[o] && (b.heal == nil || !b.heal()) {
		if b.hang != nil {
			<-b.hang
			return b.Boundary.Encrypt(s, m, o, in)
		}
		return nil, p11.Error(b.code)
	}
	return b.Boundary.Encrypt(s, m, o, in)
}

// openBroken opens a token with the keys k@1 to k@3, of which some are broken.
func openBroken(t *testing.T, code uint, heal func(*Meter) bool, labels ...string) (*Token, *Meter) {
	t.Helper()
	m := new(Meter)
	b := brokenKeys{labels: labels, code: code, found: new(atomic.Value)}
	if heal != nil {
		b.heal = func() bool { return heal(m) }
	}
	return openWith(t, m, b), m
}

// openWith opens a token with broken keys, and makes the keys k@1 to k@3.
func openWith(t *testing.T, m *Meter, b brokenKeys) *Token {
	t.Helper()
	c := config(softhsmtest.New(t))
	c.Worker = WorkerNo // handles of different logins are compared
	c.Wrap = func(inner Boundary) Boundary {
		b.Boundary = inner
		return m.Wrap(b)
	}
	tok := openBare(t, c)
	for i := range 3 {
		generate(t, tok, byte(i+1), 256)
	}
	m.Reset()
	return tok
}

func encryptWith(t *testing.T, tok *Token, key byte) error {
	t.Helper()
	return tok.EncryptBlocks(t.Context(), []byte{1, 2, 3, key}, fmt.Sprintf("k@%d", key), nil, make([]byte, 16))
}

// perKeyCodes are results that a broken key may give.
var perKeyCodes = []uint{p11.CKR_GENERAL_ERROR, p11.CKR_KEY_HANDLE_INVALID, p11.CKR_OBJECT_HANDLE_INVALID,
	p11.CKR_FUNCTION_FAILED, p11.CKR_DEVICE_ERROR, p11.CKR_USER_NOT_LOGGED_IN, p11.CKR_HOST_MEMORY,
	p11.CKR_VENDOR_DEFINED | 7}

// TestBrokenKeyDisturbsNoOthers: while calls with one key fail, the other keys work. Neither a login nor a start of the
// library takes place, however often the broken key is used. When the key works again, it is used within its longest
// pause.
func TestBrokenKeyDisturbsNoOthers(t *testing.T) {
	for _, code := range perKeyCodes {
		t.Run(fmt.Sprintf("%#x", code), func(t *testing.T) {
			var healed atomic.Bool
			tok, m := openBroken(t, code, func(*Meter) bool { return healed.Load() }, "k@1")
			for range 100 {
				if err := encryptWith(t, tok, 1); !claviger.Is(err, claviger.Unavailable) {
					t.Fatalf("the broken key: %v", err)
				}
				if err := encryptWith(t, tok, 2); err != nil {
					t.Fatalf("another key: %v", err)
				}
			}
			if n := m.Count("Login") + m.Count("Initialize"); n > 0 {
				t.Errorf("the others were disturbed: %v", m.Counts())
			}
			if n := m.Count("Encrypt"); n > 150 { // 100 with the other key
				t.Errorf("%d calls of C_Encrypt: the broken key is tried without a pause", n)
			}
			healed.Store(true)
			from := time.Now()
			eventually(t, func() error { return encryptWith(t, tok, 1) })
			if d := time.Since(from); d > maxPauseOfKey+5*time.Second {
				t.Errorf("the key came back after %v", d)
			}
			if tok.failing.Load() != 0 {
				t.Error("the fault is still recorded")
			}
		})
	}
}

// TestOnlyKeyIsBroken: if nothing shows that the token works, a key that stays broken leads to a new start of the
// library, which may help.
func TestOnlyKeyIsBroken(t *testing.T) {
	tok, m := openBroken(t, p11.CKR_GENERAL_ERROR, func(m *Meter) bool { return m.Count("Initialize") > 0 }, "k@1")
	if err := encryptWith(t, tok, 1); !claviger.Is(err, claviger.Unavailable) || m.Count("Initialize") > 0 {
		t.Errorf("the first failure: %v, the calls are %v", err, m.Counts())
	}
	eventually(t, func() error { return encryptWith(t, tok, 1) })
	if m.Count("Initialize") != 1 {
		t.Errorf("the calls are %v", m.Counts())
	}
}

// TestOnlyKeyStaysBroken: a new start of the library that does not help is not repeated soon.
func TestOnlyKeyStaysBroken(t *testing.T) {
	tok, m := openBroken(t, p11.CKR_GENERAL_ERROR, nil, "k@1")
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		_ = encryptWith(t, tok, 1)
	}
	if n := m.Count("Initialize"); n < 1 || n > 2 {
		t.Errorf("%d starts of the library in 3 seconds", n)
	}
	if n := m.Count("Login"); n > 2 {
		t.Errorf("%d logins", n)
	}
}

// TestSeveralKeysAgree: if two keys fail and none works, the token is taken for lost, although a new key works.
func TestSeveralKeysAgree(t *testing.T) {
	healed := func(m *Meter) bool { return m.Count("Initialize") > 0 }
	tok, m := openBroken(t, p11.CKR_GENERAL_ERROR, healed, "k@1", "k@2")
	if err := encryptWith(t, tok, 1); err == nil || m.Count("Initialize") > 0 {
		t.Fatalf("the first key: %v, the calls are %v", err, m.Counts())
	}
	if err := encryptWith(t, tok, 2); err != nil || m.Count("Initialize") != 1 {
		t.Errorf("the second key: %v, the calls are %v", err, m.Counts())
	}
	if err := encryptWith(t, tok, 1); err != nil {
		t.Errorf("the first key again: %v", err)
	}
}

// TestRepairSteps: each step of repair is made only if the step before does not help.
func TestRepairSteps(t *testing.T) {
	for _, c := range []struct {
		name           string
		heals          func(m *Meter) bool
		age            time.Duration // of the login
		logins, starts int
	}{
		{"another session", func(m *Meter) bool { return m.Count("Encrypt") > 1 }, time.Hour, 0, 0},
		{"another login", func(m *Meter) bool { return m.Count("Login") > 0 }, time.Hour, 1, 0},
		{"another start", func(m *Meter) bool { return m.Count("Initialize") > 0 }, time.Hour, 2, 1},
		{"another start, as the login is new", func(m *Meter) bool { return m.Count("Initialize") > 0 }, 0, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := &failingEncrypt{heals: c.heals}
			cfg := config(softhsmtest.New(t))
			cfg.Wrap = func(b Boundary) Boundary { all.Boundary = b; return all.m.Wrap(all) }
			tok, err := Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer tok.Close() //nolint:errcheck // the calls below are what is tested
			generate(t, tok, 1, 256)
			tok.login.made = tok.login.made.Add(-c.age)
			all.m.Reset()
			all.on = true
			if err := encryptWith(t, tok, 1); err != nil {
				t.Error(err)
			}
			if all.m.Count("Login") != c.logins || all.m.Count("Initialize") != c.starts {
				t.Errorf("%d logins, %d starts of the library; want %d, %d", all.m.Count("Login"),
					all.m.Count("Initialize"), c.logins, c.starts)
			}
		})
	}
}

// failingEncrypt is a token that encrypts nothing, with no key, until heals.
type failingEncrypt struct {
	Boundary
	m     Meter
	on    bool
	heals func(*Meter) bool
}

func (f *failingEncrypt) Encrypt(s p11.SessionHandle, m *p11.Mechanism, o p11.ObjectHandle, in []byte) ([]byte, error) {
	if f.on && !f.heals(&f.m) {
		return nil, p11.Error(p11.CKR_GENERAL_ERROR)
	}
	return f.Boundary.Encrypt(s, m, o, in)
}

// TestFewSessions: the HSM allows fewer sessions than the configuration. Calls wait for each other, and none fails.
// Calls succeed even if only the login has a session.
func TestFewSessions(t *testing.T) {
	for _, allowed := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(allowed), func(t *testing.T) {
			made := softhsmtest.New(t)
			fault := faultmodule.New(t, made.Module)
			fault.LimitSessions(allowed)
			made.Module = fault.Path
			c := config(made)
			c.MaxSessions = 8
			tok, _ := openAs(t, c)
			const keys = 6
			for i := range keys {
				generate(t, tok, byte(i), 128)
			}
			fault.Delay(faultmodule.Encrypt, 2*time.Millisecond)
			errs := make(chan error)
			for i := range keys {
				go func() {
					var err error
					for range 20 {
						err = errors.Join(err, encryptWith(t, tok, byte(i)))
					}
					errs <- err
				}()
			}
			for range keys {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			eventually(t, func() error {
				if used, limit := tok.Sessions(); used != 0 || limit == 7 && allowed < 4 {
					return fmt.Errorf("%d calls run, at most %d; the HSM allows %d sessions", used, limit, allowed)
				}
				return nil
			})
			fault.LimitSessions(0)
			tok.unparkAll() // as if learnedFor had passed
			if _, limit := tok.Sessions(); limit != 7 {
				t.Errorf("at most %d calls run after the limit is gone", limit)
			}
		})
	}
}

// TestMechanismRefusedLater: the token refuses a mechanism that worked before. The next mechanism is used. Later the
// first one is tried again.
func TestMechanismRefusedLater(t *testing.T) {
	made := softhsmtest.New(t)
	fault := faultmodule.New(t, made.Module)
	made.Module = fault.Path
	var log logtest.Buffer
	c := config(made)
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	tok, _ := openAs(t, c)
	generate(t, tok, 1, 256)
	name := keyName{string([]byte{1, 2, 3, 1}), "k@1"}
	fault.RefuseMechanism(p11.CKM_AES_ECB)
	before := fault.Calls(faultmodule.EncryptInit)
	for range 3 {
		if err := encryptWith(t, tok, 1); err != nil {
			t.Fatal(err)
		}
	}
	if n := fault.Calls(faultmodule.EncryptInit) - before; n != 4 {
		t.Errorf("%d calls; want 2, then 1 for each encryption", n)
	}
	warned := func() {
		t.Helper()
		if n := strings.Count(log.String(), "refuses a mechanism that it offered"); n != 1 {
			t.Errorf("%d warnings: %s", n, &log)
		}
	}
	warned()
	if at, known := tok.mechanismOf(name); at != 1 || !known || tok.reduced.keys.Load() != 1 {
		t.Errorf("mechanism %d, known: %t", at, known)
	}
	tok.reduced.byKey.Store(name, lesson[int]{1, time.Now()}) // as if learnedFor had passed
	if err := encryptWith(t, tok, 1); err != nil || tok.reduced.keys.Load() != 1 {
		t.Errorf("still refused: %v", err)
	}
	fault.RefuseMechanism(0)
	tok.reduced.byKey.Store(name, lesson[int]{1, time.Now()})
	if err := encryptWith(t, tok, 1); err != nil || tok.reduced.keys.Load() != 0 {
		t.Errorf("allowed again: %v", err)
	}
	if at, known := tok.mechanismOf(name); at != 0 || known {
		t.Errorf("mechanism %d, known: %t", at, known)
	}
	warned()
	if n := strings.Count(log.String(), "uses its best mechanism again"); n != 1 {
		t.Errorf("the end is logged %d times: %s", n, &log)
	}
}

// TestSearchDuringALogin: a search that finds nothing does not count if another login took place since it began.
func TestSearchDuringALogin(t *testing.T) {
	tok, m := open(t)
	calls := 0
	b := tok.b
	tok.b = searchHook{b, func() {
		if calls++; calls == 1 {
			tok.module.loginsBegun.Add(1)
			tok.module.loginsEnded.Add(1)
		}
	}}
	if k, err := tok.Find(t.Context(), []byte("none")); k != nil || err != nil || calls != 2 {
		t.Errorf("%v, %v after %d searches, want 2", k, err, calls)
	}
	if m.Count("Login") != 0 {
		t.Errorf("%d logins", m.Count("Login"))
	}
}

// searchHook is a library that calls then in each search.
type searchHook struct {
	Boundary
	then func()
}

func (h searchHook) FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error) {
	h.then()
	return h.Boundary.FindObjects(s, limit)
}

// TestHungKey: calls with one key hang for ever in the library. They hold no more sessions than one key may use, the
// other keys work, and callers of the hung key get an error at once after the first call has reached its limit. When
// the calls return, the key works again.
func TestHungKey(t *testing.T) {
	release := make(chan struct{})
	let := sync.OnceFunc(func() { close(release) })
	defer let()
	tok := openWith(t, new(Meter), brokenKeys{labels: []string{"k@1"}, hang: release, found: new(atomic.Value)})
	tok.limit = 200 * time.Millisecond
	for range 50 {
		go encryptWith(t, tok, 1) //nolint:errcheck // it hangs
	}
	for range 3 {
		if err := encryptWith(t, tok, 1); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("a key that hangs: %v", err)
		}
	}
	if err := encryptWith(t, tok, 1); err == nil || !strings.Contains(err.Error(), "hang in the HSM's library") {
		t.Errorf("later: %v", err)
	}
	for range 20 {
		if err := encryptWith(t, tok, 2); err != nil {
			t.Errorf("another key: %v", err)
		}
	}
	eventually(t, func() error { // the last call of the other key is about to end
		if used, _ := tok.Sessions(); used > tok.inFlight {
			return fmt.Errorf("calls with the key hold %d sessions, want %d", used, tok.inFlight)
		}
		return nil
	})
	v, _ := tok.gather.Load(keyName{string([]byte{1, 2, 3, 1}), "k@1"})
	if g, _ := v.(*gatherer); g.waiting() > 0 {
		t.Errorf("%d callers are still queued", g.waiting())
	}
	let()
	eventually(t, func() error { return encryptWith(t, tok, 1) })
}

// TestAbandonedLeaveTheQueue: callers that gave up do not stay in memory while no call takes them off the queue.
func TestAbandonedLeaveTheQueue(t *testing.T) {
	g, all := queued(32<<10, 32, 16000, 32, 32)
	for i, w := range all {
		w.state.Store(abandoned)
		g.abandon()
		if n := g.waiting(); n > 2*(len(all)-1-i) {
			t.Errorf("%d are queued after %d of %d gave up", n, i+1, len(all))
		}
	}
}

// TestHungProbes: probes that hang, one after another, leave sessions for the keys.
func TestHungProbes(t *testing.T) {
	tok, m := openInProcess(t)
	generate(t, tok, 1, 256)
	release := m.Hang("GenerateRandom")
	defer release()
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := tok.Ping(ctx); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("a probe that hangs: %v", err)
		}
		cancel()
	}
	within(t, 20*time.Second, "EncryptBlocks", func() {
		if err := encryptWith(t, tok, 1); err != nil {
			t.Error(err)
		}
	})
}

// TestTryTokenOfAnother: while one caller tries the token, a second caller waits for the result. If the context of the
// first caller ends, the second caller tries the token itself.
func TestTryTokenOfAnother(t *testing.T) {
	tok, _ := open(t)
	for _, ended := range []error{context.Canceled, context.DeadlineExceeded} {
		f := newFlight()
		f.finish(claviger.E("pkcs11.Token", claviger.Unavailable, "", ended))
		tok.mu.Lock()
		tok.trying = f
		tok.mu.Unlock()
		result := make(chan error, 1)
		go func() { result <- tok.tryToken(t.Context()) }()
		select {
		case err := <-result:
			t.Errorf("the caller did not try the token itself: %v", err)
			continue
		case <-time.After(50 * time.Millisecond):
		}
		tok.mu.Lock()
		tok.trying = nil
		tok.mu.Unlock()
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
}
