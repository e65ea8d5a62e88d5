package pkcs11

import (
	"errors"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// TestUnusable: a key is unusable if the token refuses it each time and takes other keys. One refusal, or a token that
// refuses all keys or is lost, proves nothing.
func TestUnusable(t *testing.T) {
	tok, m := openBroken(t, p11.CKR_ACTION_PROHIBITED, nil, "k@1")
	unusable := func(key byte) (bool, error) {
		return tok.Unusable(t.Context(), []byte{1, 2, 3, key}, []string{"", "k@1", "k@2"}[key])
	}
	m.Reset()
	if is, err := unusable(1); !is || err != nil {
		t.Errorf("a key that is refused each time: %t, %v", is, err)
	}
	if n := m.Count("OpenSession"); n < refusals {
		t.Errorf("%d sessions were opened for %d refusals", n, refusals)
	}
	for _, c := range []struct {
		name string
		fail []error // of C_Encrypt; in a round the first call is with a new key
		ok   bool    // Unusable has no error
	}{
		{"a key that works", nil, true},
		{"a key that is refused once", []error{nil, p11.Error(p11.CKR_ACTION_PROHIBITED)}, true},
		{"all keys are refused", []error{p11.Error(p11.CKR_ACTION_PROHIBITED)}, false},
	} {
		for _, err := range c.fail {
			m.Fail("Encrypt", 1, err)
		}
		is, err := unusable(2)
		if is || (err == nil) != c.ok || err != nil && !claviger.Is(err, claviger.Unavailable) ||
			errors.Is(err, ErrRefused) {
			t.Errorf("%s: %t, %v", c.name, is, err)
		}
		m.Heal()
	}
	if err := encryptWith(t, tok, 2); err != nil {
		t.Fatal(err)
	}
	m.Reset()
	if _, err := unusable(2); err != nil || m.Count("FindObjectsInit") != 1 {
		t.Errorf("a key whose handle is known: %d searches, %v", m.Count("FindObjectsInit"), err)
	}
	m.Fail("OpenSession", 1000, p11.Error(p11.CKR_DEVICE_ERROR))
	m.Fail("Encrypt", 1000, p11.Error(p11.CKR_DEVICE_ERROR))
	if is, err := unusable(2); is || !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a token that is lost: %t, %v", is, err)
	}
}
