package pkcs11

import (
	"errors"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/softhsm/softhsmtest"
)

// TestTry: Try leaves nothing on the token.
func TestTry(t *testing.T) {
	made := softhsmtest.New(t)
	info, err := Try(t.Context(), config(made))
	if err != nil || info.Label != made.Label {
		t.Fatal(info, err)
	}
	tok, _ := openAs(t, config(made))
	keys, err := tok.List(t.Context())
	if err != nil || len(keys) > 0 {
		t.Errorf("%v, %v: the token holds keys after the try", keys, err)
	}
}

// TestTryStandby: a standby that is the first token itself is refused, however its file names it. No session stays.
func TestTryStandby(t *testing.T) {
	made, m := softhsmtest.New(t), new(Meter)
	first := config(made)
	first.Wrap = m.Wrap
	info, err := Try(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{"label": {TokenLabel: info.Label}, "serial": {Serial: info.Serial},
		"slot": {Slot: &info.Slot}} {
		c.Module = first.Module
		first.Standby = &c
		if _, err := Try(t.Context(), first); err == nil ||
			!strings.Contains(err.Error(), "is the first token itself") {
			t.Errorf("by its %s: %v", name, err)
		}
	}
	first.Standby = &Config{Module: first.Module, TokenLabel: "another"}
	if _, err := Try(t.Context(), first); err != nil {
		t.Errorf("another token: %v", err)
	}
	if open := m.Count("OpenSession") - m.Count("CloseSession"); open != 0 {
		t.Errorf("%d sessions stay open", open)
	}
}

// idRecorder is a library that keeps the CKA_ID of each new key.
type idRecorder struct {
	Boundary
	ids *[]string
}

func (r idRecorder) GenerateKey(s p11.SessionHandle, m []*p11.Mechanism, a []*p11.Attribute) (p11.ObjectHandle, error) {
	for _, x := range a {
		if x.Type == p11.CKA_ID {
			*r.ids = append(*r.ids, string(x.Value))
		}
	}
	return r.Boundary.GenerateKey(s, m, a)
}

// TestTryID: each try has a key of its own, because another process may try the token at the same time.
func TestTryID(t *testing.T) {
	c := config(softhsmtest.New(t))
	var ids []string
	c.Wrap = func(b Boundary) Boundary { return idRecorder{b, &ids} }
	for range 2 {
		if _, err := Try(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if len(ids) != 2 || ids[0] == ids[1] {
		t.Errorf("the ids are %q", ids)
	}
}

// TestTryFails: Try names the step that the token refuses, and destroys its key if it can.
func TestTryFails(t *testing.T) {
	made := softhsmtest.New(t)
	refused := p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED)
	for _, c := range []struct {
		call string
		nth  int // the probe of Open makes the first call
		want string
		keys int
	}{
		{"Login", 1, "logging in to token", 0},
		{"GenerateKey", 2, "the token makes no key of the kind that is needed", 0},
		{"Encrypt", 2, "the token made a key and does not encrypt with it", 0},
		{"DestroyObject", 2, "the key that was made to try the token could not be destroyed", 1},
	} {
		m := new(Meter)
		cfg := config(made)
		cfg.Wrap = m.Wrap
		failNth(m, c.call, c.nth, refused)
		if _, err := Try(t.Context(), cfg); !errors.Is(err, refused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s fails: %v", c.call, err)
		}
		if open := m.Count("OpenSession") - m.Count("CloseSession"); open != 0 {
			t.Errorf("%s fails: %d sessions stay open", c.call, open)
		}
		tok, _ := openAs(t, config(made))
		if keys, err := tok.List(t.Context()); err != nil || len(keys) != c.keys {
			t.Errorf("%s fails: %d keys stay, %v", c.call, len(keys), err)
		}
	}
}
