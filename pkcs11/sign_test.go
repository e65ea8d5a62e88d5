package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
)

// signer makes a pair that signs.
func signer(t testing.TB, tok *Token, n byte, kind SigningKind) (PrivateKeyName, SigningKey) {
	t.Helper()
	name := PrivateKeyName{fmt.Sprintf("signer-%d", n), []byte{7, n}}
	if err := tok.GenerateSigningPair(t.Context(), name, kind); err != nil {
		t.Fatal(err)
	}
	k, err := tok.SigningKey(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return name, k
}

// pss are the options with which TLS requests a signature by RSA-PSS.
func pss(h crypto.Hash) crypto.SignerOpts {
	return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
}

// verifies reports whether a signature is right, by Go's own code.
func verifies(public crypto.PublicKey, opts crypto.SignerOpts, digest, signature []byte) bool {
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(public, digest, signature)
	case *rsa.PublicKey:
		if o, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(public, o.Hash, digest, signature, o) == nil
		}
		return rsa.VerifyPKCS1v15(public, opts.HashFunc(), digest, signature) == nil
	}
	return false
}

// digestOf returns a digest by that hash.
func digestOf(h crypto.Hash) []byte {
	sum := h.New()
	sum.Write([]byte("claviger"))
	return sum.Sum(nil)
}

// TestSign: a token signs in each way that TLS requests, with keys of each kind. One signature is one call.
func TestSign(t *testing.T) {
	tok, m := open(t)
	hashes := []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512}
	for i, kind := range []SigningKind{P256, P384, RSA2048} {
		name, k := signer(t, tok, byte(i), kind)
		if k.Public == nil || !k.Sensitive || k.Extractable || !k.Sign || k.Label != name.Label ||
			!bytes.Equal(k.ID, name.ID) {
			t.Fatalf("%s: made %+v", kind, k)
		}
		if want := map[SigningKind]string{P256: "ECDSA on P-256", P384: "ECDSA on P-384",
			RSA2048: "RSA of 2048 bits"}[kind]; k.Kind != want {
			t.Errorf("%s: kind %q, want %q", kind, k.Kind, want)
		}
		var ways []crypto.SignerOpts
		for _, h := range hashes {
			if ways = append(ways, h); kind == RSA2048 {
				ways = append(ways, pss(h))
			}
		}
		for _, way := range ways {
			digest := digestOf(way.HashFunc())
			m.Reset()
			signature, err := tok.Sign(t.Context(), name, k.Public, digest, way)
			if err != nil || !verifies(k.Public, way, digest, signature) {
				t.Errorf("%s, %v: %x, %v", kind, way, signature, err)
			}
			if c := m.Counts(); len(c) != 1 || c["Sign"] != 1 {
				t.Errorf("%s, %v: the calls %v", kind, way, c)
			}
		}
	}
}

// TestRawPSS: a token without CKM_RSA_PKCS_PSS signs by CKM_RSA_X_509. It is asked for the first once only.
func TestRawPSS(t *testing.T) {
	tok, m := open(t)
	name, k := signer(t, tok, 1, RSA2048)
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA512} {
		m.Reset()
		if h == crypto.SHA256 {
			m.Fail("Sign", 1, p11.Error(p11.CKR_MECHANISM_INVALID))
		}
		signature, err := tok.Sign(t.Context(), name, k.Public, digestOf(h), pss(h))
		if err != nil || !verifies(k.Public, pss(h), digestOf(h), signature) {
			t.Errorf("%v: %x, %v", h, signature, err)
		}
	}
	if n := m.Count("Sign"); n != 1 || !tok.refusesPSS.Load() {
		t.Errorf("%d calls, %t", n, tok.refusesPSS.Load())
	}
}

// TestEncodePSS: the encoding is that of Go's own code, for keys whose length is no multiple of 8 bits, too.
func TestEncodePSS(t *testing.T) {
	for _, bits := range []int{2048, 2049, 2055} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		way, err := rawPSSWay(&key.PublicKey, crypto.SHA256, digestOf(crypto.SHA256))
		if err != nil {
			t.Fatal(err)
		}
		signature := new(big.Int).Exp(new(big.Int).SetBytes(way.data), key.D, key.N).FillBytes(make([]byte, key.Size()))
		if _, err := way.finish(signature); err != nil {
			t.Errorf("%d bits: %v", bits, err)
		}
		signature[3] ^= 1
		if _, err := way.finish(signature); !errors.Is(err, ErrWrongSignature) {
			t.Errorf("%d bits: a damaged signature: %v", bits, err)
		}
	}
	key := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 512), E: 65537}
	if _, err := rawPSSWay(key, crypto.SHA512, digestOf(crypto.SHA512)); err == nil ||
		!strings.Contains(err.Error(), "too short") {
		t.Error(err)
	}
}

// TestSignRefused: what cannot be signed is refused without a call.
func TestSignRefused(t *testing.T) {
	tok, m := open(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	digest := digestOf(crypto.SHA256)
	for name, c := range map[string]struct {
		public crypto.PublicKey
		digest []byte
		opts   crypto.SignerOpts
		want   string
	}{
		"hash":   {&key.PublicKey, digest[:20], crypto.SHA1, "it must be by SHA-256, SHA-384 or SHA-512"},
		"length": {&key.PublicKey, digest[:20], crypto.SHA256, "a digest of 20 bytes by SHA-256"},
		"salt": {&key.PublicKey, digest, &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256},
			"a salt of the length 20"},
		"key": {"text", digest, crypto.SHA256, "a key of type string cannot sign"},
	} {
		_, err := tok.Sign(t.Context(), PrivateKeyName{Label: "x"}, c.public, c.digest, c.opts)
		if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c := m.Counts(); len(c) > 0 {
		t.Errorf("calls %v", c)
	}
}

// TestSigningKeyNames: exactly one private key must have the label and the id that are given.
func TestSigningKeyNames(t *testing.T) {
	tok, _ := open(t)
	ctx := t.Context()
	name, k := signer(t, tok, 1, P256)
	other, _ := signer(t, tok, 2, P256)
	sign := func(n PrivateKeyName) error {
		_, err := tok.Sign(ctx, n, k.Public, digestOf(crypto.SHA256), crypto.SHA256)
		return err
	}
	for _, n := range []PrivateKeyName{name, {Label: name.Label}, {ID: name.ID}} {
		if err := sign(n); err != nil {
			t.Errorf("%v: %v", n, err)
		}
	}
	for _, n := range []PrivateKeyName{{Label: "none"}, {Label: name.Label, ID: other.ID}} {
		if err := sign(n); !claviger.Is(err, claviger.KeyNotFound) ||
			!strings.Contains(err.Error(), "holds no private key with "+n.String()) {
			t.Errorf("%v: %v", n, err)
		}
	}
	if err := sign(other); !errors.Is(err, ErrWrongSignature) || !claviger.Is(err, claviger.Invalid) {
		t.Errorf("another key: %v", err)
	}
	for _, n := range []PrivateKeyName{{name.Label, []byte{8}}, {"new", name.ID}} {
		if err := tok.GenerateSigningPair(ctx, n, P256); !claviger.Is(err, claviger.KeyExists) {
			t.Errorf("%v is made again: %v", n, err)
		}
	}
	err := tok.do(ctx, "test", func(_ *login, s p11.SessionHandle) error {
		_, err := tok.makeSigningPair(s, PrivateKeyName{name.Label, []byte{9}}, P256)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tok.SigningKey(ctx, PrivateKeyName{Label: name.Label}); !claviger.Is(err, claviger.Invalid) ||
		!strings.Contains(err.Error(), "2 private keys on the token") {
		t.Errorf("two keys: %v", err)
	}
	if err := sign(name); err != nil {
		t.Errorf("by label and id: %v", err)
	}
}

// TestSignRenumbered: the handle of a key has become that of another object. Sign searches the key again.
func TestSignRenumbered(t *testing.T) {
	tok, m := open(t)
	name, k := signer(t, tok, 1, RSA2048)
	other, _ := signer(t, tok, 2, RSA2048)
	ec, _ := signer(t, tok, 3, P256)
	for what, handle := range map[string]p11.ObjectHandle{"another key": handleOf(t, tok, other.match()),
		"a key of another type": handleOf(t, tok, ec.match()), "no object": 987654} {
		if _, err := tok.Sign(t.Context(), name, k.Public, digestOf(crypto.SHA256), crypto.SHA256); err != nil {
			t.Fatal(err)
		}
		tok.login.handles.Store(name.cached(), handle)
		signature, err := tok.Sign(t.Context(), name, k.Public, digestOf(crypto.SHA256), crypto.SHA256)
		if err != nil || !verifies(k.Public, crypto.SHA256, digestOf(crypto.SHA256), signature) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := m.Count("Initialize") + m.Count("Login"); n > 0 {
		t.Errorf("%d starts and logins", n)
	}
}

// TestSignFaults: Sign repairs sessions, logins and the library, as other operations do. A flipped bit is noticed.
func TestSignFaults(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(m *faultmodule.Module)
		want error
	}{
		"lost login":    {func(m *faultmodule.Module) { m.LogOut() }, nil},
		"lost sessions": {func(m *faultmodule.Module) { m.CloseSessions() }, nil},
		"stale handles": {func(m *faultmodule.Module) { m.StaleHandles() }, nil},
		"a failed call": {func(m *faultmodule.Module) {
			m.Order(faultmodule.Sign, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_ERROR})
		}, nil},
		"an ended library": {func(m *faultmodule.Module) {
			m.Order(faultmodule.Sign, faultmodule.Order{Action: faultmodule.Fail,
				Value: p11.CKR_CRYPTOKI_NOT_INITIALIZED})
		}, nil},
		"a flipped bit": {func(m *faultmodule.Module) {
			m.Order(faultmodule.Sign, faultmodule.Order{Action: faultmodule.Flip})
		}, nil},
		"flipped bits": {func(m *faultmodule.Module) {
			m.Order(faultmodule.Sign, faultmodule.Order{Action: faultmodule.Flip, Times: faultmodule.Always})
		}, ErrWrongSignature},
	} {
		t.Run(name, func(t *testing.T) {
			hsm := softhsmtest.New(t)
			cfg := config(hsm)
			m := faultmodule.New(t, hsm.Module)
			cfg.Module, cfg.SignOnly = m.Path, true
			tok := openBare(t, cfg)
			name, k := signer(t, tok, 1, P256)
			c.do(m)
			_, err := tok.Sign(t.Context(), name, k.Public, digestOf(crypto.SHA256), crypto.SHA256)
			if !errors.Is(err, c.want) {
				t.Error(err)
			}
			m.Heal()
		})
	}
}

// TestSignHung: Sign returns when its context ends, and further signatures are made while one hangs.
func TestSignHung(t *testing.T) {
	tok, m := openInProcess(t)
	name, k := signer(t, tok, 1, P256)
	sign := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		_, err := tok.Sign(ctx, name, k.Public, digestOf(crypto.SHA256), crypto.SHA256)
		return err
	}
	release := m.Hang("Sign")
	defer release()
	if err := sign(50 * time.Millisecond); !claviger.Is(err, claviger.Unavailable) ||
		!errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	release()
	if err := sign(20 * time.Second); err != nil {
		t.Error(err)
	}
}

// TestSignOnly: a token that signs only is opened without AES.
func TestSignOnly(t *testing.T) {
	cfg := config(softhsmtest.New(t))
	m := new(Meter)
	cfg.Wrap, cfg.SignOnly = m.Wrap, true
	tok := openBare(t, cfg)
	if n := m.Count("GenerateKey") + m.Count("Encrypt"); n > 0 || tok.Info().Mechanism != "" {
		t.Errorf("%d calls for AES, mechanism %q", n, tok.Info().Mechanism)
	}
	name, k := signer(t, tok, 1, P256)
	m.Fail("Sign", 3, p11.Error(p11.CKR_GENERAL_ERROR))
	if _, err := tok.Sign(t.Context(), name, k.Public, digestOf(crypto.SHA256), crypto.SHA256); err == nil {
		t.Log("signed after repairs")
	}
	if n := m.Count("GenerateKey"); n > 0 {
		t.Errorf("%d keys were made to try the token", n)
	}
}
