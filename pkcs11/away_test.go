package pkcs11

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
)

// TestAway: an HSM that does not answer may be back later, so a start waits for it. A wrong PIN, name or library stays
// wrong, so a start does not wait.
func TestAway(t *testing.T) {
	tok := softhsmtest.New(t)
	var meter Meter
	open := func(change func(*Config)) error {
		cfg := Config{Module: tok.Module, TokenLabel: tok.Label, PIN: pinFile(tok.PINFile), Wrap: meter.Wrap}
		change(&cfg)
		opened, err := Open(t.Context(), cfg)
		if err == nil {
			err = opened.Close()
		}
		return err
	}
	unchanged := func(*Config) {}
	if err := open(unchanged); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		call string
		code uint
		away bool
	}{
		{"GetSlotList", p11.CKR_DEVICE_ERROR, true}, {"OpenSession", p11.CKR_TOKEN_NOT_PRESENT, true},
		{"OpenSession", p11.CKR_DEVICE_REMOVED, true}, {"OpenSession", p11.CKR_SLOT_ID_INVALID, true},
		{"GetSlotList", p11.CKR_CRYPTOKI_NOT_INITIALIZED, true}, {"Login", p11.CKR_FUNCTION_CANCELED, true},
		{"Login", p11.CKR_DEVICE_ERROR, true}, {"Login", p11.CKR_VENDOR_DEFINED + 5, true},
		{"OpenSession", p11.CKR_VENDOR_DEFINED + 5, true},
		{"Login", p11.CKR_ARGUMENTS_BAD, false},
		{"Login", p11.CKR_PIN_EXPIRED, false}, // comes last, because this PIN is not tried again
	} {
		meter.Fail(c.call, 100, p11.Error(c.code))
		err := open(unchanged)
		meter.Heal()
		if MayBeWrongPIN(err) {
			if again := open(unchanged); !claviger.IsUnreachable(again) || !MayBeWrongPIN(again) {
				t.Errorf("within the pause: %v", again)
			}
			triedPINs.mu.Lock()
			clear(triedPINs.doubts)
			triedPINs.mu.Unlock()
		}
		if maybe := MayBeWrongPIN(err); maybe != (c.call == "Login" && c.code >= p11.CKR_VENDOR_DEFINED) {
			t.Errorf("%s: %v: may be a wrong PIN: %t", c.call, p11.Error(c.code), maybe)
		}
		if err == nil || claviger.IsUnreachable(err) != c.away {
			t.Errorf("%s: %v: waits %t, want %t: %v", c.call, p11.Error(c.code), claviger.IsUnreachable(err), c.away,
				err)
		}
	}
	if err := open(func(c *Config) {
		c.Wrap = func(b Boundary) Boundary { return flagged{Boundary: b, empty: true} }
	}); !claviger.IsUnreachable(err) {
		t.Errorf("a library that shows no token is not waited for: %v", err)
	}
	release := meter.Hang("GetSlotList")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := Open(ctx, Config{Module: tok.Module, TokenLabel: tok.Label, PIN: pinFile(tok.PINFile), Wrap: meter.Wrap})
	if !claviger.IsUnreachable(err) {
		t.Errorf("a library that hangs is not waited for: %v", err)
	}
	release()
	eventually(t, func() error { // until the call has left the library
		if err := open(unchanged); errors.Is(err, errHung) {
			return err
		}
		return nil
	})
	for name, change := range map[string]func(*Config){
		"another label":   func(c *Config) { c.TokenLabel = "elsewhere" },
		"no library":      func(c *Config) { c.Module = filepath.Join(t.TempDir(), "none.so") },
		"another library": func(c *Config) { c.Module = "/bin/true" },
	} {
		if err := open(change); err == nil || claviger.IsUnreachable(err) {
			t.Errorf("%s is waited for: %v", name, err)
		}
	}
}

// TestRefusedIsNotAway: a login that was refused, or not tried, does not count as an HSM that is away, unless it is
// tried again by itself.
func TestRefusedIsNotAway(t *testing.T) {
	for i, c := range []struct {
		err  error
		away bool
	}{
		{refusal{heldBack{"tried again later"}, false}, true},
		{refusal{heldBack{"not tried again"}, true}, false},
		{refusal{errors.New("the PIN file cannot be read"), false}, false},
		{refusal{p11.Error(p11.CKR_PIN_LOCKED), true}, false},
	} {
		if got := claviger.IsUnreachable(markAway(c.err)); got != c.away {
			t.Errorf("case %d: away: %t", i, got)
		}
	}
}
