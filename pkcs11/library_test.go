package pkcs11

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
)

// TestLibraryShowsToken: without a login, a library shows the token, its sessions, and why the PIN is not tried.
func TestLibraryShowsToken(t *testing.T) {
	c := config(softhsmtest.New(t))
	for _, tt := range []struct {
		flag uint
		want string
	}{
		{0, ""},
		{flagPINCountLow, "a wrong PIN was tried at token"},
		{flagPINFinalTry, "would lock at one more wrong PIN"},
		{flagPINLocked, "is locked after too many wrong tries"},
	} {
		m := new(Meter)
		c.Wrap = func(b Boundary) Boundary {
			return infoLibrary{m.Wrap(b), func(i *p11.TokenInfo) {
				i.Flags |= tt.flag
				i.SessionCount, i.MaxSessionCount = 3, unavailable
			}}
		}
		lib, err := OpenLibrary(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		s, err := lib.Token(t.Context())
		if err != nil || !strings.Contains(s.Name, c.TokenLabel) || s.Sessions != 3 || s.MaxSessions != 0 ||
			(s.PIN == nil) != (tt.want == "") || s.PIN != nil && !strings.Contains(s.PIN.Error(), tt.want) {
			t.Errorf("%#x: %+v, %v", tt.flag, s, err)
		}
		if m.Count("Login") > 0 {
			t.Errorf("%#x: it logs in", tt.flag)
		}
		if err := lib.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestLibraryHangs: a library that hangs does not hang its caller.
func TestLibraryHangs(t *testing.T) {
	c := config(softhsmtest.New(t))
	m := new(Meter)
	c.Wrap = m.Wrap
	resume := m.Hang("GetSlotList")
	lib, err := OpenLibrary(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lib.Token(ctx); err == nil || !strings.Contains(err.Error(), "did not answer in time") {
		t.Error(err)
	}
	resume()
	if _, err := lib.Token(t.Context()); err != nil {
		t.Error(err)
	}
	eventually(t, func() error { // a call that runs keeps the library loaded
		lib.module.mu.Lock()
		defer lib.module.mu.Unlock()
		if lib.module.active > 0 {
			return errors.New("the call that hung has not returned")
		}
		return nil
	})
	if err := lib.Close(); err != nil {
		t.Error(err)
	}
}

// TestCarefulTriesNoPIN: after a wrong PIN, a careful process does not try the PIN, and another process does.
func TestCarefulTriesNoPIN(t *testing.T) {
	c, file, right, m := wrongPIN(t)
	c.Careful = true
	if _, err := Open(t.Context(), c); !IsPINRefused(err) || m.Count("Login") != 1 {
		t.Fatalf("%v after %d logins", err, m.Count("Login"))
	}
	writePIN(t, file, right)
	if _, err := Open(t.Context(), c); !IsPINRefused(err) || m.Count("Login") != 1 ||
		!strings.Contains(err.Error(), "a wrong PIN was tried at token") {
		t.Fatalf("%v after %d logins", err, m.Count("Login"))
	}
	c.Careful = false
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
}

// TestIsMechanism: IsMechanism reports a token that makes no key, or encrypts by no mechanism, and no failed login.
func TestIsMechanism(t *testing.T) {
	c := config(softhsmtest.New(t))
	for call, want := range map[string]bool{"GenerateKey": true, "Encrypt": true, "Login": false} {
		m := new(Meter)
		c.Wrap = m.Wrap
		m.Fail(call, 100, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED))
		if _, err := Open(t.Context(), c); err == nil || IsMechanism(err) != want {
			t.Errorf("%s fails: %v", call, err)
		}
	}
}

// TestLibraryWithoutToken: a library that does not show the token, that starts again, or that fails at its end returns
// an error.
func TestLibraryWithoutToken(t *testing.T) {
	c, faults := faulty(t)
	c.TokenLabel = "absent"
	m := new(Meter)
	c.Wrap = m.Wrap
	lib, err := OpenLibrary(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := lib.Token(t.Context()); err == nil || !strings.Contains(err.Error(), `token "absent"`) {
		t.Errorf("%+v, %v", s, err)
	}
	m.Reset()
	ended, end := context.WithCancel(t.Context())
	end()
	lib.module.resetting = &pendingReset{since: time.Now(), done: make(chan struct{})}
	if s, err := lib.token(ended); !errors.Is(err, context.Canceled) || len(m.Counts()) > 0 {
		t.Errorf("%+v, %v, calls %v", s, err, m.Counts())
	}
	lib.module.resetting = nil
	faults.Order(faultmodule.Finalize, faultmodule.Order{Action: faultmodule.FailAfter, Value: p11.CKR_GENERAL_ERROR})
	if err := lib.Close(); !errors.Is(err, p11.Error(p11.CKR_GENERAL_ERROR)) {
		t.Error(err)
	}
}

// TestLibrariesOfOneFile: a process loads a library once. A worker is shared by the tokens with the same limit of a
// call, unless it is for a token alone.
func TestLibrariesOfOneFile(t *testing.T) {
	made := softhsmtest.New(t)
	for mode, want := range map[WorkerMode]int{WorkerNo: 1, WorkerYes: 3} {
		loaded := map[*module]bool{}
		for _, of := range []func(*Config){func(*Config) {}, func(c *Config) { c.Serial = "another" },
			func(c *Config) { c.CallLimit = time.Minute }, func(c *Config) { c.OwnWorker = true }} {
			c := config(made)
			c.Worker = mode
			of(&c)
			lib, err := OpenLibrary(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := lib.Close(); err != nil {
					t.Error(err)
				}
			})
			loaded[lib.module] = true
		}
		if len(loaded) != want {
			t.Errorf("worker %s: the library is loaded %d times, want %d", mode, len(loaded), want)
		}
	}
}
