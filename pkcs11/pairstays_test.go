package pkcs11

import (
	"crypto"
	"sync/atomic"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/secret"
)

// TestPairWasSeen: a token has held pairs if this process has made, found or used one. So a pair that is not found
// later does not count as lost before the library was started again.
func TestPairWasSeen(t *testing.T) {
	id := []byte{9}
	for how, see := range map[string]func(*testing.T, *Token) error{
		"made": func(t *testing.T, tok *Token) error {
			return tok.GeneratePair(t.Context(), id, "pair", MinPairBits)
		},
		"found": func(t *testing.T, tok *Token) error {
			importPair(t, tok, id, "pair")
			tok.pairs.seen.Store(false) // as if another process had made it
			_, err := tok.FindPair(t.Context(), id)
			return err
		},
		"used": func(t *testing.T, tok *Token) error {
			importPair(t, tok, id, "pair")
			k, err := tok.FindPair(t.Context(), id)
			if err != nil {
				return err
			}
			tok.pairs.seen.Store(false)
			_, err = tok.DecryptOAEP(t.Context(), id, "pair", crypto.SHA1, seal(t, k.Public, secret.Bytes("x")))
			return err
		},
	} {
		t.Run(how, func(t *testing.T) {
			tok, stale := openStale(t)
			if err := see(t, tok); err != nil {
				t.Fatal(err)
			}
			stale.Store(true)
			if k, err := tok.FindPair(t.Context(), id); k == nil || err != nil {
				t.Errorf("the pair counts as lost: %v", err)
			}
		})
	}
}

// publicOnly is a library that destroys public keys. If refusal is not nil, the library refuses to destroy private keys
// with this error. If refusal is nil, searches are stale after each destroyed public key.
type publicOnly struct {
	staleSearches
	refusal error
}

func (l publicOnly) DestroyObject(s p11.SessionHandle, h p11.ObjectHandle) error {
	class, err := l.GetAttributeValue(s, h, []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, nil)})
	if err != nil {
		return err
	}
	switch class[0].Value[0] {
	case p11.CKO_PRIVATE_KEY:
		if l.refusal != nil {
			return l.refusal
		}
	case p11.CKO_PUBLIC_KEY:
		l.stale.Store(l.refusal == nil)
	}
	return l.Boundary.DestroyObject(s, h)
}

// TestPrivateKeyStays: if the public key of a pair is destroyed, and the private key is not, DestroyPair returns an
// error. A library that does not show the private key any more is started again.
func TestPrivateKeyStays(t *testing.T) {
	id := []byte{9}
	for name, refusal := range map[string]error{"refused": p11.Error(p11.CKR_ACTION_PROHIBITED), "stale": nil} {
		t.Run(name, func(t *testing.T) {
			stale := new(atomic.Bool)
			c := config(softhsmtest.New(t))
			c.Wrap = func(b Boundary) Boundary {
				return publicOnly{staleSearches{b, stale}, refusal}
			}
			tok := openBare(t, c)
			importPair(t, tok, id, "pair")
			err := tok.DestroyPair(t.Context(), id, "pair")
			stale.Store(false)
			if stays := hasPrivateKey(t, tok, id); (err == nil) != (refusal == nil) || stays != (refusal != nil) {
				t.Errorf("%v; the private key stays: %t", err, stays)
			}
		})
	}
}

// TestPairNotSearched: a pair does not count as destroyed if it could not be searched.
func TestPairNotSearched(t *testing.T) {
	tok, m := open(t)
	id := []byte{9}
	importPair(t, tok, id, "pair")
	m.Fail("FindObjectsInit", 1, p11.Error(p11.CKR_FUNCTION_FAILED))
	err := tok.DestroyPair(t.Context(), id, "pair")
	m.Heal()
	if stays := hasPrivateKey(t, tok, id); (err != nil) != stays {
		t.Errorf("%v; the private key stays: %t", err, stays)
	}
}

// hasPrivateKey reports whether the token has an RSA private key with that id.
func hasPrivateKey(t *testing.T, tok *Token, id []byte) (has bool) {
	t.Helper()
	err := tok.do(t.Context(), "test", func(_ *login, s p11.SessionHandle) error {
		found, err := tok.findPrivate(s, id, nil)
		has = len(found) > 0
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return has
}

// unlockedSearches counts the searches that are made without the lock of the module's objects.
type unlockedSearches struct {
	Boundary
	module *atomic.Pointer[module]
	n      *atomic.Int32
}

func (l unlockedSearches) FindObjectsInit(s p11.SessionHandle, a []*p11.Attribute) error {
	if m := l.module.Load(); m != nil && m.objects.TryLock() {
		m.objects.Unlock()
		l.n.Add(1)
	}
	return l.Boundary.FindObjectsInit(s, a)
}

// TestSearchesAreLocked: with SoftHSM, each search has the lock of the objects, because a search beside C_GenerateKey
// finds objects that do not work.
func TestSearchesAreLocked(t *testing.T) {
	var m atomic.Pointer[module]
	var n atomic.Int32
	c := config(softhsmtest.New(t))
	c.Wrap = func(b Boundary) Boundary { return unlockedSearches{b, &m, &n} }
	tok := openBare(t, c)
	m.Store(tok.module)
	id, pair := []byte{1, 2, 3, 1}, []byte{9}
	importPair(t, tok, pair, "pair")
	k, err := tok.FindPair(t.Context(), pair)
	if err != nil {
		t.Fatal(err)
	}
	sealed := seal(t, k.Public, secret.Bytes("x"))
	generate(t, tok, 1, 256)
	tok.retire(tok.login) // so that no handle is known
	for what, call := range map[string]func() error{
		"a use": func() error { return encryptWith(t, tok, 1) },
		"a list": func() error {
			_, err := tok.List(t.Context())
			return err
		},
		"a use of a pair": func() error {
			_, err := tok.DecryptOAEP(t.Context(), pair, "pair", crypto.SHA1, sealed)
			return err
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := encryptWith(t, tok, 2); !claviger.Is(err, claviger.KeyNotFound) {
		t.Errorf("a use of a key that is missing: %v", err)
	}
	if err := tok.DestroyPair(t.Context(), pair, "pair"); err != nil {
		t.Error(err)
	}
	if err := tok.GeneratePair(t.Context(), pair, "pair", MinPairBits); err != nil {
		t.Error(err)
	}
	if err := tok.Destroy(t.Context(), id, "k@1"); err != nil {
		t.Error(err)
	}
	if n.Load() > 0 {
		t.Errorf("%d searches without the lock", n.Load())
	}
}

// TestKeyWasUsed: a token has held keys if this process has used one that another process made.
func TestKeyWasUsed(t *testing.T) {
	tok, stale := openStale(t)
	generate(t, tok, 1, 256)
	tok.aesKeys.seen.Store(false) // as if another process had made it
	if err := encryptWith(t, tok, 1); err != nil {
		t.Fatal(err)
	}
	tok.retire(tok.login) // so that no handle is known
	stale.Store(true)
	if err := encryptWith(t, tok, 1); err != nil {
		t.Errorf("the key counts as lost: %v", err)
	}
}
