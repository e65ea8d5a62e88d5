package keyhsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
	"go.uber.org/goleak"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	uuid1 = "Zx8kQ2vT9mB4nL7pR1sW6yC3dF"
	uuid2 = "Zx8kQ2vT9mB4nL7pR1sW6yC3dG"
)

// openToken opens a new SoftHSM token, and counts its calls with a Meter.
func openToken(t *testing.T) (*pkcs11.Token, *pkcs11.Meter) {
	t.Helper()
	soft := softhsmtest.New(t)
	cfg, err := (&pkcs11.FileConfig{Module: soft.Module, Token: soft.Label, PINFile: soft.PINFile}).Config("/")
	if err != nil {
		t.Fatal(err)
	}
	m := new(pkcs11.Meter)
	cfg.Wrap = m.Wrap
	tok, err := pkcs11.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	})
	return tok, m
}

// newKeeper makes a pair and a keeper for it.
func newKeeper(t *testing.T) (*Keeper, *pkcs11.Token, *pkcs11.Meter) {
	t.Helper()
	tok, m := openToken(t)
	id := []byte{0xab, 1}
	if err := tok.GeneratePair(t.Context(), id, "deposits", 2048); err != nil {
		t.Fatal(err)
	}
	return NewKeeper(tok, id, "deposits"), tok, m
}

func wrap(t *testing.T, k *Keeper, uuid string, content []byte) []byte {
	t.Helper()
	w, err := k.Wrap(t.Context(), uuid, content)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestRoundTrip: wrapped content of each size is unwrapped to the same bytes.
func TestRoundTrip(t *testing.T) {
	k, _, m := newKeeper(t)
	for _, content := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("deposit "), 1000),
		make([]byte, MaxContent)} {
		w := wrap(t, k, uuid1, content)
		if len(w) > MaxWrapped || len(content) > 4 && bytes.Contains(w, content[:4]) {
			t.Errorf("%d bytes wrapped to %d, or not encrypted", len(content), len(w))
		}
		got, err := k.Unwrap(t.Context(), uuid1, w)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes came back as %d, %v", len(content), len(got), err)
		}
	}
	a, b := wrap(t, k, uuid1, []byte("same")), wrap(t, k, uuid1, []byte("same"))
	ea, _ := ParseEnvelope(a)
	eb, _ := ParseEnvelope(b)
	if bytes.Equal(ea.DataKey, eb.DataKey) || bytes.Equal(ea.sealed, eb.sealed) {
		t.Error("two wrappings of one deposit are equal")
	}
	if ea.HexKeyID() != "ab01" || k.KeyID() != "ab01" {
		t.Errorf("key id %s, %s", ea.HexKeyID(), k.KeyID())
	}
	for name, f := range map[string]func() error{
		"wrap":   func() error { _, err := k.Wrap(t.Context(), uuid1, []byte("x")); return err },
		"unwrap": func() error { _, err := k.Unwrap(t.Context(), uuid1, a); return err },
	} {
		m.Reset()
		if err := f(); err != nil {
			t.Error(err)
		}
		if c := m.Counts(); len(c) != 2 || c["DecryptInit"] != 1 || c["Decrypt"] != 1 {
			t.Errorf("one %s made the calls %v", name, c)
		}
	}
	if _, err := k.Wrap(t.Context(), uuid1, make([]byte, MaxContent+1)); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("too long: %v", err)
	}
	for _, uuid := range []string{"", "a b", "a\x00", "é", strings.Repeat("x", MaxUUID+1)} {
		if _, err := k.Wrap(t.Context(), uuid, nil); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("uuid %q: %v", uuid, err)
		}
		if _, err := k.Unwrap(t.Context(), uuid, a); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("uuid %q: %v", uuid, err)
		}
	}
}

// TestSwappedAndDamaged: an envelope opens only with its own uuid and without a change. Other envelopes do not
// disturb the token.
func TestSwappedAndDamaged(t *testing.T) {
	k, _, m := newKeeper(t)
	content := []byte("a deposit of thirty-one bytes..")
	w := wrap(t, k, uuid1, content)
	m.Reset()
	if got, err := k.Unwrap(t.Context(), uuid2, w); !claviger.Is(err, claviger.Invalid) || got != nil {
		t.Errorf("under another's uuid: %q, %v", got, err)
	}
	e, err := ParseEnvelope(w)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(w) { // each length that is too short
		if n%7 != 0 && n != len(w)-1 {
			continue // the token opens each complete data key, so try only some of these lengths
		}
		if _, err := k.Unwrap(t.Context(), uuid1, w[:n]); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := k.Unwrap(t.Context(), uuid1, append(bytes.Clone(w), 0)); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("with a byte more: %v", err)
	}
	if _, err := k.Unwrap(t.Context(), uuid1, make([]byte, MaxWrapped+1)); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("oversized: %v", err)
	}
	for i := range w { // each byte of the header, and some of the others
		if i > len(e.header)-len(e.DataKey)+8 && i%37 != 0 {
			continue
		}
		bad := bytes.Clone(w)
		bad[i] ^= 1
		if _, err := k.Unwrap(t.Context(), uuid1, bad); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	// A mix of two envelopes of one uuid.
	other, err := ParseEnvelope(wrap(t, k, uuid1, content))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Unwrap(t.Context(), uuid1, append(bytes.Clone(e.header), other.sealed...)); !claviger.Is(err,
		claviger.Invalid) {
		t.Errorf("the header of one envelope with the deposit of another: %v", err)
	}
	if m.Count("Initialize") != 0 || m.Count("Login") != 0 {
		t.Errorf("damaged envelopes disturbed the token: %v", m.Counts())
	}
	if got, err := k.Unwrap(t.Context(), uuid1, w); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestKeyGone: deposits of a destroyed key are unreadable, those of another key are readable, and
// no new deposit is wrapped.
func TestKeyGone(t *testing.T) {
	k, tok, _ := newKeeper(t)
	ctx := t.Context()
	old := wrap(t, k, uuid1, []byte("old"))
	if err := tok.GeneratePair(ctx, []byte{0xab, 2}, "deposits", 2048); err != nil {
		t.Fatal(err)
	}
	if err := tok.GeneratePair(ctx, []byte{0xab, 3}, "of another program", 2048); err != nil {
		t.Fatal(err)
	}
	second := NewKeeper(tok, []byte{0xab, 2}, "deposits")
	if got, err := second.Unwrap(ctx, uuid1, old); err != nil || string(got) != "old" {
		t.Errorf("after a change of pairs: %q, %v", got, err)
	}
	foreignKeeper := NewKeeper(tok, []byte{0xab, 3}, "of another program")
	foreign := wrap(t, foreignKeeper, uuid1, []byte("theirs"))
	if _, err := k.Unwrap(ctx, uuid1, foreign); !errors.Is(err, ErrKeyGone) {
		t.Errorf("a key of another label was used: %v", err)
	}
	if _, err := NewKeeper(tok, []byte{0xab, 3}, "deposits").Wrap(ctx, uuid1, nil); !errors.Is(err, ErrKeyGone) {
		t.Errorf("wrapped by a key of another label: %v", err)
	}

	if err := tok.DestroyPair(ctx, []byte{0xab, 1}, "deposits"); err != nil {
		t.Fatal(err)
	}
	_, err := second.Unwrap(ctx, uuid1, old)
	var e *claviger.Error
	if !claviger.Is(err, claviger.Invalid) || !errors.Is(err, ErrKeyGone) || !errors.As(err, &e) || e.Key != "ab01" {
		t.Errorf("unwrapping a deposit of a destroyed key: %v", err)
	}
	// The keeper still has the public key, and must not use it.
	if w, err := k.Wrap(ctx, uuid1, []byte("lost")); !claviger.Is(err, claviger.Invalid) ||
		!errors.Is(err, ErrKeyGone) || w != nil {
		t.Errorf("wrapped by a destroyed key: %v", err)
	}
	fresh := wrap(t, second, uuid2, []byte("new"))
	if got, err := k.Unwrap(ctx, uuid2, fresh); err != nil || string(got) != "new" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestTokenComesBack: the token is lost while many callers use it, and later serves them again.
func TestTokenComesBack(t *testing.T) {
	k, _, m := newKeeper(t)
	w := wrap(t, k, uuid1, []byte("x"))
	for _, code := range []uint{p11.CKR_DEVICE_REMOVED, p11.CKR_SESSION_HANDLE_INVALID} {
		m.Fail("DecryptInit", 1, p11.Error(code))
		var wg sync.WaitGroup
		for i := range 6 {
			uuid := fmt.Sprint("uuid-", i)
			wg.Go(func() {
				for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
					fresh, err := k.Wrap(t.Context(), uuid, []byte("y"))
					if err == nil {
						_, err = k.Unwrap(t.Context(), uuid, fresh)
					}
					if err == nil {
						_, err = k.Unwrap(t.Context(), uuid1, w)
					}
					if err == nil {
						return
					}
					if !claviger.Is(err, claviger.Unavailable) || time.Now().After(deadline) {
						t.Errorf("%v: %v", p11.Error(code), err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	release := m.Hang("Decrypt")
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := k.Unwrap(ctx, uuid1, w); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("an HSM that hangs: %v", err)
	}
}

// FuzzParseEnvelope: a parsed envelope has all parts, within their limits, and no other bytes.
func FuzzParseEnvelope(f *testing.F) {
	if list, err := os.ReadDir(filepath.Join("testdata", "fuzz", f.Name())); err != nil || len(list) < 5 {
		f.Fatalf("%d seeds, %v", len(list), err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEnvelope(data)
		if err != nil {
			if e != nil || !claviger.Is(err, claviger.Invalid) {
				t.Fatalf("%+v, %v", e, err)
			}
			return
		}
		if len(e.KeyID) == 0 || len(e.KeyID) > maxKeyID || len(e.DataKey) < 256 || len(e.DataKey) > 512 ||
			len(e.sealed) < gcmOverhead || !e.Hash.Available() {
			t.Fatalf("%+v", e)
		}
		if all := append(bytes.Clone(e.header), e.sealed...); !bytes.Equal(all, data) ||
			!bytes.Contains(e.header, e.DataKey) || !bytes.Contains(e.header, e.KeyID) {
			t.Fatal("the parts are not the whole")
		}
		if _, err := e.open(make([]byte, dataKeySize), uuid1); err == nil {
			t.Fatal("opened by a key of zeros")
		}
	})
}
