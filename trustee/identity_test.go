package trustee

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
)

// pair returns two identities. They are made once, because RSA keys take time.
var pair = sync.OnceValues(func() (*Identity, *Identity) {
	a, err := NewIdentity("keytrustee", "client", "kms@a.example.com", minKeyBits, time.Now().Add(-time.Hour))
	if err != nil {
		panic(err)
	}
	b, err := NewIdentity("keytrustee", "client", "kms@b.example.com", minKeyBits, time.Now().Add(-time.Hour))
	if err != nil {
		panic(err)
	}
	return a, b
})

// TestIdentity: an identity has its own fingerprint, and does not print its key.
func TestIdentity(t *testing.T) {
	a, b := pair()
	if f := a.Fingerprint(); len(f) != fingerprintLen || f != strings.ToUpper(f) || f == b.Fingerprint() ||
		a.String() != "2048R/"+f {
		t.Errorf("%s, %s", f, a)
	}
	if text := fmt.Sprintf("%v %+v", a, *a); len(text) > 200 { // no room for a key
		t.Errorf("an identity prints %d bytes", len(text))
	}
	var public bytes.Buffer
	if err := a.Public(&public); err != nil {
		t.Fatal(err)
	}
	p, err := ReadParty(public.Bytes())
	if err != nil || p.String() != a.String() {
		t.Fatalf("%v, %v", p, err)
	}
	if _, err := NewIdentity("x", "", "y@z", 1024, time.Now()); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("1024 bits: %v", err)
	}
	if _, err := NewIdentity("x (y", "", "<", minKeyBits, time.Now()); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("an invalid user id: %v", err)
	}
}

// TestReadPartyRefuses: only exactly one public key is read as a party.
func TestReadPartyRefuses(t *testing.T) {
	a, b := pair()
	var one, two, private bytes.Buffer
	for _, err := range []error{a.Public(&one), a.Public(&two), b.Public(&two), a.secret(&private)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for what, c := range map[string]struct {
		data []byte
		want string
	}{
		"nothing":       {nil, "found 0 public keys"},
		"text":          {[]byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n"), "not an OpenPGP public key"},
		"cut off":       {one.Bytes()[:one.Len()/2], ""},
		"two":           {two.Bytes(), "found 2 public keys"},
		"no user id":    {opaque(tagPublicKey, madeUpBody(t)), "not an OpenPGP public key"},
		"a private key": {private.Bytes(), "a private key"},
		"too long":      {make([]byte, maxPublicKey+1), "too long"},
	} {
		if p, err := ReadParty(c.data); !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", what, p, err)
		}
	}
}

// TestSeal: only the identity that sealed a text can open it.
func TestSeal(t *testing.T) {
	a, b := pair()
	now := time.Now()
	secret := bytes.Repeat([]byte{7}, 32)
	sealed, err := a.Seal(secret, now)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, secret) {
		t.Fatal("the secret is not encrypted")
	}
	if got, err := a.Open(sealed, now); err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("%x, %v", got, err)
	}
	if got, err := b.Open(sealed, now); !claviger.Is(err, claviger.Invalid) || got != nil {
		t.Errorf("another identity opens it: %x, %v", got, err)
	}
	for _, n := range []int{0, 1, len(sealed) / 2, len(sealed) - 1} {
		if got, err := a.Open(sealed[:n], now); err == nil || got != nil {
			t.Errorf("cut off at %d: %x", n, got)
		}
	}
	for i := range sealed {
		altered := bytes.Clone(sealed)
		altered[i] ^= 0x40
		if got, err := a.Open(altered, now); err == nil && !bytes.Equal(got, secret) {
			t.Fatalf("altered at %d it gives %x", i, got)
		}
	}
	if got, err := a.Open(append(bytes.Clone(sealed), sealed...), now); err == nil && !bytes.Equal(got, secret) {
		t.Errorf("twice: %x", got)
	}
}

// TestSign: a signature is valid for its text, its signer and its time only.
func TestSign(t *testing.T) {
	a, b := pair()
	now := time.Now()
	text := []byte("a request")
	signature, err := a.sign(text, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.verify(text, signature, now); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"another text":    a.verify([]byte("b request"), signature, now),
		"another's":       b.verify(text, signature, now),
		"none":            a.verify(text, nil, now),
		"cut off":         a.verify(text, signature[:len(signature)-1], now),
		"of a later year": a.verify(text, signature, now.Add(-48*time.Hour)),
	} {
		if err == nil {
			t.Errorf("%s is good", what)
		}
	}
}
