package pkcs11

import (
	"bytes"
	"crypto"
	"errors"
	"math/big"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/secret"
)

// pairReader is a library whose private RSA keys are read with changes.
type pairReader struct {
	Boundary
	change func(a *p11.Attribute) // of an attribute of a private key
	hides  bool                   // whether the private keys do not have the public exponent
}

// GetAttributeValue changes attributes of private keys only. The function publicExponent, which reads public keys, is
// the only one that requests two attributes.
func (r *pairReader) GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle,
	ask []*p11.Attribute) ([]*p11.Attribute, error) {
	if len(ask) == 2 {
		return r.Boundary.GetAttributeValue(s, o, ask)
	}
	for _, a := range ask {
		if a.Type == p11.CKA_PUBLIC_EXPONENT && r.hides {
			return nil, p11.Error(p11.CKR_ATTRIBUTE_TYPE_INVALID)
		}
	}
	list, err := r.Boundary.GetAttributeValue(s, o, ask)
	for _, a := range list {
		if r.change != nil {
			r.change(a)
		}
	}
	return list, err
}

func openPairReader(t *testing.T) (*Token, *Meter, *pairReader) {
	t.Helper()
	m, r := new(Meter), new(pairReader)
	c := config(softhsmtest.New(t))
	c.Wrap = func(b Boundary) Boundary { r.Boundary = m.Wrap(b); return r }
	tok := openBare(t, c)
	return tok, m, r
}

// TestPublicExponent: a token need not store the public exponent with the private key. Then it is read from the public
// key of the same modulus.
func TestPublicExponent(t *testing.T) {
	tok, m, r := openPairReader(t)
	r.hides = true
	ctx, id, label := t.Context(), []byte{9}, "pair"
	importPair(t, tok, id, label)
	k, err := tok.FindPair(ctx, id)
	if err != nil || k.Public.E != 65537 {
		t.Fatalf("%+v, %v", k, err)
	}
	for _, call := range []string{"FindObjectsInit", "GetAttributeValue"} {
		m.Reset()
		if _, err := tok.FindPair(ctx, id); err != nil {
			t.Fatal(err)
		}
		failNth(m, call, m.Count(call), p11.Error(p11.CKR_DATA_INVALID)) // the last one reads the public key
		if k, err := tok.FindPair(ctx, id); !errors.Is(err, p11.Error(p11.CKR_DATA_INVALID)) || k != nil {
			t.Errorf("%s fails: %v, %v", call, k, err)
		}
	}
	other := []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PUBLIC_KEY), p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_RSA),
		p11.NewAttribute(p11.CKA_TOKEN, true), p11.NewAttribute(p11.CKA_ID, id),
		p11.NewAttribute(p11.CKA_MODULUS, bytes.Repeat([]byte{0xf1}, 256)),
		p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, []byte{3}),
	}
	destroyPublic := func(s p11.SessionHandle) error {
		found, err := tok.findPublic(s, id)
		for _, o := range found {
			err = errors.Join(err, tok.b.DestroyObject(s, o))
		}
		return err
	}
	err = tok.do(ctx, "test", func(_ *login, s p11.SessionHandle) error {
		_, err := tok.b.CreateObject(s, other)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if k, err := tok.FindPair(ctx, id); err != nil || k.Public.E != 65537 {
		t.Errorf("beside a public key of another modulus: %+v, %v", k, err)
	}
	err = tok.do(ctx, "test", func(_ *login, s p11.SessionHandle) error {
		err := destroyPublic(s)
		_, failed := tok.b.CreateObject(s, other)
		return errors.Join(err, failed)
	})
	if err != nil {
		t.Fatal(err)
	}
	if k, err := tok.FindPair(ctx, id); k != nil || err == nil ||
		!strings.Contains(err.Error(), "does not show the public half of the RSA key with CKA_ID 09") {
		t.Errorf("without the pair's public key: %+v, %v", k, err)
	}
}

// TestPairOfTheWrongSize: a pair is used only if its modulus and its exponent are of a size that this package makes.
func TestPairOfTheWrongSize(t *testing.T) {
	tok, _, r := openPairReader(t)
	id := []byte{9}
	importPair(t, tok, id, "pair")
	for _, c := range []struct {
		name     string
		modulus  int    // bits; 0: as it is
		exponent []byte // nil: as it is
		ok       bool
	}{
		{"as it is", 0, nil, true}, {"short modulus", 2047, nil, false}, {"long modulus", 4097, nil, false},
		{"the longest modulus", 4096, nil, true}, {"the smallest exponent", 0, []byte{3}, true},
		{"exponent 1", 0, []byte{1}, false}, {"long exponent", 0, []byte{0x80, 0, 0, 1}, false},
		{"the longest exponent", 0, []byte{0x7f, 0xff, 0xff, 0xff}, true},
		{"exponent of more than 64 bits", 0, append([]byte{1}, make([]byte, 8)...), false},
	} {
		r.change = func(a *p11.Attribute) {
			switch {
			case a.Type == p11.CKA_MODULUS && c.modulus > 0:
				a.Value = new(big.Int).Lsh(big.NewInt(1), uint(c.modulus-1)).Bytes() // #nosec G115 -- not negative
			case a.Type == p11.CKA_PUBLIC_EXPONENT && c.exponent != nil:
				a.Value = c.exponent
			}
		}
		if k, err := tok.FindPair(t.Context(), id); (err == nil) != c.ok || (k != nil) != c.ok ||
			err != nil && !strings.Contains(err.Error(), "must have 2048 to 4096 bits and an exponent from 3 to") {
			t.Errorf("%s: %+v, %v", c.name, k, err)
		}
	}
}

// TestPairAttributes: a new pair is kept if the token reports that it is protected, and both its keys are destroyed
// otherwise. Keys of another id are not destroyed, because they may be the keys of another pair. An attribute that the
// token does not report counts as unsafe, except CKA_NEVER_EXTRACTABLE and CKA_LOCAL.
func TestPairAttributes(t *testing.T) {
	tok, m, r := openPairReader(t)
	ctx, id, label := t.Context(), []byte{9}, "pair"
	no, yes := []byte{0}, []byte{1}
	importPair(t, tok, id, label)
	for _, c := range []struct {
		name  string
		of    uint
		value []byte
		kept  bool
	}{
		{"as asked for", p11.CKA_ID, id, true}, {"another id", p11.CKA_ID, []byte{8}, false},
		{"not sensitive", p11.CKA_SENSITIVE, no, false}, {"sensitive not reported", p11.CKA_SENSITIVE, nil, false},
		{"extractable", p11.CKA_EXTRACTABLE, yes, false},
		{"extractable not reported", p11.CKA_EXTRACTABLE, nil, false},
		{"was extractable", p11.CKA_NEVER_EXTRACTABLE, no, false},
		{"never extractable not reported", p11.CKA_NEVER_EXTRACTABLE, nil, true},
		{"imported", p11.CKA_LOCAL, no, false}, {"local not reported", p11.CKA_LOCAL, nil, true},
		{"not to decrypt", p11.CKA_DECRYPT, no, false}, {"to unwrap", p11.CKA_UNWRAP, yes, false},
		{"to sign", p11.CKA_SIGN, yes, false}, {"another length", p11.CKA_MODULUS, make([]byte, 0), false},
	} {
		r.change = func(a *p11.Attribute) {
			switch a.Type { // the pair was imported; C_GenerateKeyPair is slow
			case p11.CKA_LOCAL, p11.CKA_NEVER_EXTRACTABLE, p11.CKA_SENSITIVE, p11.CKA_DECRYPT:
				a.Value = yes
			case p11.CKA_UNWRAP, p11.CKA_SIGN, p11.CKA_EXTRACTABLE:
				a.Value = no
			}
			if a.Type == c.of {
				a.Value = c.value
			}
		}
		m.Reset()
		m.Fail("DestroyObject", 2, p11.Error(p11.CKR_ACTION_PROHIBITED)) // so that the pair serves for all cases
		err := tok.do(ctx, "test", func(_ *login, s p11.SessionHandle) error {
			found, err := tok.findPrivate(s, id, nil)
			if err != nil || len(found) != 1 {
				t.Errorf("%d keys, %v", len(found), err)
				return err
			}
			return tok.checkNewPair(s, found[0], id, label, MinPairBits)
		})
		want := 2
		if c.kept || c.name == "another id" {
			want = 0
		}
		if (err == nil) != c.kept || m.Count("DestroyObject") != want {
			t.Errorf("%s: %v, %d keys destroyed", c.name, err, m.Count("DestroyObject"))
		}
		if want > 0 && !errors.Is(err, p11.Error(p11.CKR_ACTION_PROHIBITED)) {
			t.Errorf("%s: the error of C_DestroyObject is missing: %v", c.name, err)
		}
		m.Heal()
	}
}

// TestPairWithoutAnID: a pair needs an id, because its two keys are found by it.
func TestPairWithoutAnID(t *testing.T) {
	tok, m := open(t)
	if err := tok.GeneratePair(t.Context(), nil, "pair", MinPairBits); !claviger.Is(err, claviger.Internal) ||
		m.Count("GenerateKeyPair") != 0 {
		t.Errorf("%v, %d pairs", err, m.Count("GenerateKeyPair"))
	}
}

// TestPairMadeDespiteError: C_GenerateKeyPair made a pair and then returned that the device had failed. The second try
// uses that pair if it has the right label and attributes. It destroys both keys of a pair with other attributes. An
// error of the second try is returned.
func TestPairMadeDespiteError(t *testing.T) {
	id := []byte{9}
	for _, c := range []struct {
		name, label string
		signs       bool // whether the pair may sign
		fails       int  // the search that fails, from 1; 0: none
		want        func(error) bool
	}{
		{"as ordered", "pair", false, 0, func(err error) bool { return err == nil }},
		{"another label", "other", false, 0, func(err error) bool { return claviger.Is(err, claviger.KeyExists) }},
		{"the second search fails", "pair", false, 4, func(err error) bool {
			return errors.Is(err, p11.Error(p11.CKR_DATA_INVALID))
		}},
		{"signs", "pair", true, 0, func(err error) bool {
			return err != nil && strings.Contains(err.Error(), "it was destroyed again")
		}},
		{"signs, and its public key is not found", "pair", true, 5, func(err error) bool {
			return errors.Is(err, p11.Error(p11.CKR_DATA_INVALID)) &&
				strings.Contains(err.Error(), "it was destroyed again")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tok, m := open(t)
			boundary := tok.b
			tok.b = &pairMisreporter{boundary, func() { importPair(t, tok, id, c.label) }, c.signs}
			if c.fails > 0 {
				failNth(m, "FindObjectsInit", c.fails, p11.Error(p11.CKR_DATA_INVALID))
			}
			if err := tok.GeneratePair(t.Context(), id, "pair", MinPairBits); !c.want(err) {
				t.Errorf("made: %v", err)
			}
			if !c.signs || c.fails > 0 {
				return
			}
			tok.b = importer{boundary}
			if err := tok.GeneratePair(t.Context(), id, "pair", MinPairBits); err != nil {
				t.Errorf("a half of the pair was not destroyed: %v", err)
			}
		})
	}
}

// TestHalfAPair: the library fails when it has made the public key of a pair. The next try makes the whole pair. A
// public key that was there before is never destroyed.
func TestHalfAPair(t *testing.T) {
	tok, m := open(t)
	id := []byte{9}
	boundary := tok.b
	half := &halfPair{Boundary: boundary}
	tok.b = half
	if err := tok.GeneratePair(t.Context(), id, "pair", MinPairBits); err != nil || half.made != 2 {
		t.Errorf("%v after %d tries", err, half.made)
	}
	tok.b = boundary
	if found, err := tok.FindPair(t.Context(), id); err != nil || found == nil {
		t.Errorf("%v, %v", found, err)
	}
	half = &halfPair{Boundary: boundary, always: true}
	tok.b = half
	other := []byte{10}
	if err := tok.GeneratePair(t.Context(), other, "pair", MinPairBits); err == nil {
		t.Error("no error")
	}
	m.Reset()
	if err := tok.GeneratePair(t.Context(), other, "pair", MinPairBits); !claviger.Is(err, claviger.KeyExists) ||
		m.Count("DestroyObject") > 0 {
		t.Errorf("%v, %d objects were destroyed", err, m.Count("DestroyObject"))
	}
}

// TestHalfAPairStays: if the public key of half a pair cannot be destroyed, no other pair is made beside it.
func TestHalfAPairStays(t *testing.T) {
	tok, m := open(t)
	half := &halfPair{Boundary: tok.b}
	tok.b = half
	failNth(m, "DestroyObject", 2, p11.Error(p11.CKR_ACTION_PROHIBITED)) // halfPair makes the first call
	err := tok.GeneratePair(t.Context(), []byte{9}, "pair", MinPairBits)
	if !errors.Is(err, p11.Error(p11.CKR_ACTION_PROHIBITED)) || half.made != 1 {
		t.Errorf("%v after %d tries", err, half.made)
	}
}

// halfPair is a library that makes only the public key of the first pair, or of each, and then fails.
type halfPair struct {
	Boundary
	made   int
	always bool
}

func (l *halfPair) GenerateKeyPair(s p11.SessionHandle, m []*p11.Mechanism, public,
	private []*p11.Attribute) (p11.ObjectHandle, p11.ObjectHandle, error) {
	publicKey, privateKey, err := l.Boundary.GenerateKeyPair(s, m, public, private)
	if l.made++; err != nil || l.made > 1 && !l.always {
		return publicKey, privateKey, err
	}
	if err := l.DestroyObject(s, privateKey); err != nil {
		return 0, 0, err
	}
	return 0, 0, p11.Error(p11.CKR_DEVICE_ERROR)
}

// pairMisreporter stores an imported pair at the first C_GenerateKeyPair, reports it as made on the token, and then
// returns that the device has failed.
type pairMisreporter struct {
	Boundary
	make  func()
	signs bool
}

func (l *pairMisreporter) GenerateKeyPair(p11.SessionHandle, []*p11.Mechanism, []*p11.Attribute,
	[]*p11.Attribute) (p11.ObjectHandle, p11.ObjectHandle, error) {
	l.make()
	return 0, 0, p11.Error(p11.CKR_DEVICE_ERROR)
}

func (l *pairMisreporter) GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle,
	ask []*p11.Attribute) ([]*p11.Attribute, error) {
	list, err := l.Boundary.GetAttributeValue(s, o, ask)
	for _, a := range list {
		switch {
		case a.Type == p11.CKA_LOCAL, a.Type == p11.CKA_NEVER_EXTRACTABLE, a.Type == p11.CKA_SIGN && l.signs:
			a.Value = []byte{1}
		case a.Type == p11.CKA_UNWRAP, a.Type == p11.CKA_SIGN:
			a.Value = []byte{0}
		}
	}
	return list, err
}

// TestOAEPFaults: ProbeOAEP returns a hash only if the token decrypts with it what was encrypted. DecryptOAEP tells an
// error of the data from an error of the token.
func TestOAEPFaults(t *testing.T) {
	tok, m := open(t)
	ctx := t.Context()
	id, label, k := storePair(t, tok)
	refused := p11.Error(p11.CKR_MECHANISM_INVALID)
	m.Fail("DecryptInit", 2, refused)
	if hash, err := tok.ProbeOAEP(ctx, id, label); !errors.Is(err, refused) || hash != 0 ||
		!strings.Contains(err.Error(), `decrypts nothing by CKM_RSA_PKCS_OAEP with the key "pair"`) {
		t.Errorf("refused: %v, %v", hash, err)
	}
	m.Reset()
	m.Fail("DecryptInit", 1, p11.Error(p11.CKR_USER_NOT_LOGGED_IN))
	if _, err := tok.ProbeOAEP(ctx, id, label); err != nil || m.Count("Login") != 0 {
		t.Errorf("another session says that it is logged out: %v, %d logins", err, m.Count("Login"))
	}
	m.Reset()
	m.Fail("Decrypt", 100, p11.Error(p11.CKR_GENERAL_ERROR))
	if _, err := tok.ProbeOAEP(ctx, id, label); !errors.Is(err, p11.Error(p11.CKR_GENERAL_ERROR)) ||
		m.Count("Initialize") != 0 {
		t.Errorf("a broken pair: %v, initialised %d times", err, m.Count("Initialize"))
	}
	m.Heal()
	m.Reset()
	for _, n := range []int{MinPairBits/8 - 1, MaxPairBits/8 + 1} {
		if _, err := tok.DecryptOAEP(ctx, id, label, crypto.SHA1, make([]byte, n)); !claviger.Is(err,
			claviger.Invalid) || len(m.Counts()) > 0 {
			t.Errorf("%d bytes: %v, the token got %v", n, err, m.Counts())
		}
	}
	old := tok.b
	tok.b = wrongPlain{old}
	if hash, err := tok.ProbeOAEP(ctx, id, label); err == nil ||
		!strings.Contains(err.Error(), "decrypted a test message to other bytes") {
		t.Errorf("a wrong result: %v, %v", hash, err)
	}
	tok.b = old
	sealed := seal(t, k.Public, secret.Bytes("x"))
	if _, err := tok.DecryptOAEP(ctx, id, label, crypto.SHA512, sealed); !claviger.Is(err, claviger.Invalid) ||
		!strings.Contains(err.Error(), "RSA-OAEP with SHA-512 is not known here") {
		t.Errorf("an unknown hash: %v", err)
	}
	for _, code := range []uint{p11.CKR_ENCRYPTED_DATA_INVALID, p11.CKR_ENCRYPTED_DATA_LEN_RANGE, p11.CKR_DATA_INVALID,
		p11.CKR_DATA_LEN_RANGE, p11.CKR_ACTION_PROHIBITED} {
		m.Fail("Decrypt", 1, p11.Error(code))
		m.Reset()
		_, err := tok.DecryptOAEP(ctx, id, label, crypto.SHA1, sealed)
		if want := code != p11.CKR_ACTION_PROHIBITED; claviger.Is(err, claviger.Invalid) != want || err == nil ||
			m.Count("DecryptInit") != 1 {
			t.Errorf("%v: %v, %d decryptions", p11.Error(code), err, m.Count("DecryptInit"))
		}
		tok.retire(tok.login) // C_DecryptInit stays active
	}
}

// wrongPlain is a library that decrypts to wrong bytes.
type wrongPlain struct{ Boundary }

func (w wrongPlain) Decrypt(s p11.SessionHandle, data []byte) ([]byte, error) {
	out, err := w.Boundary.Decrypt(s, data)
	if err == nil {
		out[0] ^= 1
	}
	return out, err
}

// TestStalePairHandle: a pair whose handle has become invalid is searched again, without a login.
func TestStalePairHandle(t *testing.T) {
	made := softhsmtest.New(t)
	fault := faultmodule.New(t, made.Module)
	made.Module = fault.Path
	tok, _ := openAs(t, config(made))
	ctx, id, label := t.Context(), []byte{9}, "pair"
	if err := tok.GeneratePair(ctx, id, label, MinPairBits); err != nil {
		t.Fatal(err)
	}
	k, err := tok.FindPair(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	sealed := seal(t, k.Public, secret.Bytes("x"))
	logins := fault.Calls(faultmodule.Login)
	for range 2 {
		if plain, err := tok.DecryptOAEP(ctx, id, label, crypto.SHA1, sealed); err != nil || string(plain) != "x" {
			t.Errorf("decrypted to %d bytes, %v", len(plain), err)
		}
		fault.StaleHandles()
		if _, err := tok.ProbeOAEP(ctx, id, label); err != nil {
			t.Error(err)
		}
		fault.StaleHandles()
	}
	if n := fault.Calls(faultmodule.Login) - logins; n != 0 {
		t.Errorf("%d logins", n)
	}
}
