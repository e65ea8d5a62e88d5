package pkcs11

import (
	"bytes"
	"crypto"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/secret"
)

// handleOf returns the handle of the one object that matches.
func handleOf(t *testing.T, tok *Token, match []*p11.Attribute) (found p11.ObjectHandle) {
	t.Helper()
	err := tok.do(t.Context(), "test", func(_ *login, s p11.SessionHandle) error {
		list, err := tok.search(s, match)
		if len(list) == 1 {
			found = list[0]
		}
		return err
	})
	if err != nil || found == 0 {
		t.Fatalf("handle %d, %v", found, err)
	}
	return found
}

// TestPairRenumbered: the handle of a private key has become that of another object. DecryptOAEP searches the key again
// before it says anything about the data.
func TestPairRenumbered(t *testing.T) {
	tok, m := open(t)
	ctx := t.Context()
	id, label, k := storePair(t, tok)
	sealed := seal(t, k.Public, secret.Bytes("x"))
	damaged := bytes.Clone(sealed)
	damaged[100] ^= 1
	otherID, _, _ := pair(t, tok, 1)
	generate(t, tok, 1, 256)
	if err := tok.PutData(ctx, Data{Application: "a", Label: "data", Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]p11.ObjectHandle{
		"another pair": handleOf(t, tok, privateMatch(otherID, nil)), "a public key": handleOf(t, tok, publicMatch(id)),
		"an AES key": handleOf(t, tok, allKeys()), "data": handleOf(t, tok, dataTemplate("a", nil)),
		"no object": 987654,
	} {
		closed := m.Count("CloseSession")
		exchange := func() { tok.login.handles.Store(pairName{string(id), label}, other) }
		exchange()
		if plain, err := tok.DecryptOAEP(ctx, id, label, crypto.SHA1, sealed); err != nil || string(plain) != "x" {
			t.Errorf("%s: decrypted to %d bytes, %v", name, len(plain), err)
		}
		if name == "another pair" {
			exchange()
			m.Fail("Decrypt", 1, p11.Error(p11.CKR_ENCRYPTED_DATA_INVALID)) // as other libraries than SoftHSM answer
			plain, err := tok.DecryptOAEP(ctx, id, label, crypto.SHA1, sealed)
			if err != nil || string(plain) != "x" {
				t.Errorf("another code: decrypted to %d bytes, %v", len(plain), err)
			}
		}
		exchange()
		if _, err := tok.DecryptOAEP(ctx, id, label, crypto.SHA1, damaged); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("%s, and damaged data: %v", name, err)
		}
		exchange()
		if _, err := tok.ProbeOAEP(ctx, id, label); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := m.Count("CloseSession") - closed; n > 0 && name == "no object" {
			t.Errorf("%s: %d sessions were closed, as after a fault of the session", name, n)
		}
	}
	if n := m.Count("Initialize") + m.Count("Login"); n > 0 {
		t.Errorf("%d starts and logins", n)
	}
}

// otherHandles finds another object than the one that is searched.
type otherHandles struct {
	Boundary
	other p11.ObjectHandle
}

func (l otherHandles) FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error) {
	found, more, err := l.Boundary.FindObjects(s, limit)
	if len(found) > 0 {
		found = []p11.ObjectHandle{l.other}
	}
	return found, more, err
}

// TestPairRenumberedAlways: if each handle is that of another object, DecryptOAEP says nothing about the data.
func TestPairRenumberedAlways(t *testing.T) {
	tok, _ := open(t)
	ctx := t.Context()
	id, label, k := storePair(t, tok)
	otherID, _, _ := pair(t, tok, 1)
	tok.b = otherHandles{tok.b, handleOf(t, tok, privateMatch(otherID, nil))}
	_, err := tok.DecryptOAEP(ctx, id, label, crypto.SHA1, seal(t, k.Public, secret.Bytes("x")))
	if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "change all the time") {
		t.Error(err)
	}
}
