package pkcs11

import (
	"errors"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
)

// otherObject shows the label of another object for some reads.
type otherObject struct {
	Boundary
	reads *int // how many reads show it
	twice bool
}

func (o otherObject) GetAttributeValue(s p11.SessionHandle, h p11.ObjectHandle,
	ask []*p11.Attribute) ([]*p11.Attribute, error) {
	list, err := o.Boundary.GetAttributeValue(s, h, ask)
	for _, a := range list {
		if a.Type == p11.CKA_LABEL && *o.reads > 0 {
			*o.reads--
			a.Value = []byte("other")
		}
	}
	return list, err
}

// GenerateKey makes the key twice, as two processes may, if reads show another object.
func (o otherObject) GenerateKey(s p11.SessionHandle, m []*p11.Mechanism, a []*p11.Attribute) (p11.ObjectHandle,
	error) {
	if o.twice && *o.reads > 0 {
		if _, err := o.Boundary.GenerateKey(s, m, a); err != nil {
			return 0, err
		}
	}
	return o.Boundary.GenerateKey(s, m, a)
}

// openOther opens a token that shows the label of another object for the next reads, and has a key. If twice is true,
// it then makes each new key twice.
func openOther(t *testing.T, twice bool) (tok *Token, m *Meter, reads *int, id []byte, label string) {
	t.Helper()
	m, reads = new(Meter), new(int)
	c := config(softhsmtest.New(t))
	c.Wrap = func(b Boundary) Boundary { return otherObject{m.Wrap(b), reads, twice} }
	tok = openBare(t, c)
	id, label = generate(t, tok, 1, 256)
	m.Reset()
	return tok, m, reads, id, label
}

// TestNewKeyIsSearched: if the handle of a new key is that of another object, the key is searched. It is an error if
// the search fails.
func TestNewKeyIsSearched(t *testing.T) {
	tok, m, reads, _, _ := openOther(t, false)
	*reads = 1
	if err := tok.GenerateKey(t.Context(), []byte{2}, "found", 256); err != nil {
		t.Error(err)
	}
	*reads = 1
	failNth(m, "FindObjectsInit", 2, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED)) // the first search is before the key
	err := tok.GenerateKey(t.Context(), []byte{3}, "unknown", 256)
	if !errors.Is(err, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED)) {
		t.Errorf("the search fails: %v", err)
	}
}

// TestNewKeyMadeTwice: if the search for a new key finds two, none of them counts as made.
func TestNewKeyMadeTwice(t *testing.T) {
	tok, _, reads, _, _ := openOther(t, true)
	*reads = 1
	err := tok.GenerateKey(t.Context(), []byte{2}, "two", 256)
	if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "shows 2 keys") {
		t.Error(err)
	}
}
