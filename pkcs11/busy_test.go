package pkcs11

import (
	"errors"
	"slices"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// openBusy opens a token with the profile of an HSM that throttles, and makes two keys.
func openBusy(t *testing.T) (*Token, *Meter) {
	t.Helper()
	tok, m := open(t)
	tok.cfg.Profile = CloudHSM
	generate(t, tok, 1, 256)
	generate(t, tok, 2, 256)
	m.Reset()
	return tok, m
}

// wantNoLogin demands that no call was made to get the token back.
func wantNoLogin(t *testing.T, m *Meter) {
	t.Helper()
	for _, call := range []string{"Login", "Initialize", "CloseSession", "GenerateKey"} {
		if n := m.Count(call); n != 0 {
			t.Errorf("%d calls of %s while the HSM is busy", n, call)
		}
	}
}

// TestBusy: a call that gets the code of a busy HSM is made again after pauses, in the same session. It needs no login.
func TestBusy(t *testing.T) {
	for _, code := range profiles[CloudHSM].busy {
		t.Run(ResultName(p11.Error(code)), func(t *testing.T) {
			tok, m := openBusy(t)
			m.Fail("Encrypt", busyTries, p11.Error(code))
			from := time.Now()
			if err := encryptWith(t, tok, 1); err != nil {
				t.Error(err)
			}
			if took := time.Since(from); took < 7*firstBusyPause {
				t.Errorf("%d calls were made again within %v", busyTries, took)
			}
			m.Fail("GetAttributeValue", 1, p11.Error(code))
			if _, err := tok.FindLabel(t.Context(), "k@1"); err != nil {
				t.Error(err)
			}
			wantNoLogin(t, m)
			tok.mu.Lock()
			tok.login.idle = nil // so that the next call opens a session
			tok.mu.Unlock()
			m.Fail("OpenSession", 1, p11.Error(code))
			if err := encryptWith(t, tok, 1); err != nil {
				t.Error(err)
			}
			wantNoLogin(t, m)
		})
	}
}

// TestBusyForLong: while the HSM stays busy, calls fail with kind Unavailable, and all keys together cause no login. If
// nothing succeeds for busyLimit, the token counts as lost.
func TestBusyForLong(t *testing.T) {
	tok, m := openBusy(t)
	m.Fail("Encrypt", 1000, p11.Error(p11.CKR_FUNCTION_FAILED))
	m.Fail("GenerateRandom", 1000, p11.Error(p11.CKR_DEVICE_ERROR))
	for range 2 {
		errs := []error{encryptWith(t, tok, 1), encryptWith(t, tok, 2), tok.Ping(t.Context())}
		i := slices.IndexFunc(errs, func(err error) bool { return !claviger.Is(err, claviger.Unavailable) })
		if i >= 0 {
			t.Errorf("operation %d: %v", i, errs[i])
		}
	}
	wantNoLogin(t, m)
	if n := tok.failing.Load(); n != 3 {
		t.Errorf("the failures of %d of 3 operations are recorded", n)
	}
	tok.busySince.Store(time.Now().Add(-busyLimit).UnixNano())
	if err := tok.Ping(t.Context()); err == nil {
		t.Error("the call succeeds")
	}
	if m.Count("Login") == 0 {
		t.Error("no login, although nothing succeeds")
	}
	m.Heal()
	eventually(t, func() error { return encryptWith(t, tok, 1) })
	if tok.busySince.Load() != 0 {
		t.Error("the HSM counts as busy after a success")
	}
	if err := encryptWith(t, tok, 9); errors.Is(err, p11.Error(p11.CKR_FUNCTION_FAILED)) {
		t.Error(err)
	}
}

// TestNotBusy: with the profile of an HSM that throttles, another code closes the session, as with any profile.
func TestNotBusy(t *testing.T) {
	tok, m := openBusy(t)
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_OPERATION_ACTIVE))
	if err := encryptWith(t, tok, 1); err != nil || m.Count("CloseSession") != 1 {
		t.Errorf("%v, %d sessions closed", err, m.Count("CloseSession"))
	}
}
