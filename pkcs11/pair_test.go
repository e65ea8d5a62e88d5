package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/secret"
)

// pair makes a pair of 2048 bits; SoftHSM needs seconds for a larger pair.
func pair(t *testing.T, tok *Token, n byte) (id []byte, label string, public *rsa.PublicKey) {
	t.Helper()
	id, label = []byte{9, n}, fmt.Sprintf("pair-%d", n)
	if err := tok.GeneratePair(t.Context(), id, label, MinPairBits); err != nil {
		t.Fatal(err)
	}
	k, err := tok.FindPair(t.Context(), id)
	if err != nil || k == nil {
		t.Fatalf("%v, %v", k, err)
	}
	return id, label, k.Public
}

func seal(t *testing.T, public *rsa.PublicKey, plain secret.Bytes) []byte {
	t.Helper()
	sealed, err := EncryptOAEP(public, crypto.SHA1, plain)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// TestPair: a generated RSA pair can be found, has the attributes of a private key that can only decrypt, and decrypts.
func TestPair(t *testing.T) {
	tok, m := open(t)
	ctx := t.Context()
	id, label, public := pair(t, tok, 1)
	k, err := tok.FindPair(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(k.ID, id) || k.Label != label || k.Public.N.BitLen() != 2048 || k.Public.E != 65537 ||
		!k.Sensitive || k.Extractable || !k.NeverExtractable || !k.Local ||
		!k.Decrypt || k.Unwrap || k.Sign {
		t.Errorf("made %+v", *k)
	}
	if err := tok.GeneratePair(ctx, id, "another", 2048); !claviger.Is(err, claviger.KeyExists) {
		t.Errorf("made twice: %v", err)
	}
	if k, err := tok.FindPair(ctx, []byte{9, 9}); k != nil || err != nil {
		t.Errorf("found %v, %v", k, err)
	}
	for _, bits := range []int{0, 1024, 2047, 2560, 5120} {
		if err := tok.GeneratePair(ctx, []byte{8}, "k", bits); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("%d bits: %v", bits, err)
		}
	}

	hash, err := tok.ProbeOAEP(ctx, id, label)
	if err != nil || hash != crypto.SHA1 && hash != crypto.SHA256 {
		t.Fatalf("%v, %v", hash, err)
	}
	want := secret.Bytes("0123456789abcdef0123456789abcdef")
	sealed, err := EncryptOAEP(public, hash, want)
	if err != nil {
		t.Fatal(err)
	}
	m.Reset()
	got, err := tok.DecryptOAEP(ctx, id, label, hash, sealed)
	if err != nil || !got.Equal(want) {
		t.Fatalf("%x, %v", []byte(got), err)
	}
	if c := m.Counts(); len(c) != 2 || c["DecryptInit"] != 1 || c["Decrypt"] != 1 {
		t.Errorf("one decryption made the calls %v", c)
	}

	if err := tok.DestroyPair(ctx, id, "another label"); err != nil {
		t.Error(err)
	}
	if _, err := tok.DecryptOAEP(ctx, id, label, hash, sealed); err != nil {
		t.Errorf("a pair was destroyed by another's label: %v", err)
	}
	for range 2 { // the second time there is no pair, and that is no error
		if err := tok.DestroyPair(ctx, id, label); err != nil {
			t.Error(err)
		}
	}
	if k, err := tok.FindPair(ctx, id); k != nil || err != nil {
		t.Errorf("destroyed: %v, %v", k, err)
	}
	if _, err := tok.DecryptOAEP(ctx, id, label, hash, sealed); !claviger.Is(err, claviger.KeyNotFound) {
		t.Errorf("decrypts with a destroyed key: %v", err)
	}
	if err := tok.GeneratePair(ctx, id, label, 2048); err != nil {
		t.Errorf("the public half is still there? %v", err)
	}
}

// TestPairBesideKey: an AES key and a pair may have the same id and label.
func TestPairBesideKey(t *testing.T) {
	tok, _ := open(t)
	id, label, public := pair(t, tok, 1)
	if err := tok.GenerateKey(t.Context(), id, label, 256); err != nil {
		t.Fatal(err)
	}
	sealed := seal(t, public, secret.Bytes("x"))
	for range 2 { // the second time with a handle from the cache
		if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); err != nil {
			t.Error(err)
		}
		if _, err := tok.DecryptOAEP(t.Context(), id, label, crypto.SHA1, sealed); err != nil {
			t.Error(err)
		}
	}
	if list, err := tok.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("AES keys: %v, %v", list, err)
	}
}

// TestTwoPairs: if two pairs match, none is used.
func TestTwoPairs(t *testing.T) {
	tok, _ := open(t)
	id, label, public := pair(t, tok, 1)
	sealed := seal(t, public, secret.Bytes("x"))
	if err := tok.GeneratePair(t.Context(), id, label, MinPairBits); !claviger.Is(err, claviger.KeyExists) {
		t.Errorf("the pair is made again: %v", err)
	}
	err := tok.do(t.Context(), "test", func(_ *login, s p11.SessionHandle) error {
		_, _, err := tok.b.GenerateKeyPair(s, []*p11.Mechanism{p11.NewMechanism(p11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)},
			publicTemplate(id, label, 2048), privateTemplate(id, label))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if k, err := tok.FindPair(t.Context(), id); err == nil {
		t.Errorf("found %v of two", k)
	}
	if _, err := tok.DecryptOAEP(t.Context(), id, label, crypto.SHA1, sealed); err == nil ||
		!strings.Contains(err.Error(), "2 RSA private keys on the token have CKA_ID") {
		t.Errorf("decrypts with one of two: %v", err)
	}
	if err := tok.DestroyPair(t.Context(), id, label); err == nil {
		t.Error("destroys one of two")
	}
}

// TestDamagedSeal: data that was not made for the key is the caller's fault. The token does not count as lost, whatever
// error it returns.
func TestDamagedSeal(t *testing.T) {
	tok, m := open(t)
	id, label, public := pair(t, tok, 1)
	sealed := seal(t, public, secret.Bytes("x"))
	damaged := bytes.Clone(sealed)
	damaged[100] ^= 1
	for _, c := range []struct {
		name string
		data []byte
	}{{"damaged", damaged}, {"zero", make([]byte, 256)}, {"above the modulus", bytes.Repeat([]byte{0xff}, 256)},
		{"of a longer key", make([]byte, 512)},
		{"cut", sealed[:255]}, {"empty", nil}, {"huge", make([]byte, 1<<20)}} {
		if _, err := tok.DecryptOAEP(t.Context(), id, label, crypto.SHA1, c.data); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if c := m.Counts(); c["Initialize"] != 0 || c["Login"] != 0 {
		t.Errorf("the library was initialised again: %v", c)
	}
	if _, err := tok.DecryptOAEP(t.Context(), id, label, crypto.SHA1, sealed); err != nil {
		t.Error(err)
	}
	// A session that does not work returns the same error.
	m.Fail("Decrypt", 1, p11.Error(p11.CKR_GENERAL_ERROR)) // C_DecryptInit stays active, so that the check fails too
	m.Reset()
	if got, err := tok.DecryptOAEP(t.Context(), id, label, crypto.SHA1, sealed); err != nil || string(got) != "x" {
		t.Errorf("after the session broke: %s, %v", []byte(got), err)
	}
	if m.Count("Initialize")+m.Count("Login") != 0 || m.Count("CloseSession") != 1 {
		t.Errorf("the session broke, and the calls are %v", m.Counts())
	}
}

// TestPairRecovery: the token is lost while many callers use it, and comes back.
func TestPairRecovery(t *testing.T) {
	tok, m := open(t)
	id, label, public := pair(t, tok, 1)
	for _, code := range []uint{p11.CKR_DEVICE_REMOVED, p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_USER_NOT_LOGGED_IN,
		p11.CKR_KEY_HANDLE_INVALID} {
		m.Fail("DecryptInit", 1, p11.Error(code))
		var wg sync.WaitGroup
		for i := range 8 {
			want := secret.Bytes{byte(i), 1}
			sealed := seal(t, public, want)
			wg.Go(func() {
				for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
					got, err := tok.DecryptOAEP(t.Context(), id, label, crypto.SHA1, sealed)
					if err == nil && got.Equal(want) {
						return
					}
					if err == nil || !claviger.Is(err, claviger.Unavailable) || time.Now().After(deadline) {
						t.Errorf("%v: %v, %v", p11.Error(code), []byte(got), err)
						return
					}
				}
			})
		}
		wg.Wait()
		m.Heal()
	}
	release := m.Hang("Decrypt")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := tok.DecryptOAEP(ctx, id, label, crypto.SHA1, seal(t, public, secret.Bytes("x"))); !claviger.Is(err,
		claviger.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an HSM that hangs: %v", err)
	}
	release()
}
