package pkcs11

import (
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/softhsm/softhsmtest"
)

// laconic is a token that does not know all attributes, or has its own mind
// about them.
type laconic struct {
	Boundary
	unknown uint
	changed uint // a boolean attribute whose value is turned round
}

func (l laconic) GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle, ask []*p11.Attribute) ([]*p11.Attribute, error) {
	for _, a := range ask {
		if a.Type == l.unknown {
			return nil, p11.Error(p11.CKR_ATTRIBUTE_TYPE_INVALID)
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

// TestAttributes: a new key is kept if the token says that it is guarded. Two of
// the attributes say no more than the others do, and need not be known.
func TestAttributes(t *testing.T) {
	const nothing = ^uint(0)
	made := softhsmtest.New(t)
	for _, c := range []struct {
		name string
		lib  laconic
		kept bool
	}{
		{"as asked for", laconic{unknown: nothing, changed: nothing}, true},
		{"never extractable unknown", laconic{unknown: p11.CKA_NEVER_EXTRACTABLE, changed: nothing}, true},
		{"local unknown", laconic{unknown: p11.CKA_LOCAL, changed: nothing}, true},
		{"sensitive unknown", laconic{unknown: p11.CKA_SENSITIVE, changed: nothing}, false},
		{"extractable unknown", laconic{unknown: p11.CKA_EXTRACTABLE, changed: nothing}, false},
		{"length unknown", laconic{unknown: p11.CKA_VALUE_LEN, changed: nothing}, false},
		{"not sensitive", laconic{unknown: nothing, changed: p11.CKA_SENSITIVE}, false},
		{"extractable", laconic{unknown: nothing, changed: p11.CKA_EXTRACTABLE}, false},
		{"was extractable", laconic{unknown: nothing, changed: p11.CKA_NEVER_EXTRACTABLE}, false},
		{"imported", laconic{unknown: nothing, changed: p11.CKA_LOCAL}, false},
		{"not to encrypt", laconic{unknown: nothing, changed: p11.CKA_ENCRYPT}, false},
		{"to decrypt", laconic{unknown: nothing, changed: p11.CKA_DECRYPT}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := config(made)
			conf.Wrap = func(b Boundary) Boundary { c.lib.Boundary = b; return c.lib }
			tok, err := Open(t.Context(), conf)
			if err != nil {
				t.Fatal(err)
			}
			err = tok.GenerateKey(t.Context(), []byte{1}, "k@01", 256)
			if (err == nil) != c.kept || err != nil && !strings.Contains(err.Error(), "is not what was asked for; it was destroyed again") {
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
