package pkcs11

import (
	"bytes"
	"errors"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
)

// TestCheckValueWhileHandlesChange: the handles of the key and of another key change places after any call of
// CheckValue. The check value is the key's.
func TestCheckValueWhileHandlesChange(t *testing.T) {
	m, tok, keys := openFaulty(t, nil)
	exchanges := 0
	for _, f := range []faultmodule.Function{faultmodule.OpenSession, faultmodule.FindObjectsInit,
		faultmodule.FindObjects, faultmodule.FindObjectsFinal, faultmodule.GetAttributeValue, faultmodule.EncryptInit,
		faultmodule.Encrypt} {
		for skip := range 5 {
			m.ExchangeLabels(keys[0].label, keys[1].label)
			done := m.Done(f)
			m.Order(f, faultmodule.Order{Action: faultmodule.Exchange, Skip: skip})
			got, err := tok.CheckValue(t.Context(), keys[0].id, keys[0].label)
			m.Heal()
			exchanges += m.Done(f) - done
			if err != nil || !bytes.Equal(got, keys[0].check) {
				t.Errorf("exchange after call %d of function %d: %x, %v; want %x", skip, f, got, err, keys[0].check)
			}
		}
	}
	if exchanges < 10 {
		t.Errorf("only %d exchanges", exchanges)
	}
}

// TestCheckValueExchangedForAMoment: another key has the handle only while the token encrypts, so the name that is read
// before and after is right. The check value is the key's.
func TestCheckValueExchangedForAMoment(t *testing.T) {
	m, tok, keys := openFaulty(t, nil)
	for skip := range 2 { // of the first or of the second value; to read a name takes two calls
		m.ExchangeLabels(keys[0].label, keys[1].label)
		m.Order(faultmodule.GetAttributeValue, faultmodule.Order{Action: faultmodule.Exchange, Skip: 1 + 4*skip})
		m.Order(faultmodule.Encrypt, faultmodule.Order{Action: faultmodule.Exchange, Skip: skip})
		got, err := tok.CheckValue(t.Context(), keys[0].id, keys[0].label)
		if n := m.Done(faultmodule.GetAttributeValue) + m.Done(faultmodule.Encrypt); n != 2*(skip+1) {
			t.Errorf("value %d: %d exchanges", skip, n)
		}
		m.Heal()
		if err != nil || !bytes.Equal(got, keys[0].check) {
			t.Errorf("value %d: %x, %v; want %x", skip, got, err, keys[0].check)
		}
	}
}

// TestTwoCheckValues: if the token computes another check value each time, there is none.
func TestTwoCheckValues(t *testing.T) {
	m, tok, keys := openFaulty(t, nil)
	calls := m.Calls(faultmodule.Encrypt)
	m.Order(faultmodule.Encrypt, faultmodule.Order{Action: faultmodule.Flip, Times: faultmodule.Always})
	got, err := tok.CheckValue(t.Context(), keys[0].id, keys[0].label)
	if got != nil || !errors.Is(err, ErrUnproved) || !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("%x, %v", got, err)
	}
	if n := m.Calls(faultmodule.Encrypt) - calls; n != 4 {
		t.Errorf("%d encryptions, want 4", n)
	}
	m.Heal()
	if got, err := tok.CheckValue(t.Context(), keys[0].id, keys[0].label); err != nil ||
		!bytes.Equal(got, keys[0].check) {
		t.Errorf("%x, %v", got, err)
	}
}

// TestCheckValueSearchesTheKey: each of the two computations searches the key, although its handle is known. After a
// failed computation, the handle is not known any more.
func TestCheckValueSearchesTheKey(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	for range 2 {
		m.Reset()
		if _, err := tok.CheckValue(t.Context(), id, label); err != nil || m.Count("FindObjectsInit") != 2 {
			t.Errorf("%v, %d searches", err, m.Count("FindObjectsInit"))
		}
	}
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_ACTION_PROHIBITED))
	if _, err := tok.CheckValue(t.Context(), id, label); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
	if _, known := tok.login.handles.Load(keyName{string(id), label}); known {
		t.Error("the handle that failed is used again")
	}
}

// TestCheckValueOfOtherObjects: while the key's handle is always that of another object, the key has no check value.
func TestCheckValueOfOtherObjects(t *testing.T) {
	tok, m, reads, id, label := openOther(t, false)
	*reads = 1000
	got, err := tok.CheckValue(t.Context(), id, label)
	if got != nil || !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, errOtherObject) {
		t.Errorf("%x, %v", got, err)
	}
	if m.Count("Encrypt") != 0 {
		t.Errorf("%d encryptions with another object", m.Count("Encrypt"))
	}
}
