package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/provider/hsm"
)

// TestOneKeyHangsAtStart: if calls with one key hang while a provider is opened, for a server or for a command, the
// provider is opened, and serves the other keys. The log names the key, which is served when its calls return again. If
// no key works, the token is not used.
func TestOneKeyHangsAtStart(t *testing.T) {
	hsm.SetVerifyStall(t, 50*time.Millisecond)
	b, fault, want := lateSite(t)
	b.create(t, "other")
	for _, access := range []hsm.Access{hsm.Serve, hsm.Inspect} {
		fault.HangKey("k@0")
		var log logtest.Buffer
		b.access, b.log = access, slog.New(slog.NewTextHandler(&log, nil))
		p := b.mustOpen(t)
		if err := p.Missing(); err != nil {
			t.Fatal(err)
		}
		if text := log.String(); !strings.Contains(text, `key version \"k@0\" could not be verified`) {
			t.Errorf("the log: %s", text)
		}
		if _, err := block(t.Context(), p, "other@0"); err != nil {
			t.Error(err)
		}
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := block(short, p, "k@0"); !claviger.Is(err, claviger.Unavailable) {
			t.Error(err)
		}
		cancel()
		fault.HangKey("")
		waitUntil(t, "the key is served again", func() error {
			got, err := block(t.Context(), p, "k@0")
			if err == nil && !bytes.Equal(got, want) {
				t.Fatal("another key")
			}
			return err
		})
		mustClose(t, p)
	}

	b.access = hsm.Serve
	hang := faultmodule.Order{Action: faultmodule.Hang, Times: faultmodule.Always}
	fault.Order(faultmodule.EncryptInit, hang)
	p := b.mustOpen(t)
	if err := p.Missing(); err == nil {
		t.Error("a token with which no key works is used")
	}
	fault.Heal()
}

// TestVersionsNotVerified: a start goes on without a version that cannot be verified only if three conditions hold:
// another version is right; the token has the recorded serial number, or no serial number is recorded; and the token
// answers.
func TestVersionsNotVerified(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	unknown, away := errors.New("hangs"), p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED)
	for _, c := range []struct {
		serial string
		right  int
		away   bool
		want   error
	}{
		{b.token.Serial, 1, false, nil}, {"", 1, false, nil}, {b.token.Serial, 0, false, unknown},
		{"", 0, false, unknown}, {"another", 1, false, unknown}, {b.token.Serial, 1, true, away},
	} {
		if c.away {
			b.meter.Fail("GenerateRandom", 1, away)
			b.meter.Fail("GetSessionInfo", 1, away)
		}
		if err := p.HandleUnknown(t.Context(), c.serial, c.right, unknown); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
		b.meter.Heal()
	}
	mustClose(t, p)
}
