package pkcs11

import (
	"bytes"
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/softhsm/softhsmtest"
)

// sparseToken is a token that does not know all attributes, or reports wrong values for them.
type sparseToken struct {
	Boundary
	unknown uint
	code    uint // the result for the unknown attribute; 0: CKR_ATTRIBUTE_TYPE_INVALID
	changed uint // a boolean attribute that is reported with the opposite value
}

func (l sparseToken) GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle,
	ask []*p11.Attribute) ([]*p11.Attribute, error) {
	for _, a := range ask {
		if a.Type == l.unknown {
			return nil, p11.Error(cmp.Or(l.code, p11.CKR_ATTRIBUTE_TYPE_INVALID))
		}
	}
	list, err := l.Boundary.GetAttributeValue(s, o, ask)
	for _, a := range list {
		if a.Type == l.changed {
			a.Value[0] ^= 1
		}
	}
	return list, err
}

// TestAttributes: a new key is kept if the token reports that it is protected. Two of the attributes only repeat the
// others; the token need not know them.
func TestAttributes(t *testing.T) {
	const nothing = ^uint(0)
	made := softhsmtest.New(t)
	for _, c := range []struct {
		name string
		lib  sparseToken
		kept bool
	}{
		{"as asked for", sparseToken{unknown: nothing, changed: nothing}, true},
		{"never extractable unknown", sparseToken{unknown: p11.CKA_NEVER_EXTRACTABLE, changed: nothing}, true},
		{"local unknown", sparseToken{unknown: p11.CKA_LOCAL, changed: nothing}, true},
		{"sensitive unknown", sparseToken{unknown: p11.CKA_SENSITIVE, changed: nothing}, false},
		{"extractable unknown", sparseToken{unknown: p11.CKA_EXTRACTABLE, changed: nothing}, false},
		{"length unknown", sparseToken{unknown: p11.CKA_VALUE_LEN, changed: nothing}, false},
		{"not sensitive", sparseToken{unknown: nothing, changed: p11.CKA_SENSITIVE}, false},
		{"extractable", sparseToken{unknown: nothing, changed: p11.CKA_EXTRACTABLE}, false},
		{"was extractable", sparseToken{unknown: nothing, changed: p11.CKA_NEVER_EXTRACTABLE}, false},
		{"imported", sparseToken{unknown: nothing, changed: p11.CKA_LOCAL}, false},
		{"not to encrypt", sparseToken{unknown: nothing, changed: p11.CKA_ENCRYPT}, false},
		{"to decrypt", sparseToken{unknown: nothing, changed: p11.CKA_DECRYPT}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := config(made)
			conf.Wrap = func(b Boundary) Boundary { c.lib.Boundary = b; return c.lib }
			tok, err := Open(t.Context(), conf)
			if err != nil {
				t.Fatal(err)
			}
			err = tok.GenerateKey(t.Context(), []byte{1}, "k@01", 256)
			if (err == nil) != c.kept ||
				err != nil && !strings.Contains(err.Error(), "is not what was asked for; it was destroyed again") {
				t.Errorf("made: %v", err)
			}
			list, err := tok.List(t.Context())
			if err != nil || (len(list) == 1) != c.kept {
				t.Errorf("%d keys on the token, %v", len(list), err)
			}
			if err := tok.Destroy(t.Context(), []byte{1}, "k@01"); err != nil {
				t.Error(err)
			}
			if err := tok.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUseOfANewKeyUnread: a key is destroyed again if the token refused one of its attributes, and the value of that
// attribute cannot be read.
func TestUseOfANewKeyUnread(t *testing.T) {
	m := new(Meter)
	tries, armed := 0, false
	c := config(softhsmtest.New(t))
	c.Wrap = func(b Boundary) Boundary {
		return refuser{Boundary: m.Wrap(b), refuses: []uint{p11.CKA_DERIVE}, with: p11.CKR_ATTRIBUTE_TYPE_INVALID,
			tries: &tries, armed: &armed}
	}
	tok := openBare(t, c)
	armed = true
	failNth(m, "GetAttributeValue", 2, p11.Error(p11.CKR_DATA_INVALID)) // the first reads the other attributes
	if err := tok.GenerateKey(t.Context(), []byte{1}, "k@1", 256); !errors.Is(err, p11.Error(p11.CKR_DATA_INVALID)) {
		t.Error(err)
	}
	if list, err := tok.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%d keys stay, %v", len(list), err)
	}
}

// refuser is a token that refuses attributes in templates, as AWS CloudHSM refuses CKA_MODIFIABLE.
type refuser struct {
	Boundary
	refuses []uint
	with    uint // the error of a refusal
	forces  uint // an attribute that is set to true if the template does not have it
	times   int  // the first tries alone refuse; 0: all
	tries   *int
	armed   *bool
}

func (c refuser) refuse(templates ...[]*p11.Attribute) error {
	if !*c.armed {
		return nil
	}
	if *c.tries++; c.times > 0 && *c.tries > c.times {
		return nil
	}
	for _, a := range slices.Concat(templates...) {
		if slices.Contains(c.refuses, a.Type) {
			return p11.Error(c.with)
		}
	}
	return nil
}

func (c refuser) GenerateKey(s p11.SessionHandle, m []*p11.Mechanism, a []*p11.Attribute) (p11.ObjectHandle, error) {
	if err := c.refuse(a); err != nil {
		return 0, err
	}
	if c.forces != 0 && !slices.ContainsFunc(a, func(a *p11.Attribute) bool { return a.Type == c.forces }) {
		a = append(slices.Clone(a), p11.NewAttribute(c.forces, true))
	}
	return c.Boundary.GenerateKey(s, m, a)
}

func (c refuser) GenerateKeyPair(s p11.SessionHandle, m []*p11.Mechanism,
	public, private []*p11.Attribute) (p11.ObjectHandle, p11.ObjectHandle, error) {
	if err := c.refuse(public, private); err != nil {
		return 0, 0, err
	}
	return c.Boundary.GenerateKeyPair(s, m, public, private)
}

// TestRefusedAttributes: a token refuses attributes that a key can do without. Keys and pairs are made without them,
// with one warning and one failed try. If the token refuses an attribute that protects the key, no key is made.
func TestRefusedAttributes(t *testing.T) {
	made := softhsmtest.New(t)
	for _, c := range []struct {
		name   string
		lib    refuser
		kept   bool
		tries  int    // number of tries for three keys
		warned string // part of the warning; "" if there must be none
	}{
		{"nothing", refuser{}, true, 3, ""},
		{"modifiable", refuser{refuses: []uint{p11.CKA_MODIFIABLE}, with: p11.CKR_ATTRIBUTE_VALUE_INVALID}, true, 5,
			"CKA_MODIFIABLE"},
		{"derive", refuser{refuses: []uint{p11.CKA_DERIVE}, with: p11.CKR_ATTRIBUTE_TYPE_INVALID}, true,
			10, "CKA_DERIVE"},
		{"modifiable and derive", refuser{refuses: []uint{p11.CKA_MODIFIABLE, p11.CKA_DERIVE},
			with: p11.CKR_TEMPLATE_INCONSISTENT}, true, 15, "CKA_MODIFIABLE, CKA_DERIVE"},
		{"sensitive", refuser{refuses: []uint{p11.CKA_SENSITIVE}, with: p11.CKR_ATTRIBUTE_READ_ONLY}, false, 42, ""},
		{"another fault", refuser{refuses: []uint{p11.CKA_MODIFIABLE}, with: p11.CKR_FUNCTION_NOT_SUPPORTED}, false, 3,
			""},
		{"unwrap, and sets it", refuser{refuses: []uint{p11.CKA_UNWRAP}, with: p11.CKR_ATTRIBUTE_TYPE_INVALID,
			forces: p11.CKA_UNWRAP}, false, 21, "CKA_UNWRAP"},
		{"once", refuser{refuses: []uint{p11.CKA_DERIVE}, with: p11.CKR_TEMPLATE_INCONSISTENT, times: 1}, true, 4, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log bytes.Buffer
			tries, armed := 0, false
			conf := config(made)
			conf.Profile = Generic // its template has all attributes
			conf.Log = slog.New(slog.NewTextHandler(&log, nil))
			c.lib.tries, c.lib.armed = &tries, &armed
			conf.Wrap = func(b Boundary) Boundary { c.lib.Boundary = b; return c.lib }
			tok, err := Open(t.Context(), conf)
			if err != nil {
				t.Fatal(err)
			}
			defer tok.Close()
			armed = true // the key with which Open tries the token has no such attributes
			for i := range 3 {
				id := []byte{byte(i), 7}
				if err := tok.GenerateKey(t.Context(), id, "k@0", 256); (err == nil) != c.kept {
					t.Errorf("key %d: %v", i, err)
				}
				if k, err := tok.Find(t.Context(), id); err != nil || (k != nil) != c.kept ||
					k != nil && (!k.Sensitive || k.Extractable || k.Decrypt) {
					t.Errorf("key %d: %+v, %v", i, k, err)
				}
				if err := tok.Destroy(t.Context(), id, "k@0"); err != nil {
					t.Error(err)
				}
			}
			if tries != c.tries {
				t.Errorf("%d tries of three keys, want %d", tries, c.tries)
			}
			if logged := strings.Contains(log.String(), "refuses attributes"); logged != (c.warned != "") ||
				!strings.Contains(log.String(), c.warned) {
				t.Errorf("the log: %s", log.String())
			}
			if c.name != "modifiable" && c.name != "sensitive" {
				return
			}
			if err := tok.GeneratePair(t.Context(), []byte{9}, "pair", MinPairBits); (err == nil) != c.kept {
				t.Errorf("pair: %v", err)
			}
			if p, err := tok.FindPair(t.Context(), []byte{9}); err != nil || (p != nil) != c.kept {
				t.Errorf("pair: %+v, %v", p, err)
			}
			if err := tok.DestroyPair(t.Context(), []byte{9}, "pair"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRefusedForAWhile: attributes that the token refused are sent again after a key without them was not as
// requested.
func TestRefusedForAWhile(t *testing.T) {
	c := config(softhsmtest.New(t))
	lib := refuser{refuses: []uint{p11.CKA_UNWRAP}, with: p11.CKR_ATTRIBUTE_TYPE_INVALID, forces: p11.CKA_UNWRAP,
		tries: new(int), armed: new(bool), times: 5}
	c.Wrap = func(b Boundary) Boundary { lib.Boundary = b; return lib }
	tok := openBare(t, c)
	*lib.armed = true
	if err := tok.GenerateKey(t.Context(), []byte{1}, "k@1", 256); err == nil {
		t.Fatal("a key that can unwrap was kept")
	}
	eventually(t, func() error { return tok.GenerateKey(t.Context(), []byte{1}, "k@1", 256) })
}
