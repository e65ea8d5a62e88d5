package pkcs11

import (
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/softhsm/softhsmtest"
)

// is reports whether a token has reported an attribute with that value.
func is(reported *bool, value bool) bool { return reported != nil && *reported == value }

// TestProtection: a key of ours was made on the token, has never left it, and can only encrypt. An attribute that the
// token does not know is not reported, and is not false.
func TestProtection(t *testing.T) {
	tok, _ := open(t)
	id, label := generate(t, tok, 1, 256)
	list, err := tok.Protection(t.Context(), id, label)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	p := list[0]
	if p.Bits != 256 || p.Mechanism != "CKM_AES_KEY_GEN" {
		t.Errorf("%d bits, made by %q", p.Bits, p.Mechanism)
	}
	for name, yes := range map[string]*bool{"local": p.Local, "private": p.Private, "sensitive": p.Sensitive,
		"always sensitive": p.AlwaysSensitive, "never extractable": p.NeverExtractable, "encrypt": p.Encrypt} {
		if !is(yes, true) {
			t.Errorf("%s is not true", name)
		}
	}
	for name, no := range map[string]*bool{"extractable": p.Extractable, "decrypt": p.Decrypt, "sign": p.Sign,
		"verify": p.Verify, "wrap": p.Wrap, "unwrap": p.Unwrap, "derive": p.Derive} {
		if !is(no, false) {
			t.Errorf("%s is not false", name)
		}
	}
	if list, err := tok.Protection(t.Context(), []byte("none"), label); err != nil || len(list) != 0 {
		t.Errorf("no key: %v, %v", list, err)
	}
	makeSecondKey(t, tok, id, label)
	if list, err := tok.Protection(t.Context(), id, label); err != nil || len(list) != 2 {
		t.Errorf("two keys: %v, %v", list, err)
	}
}

// TestProtectionOfASparseToken: an attribute that the token does not report is nil or empty. A value that
// differs from the usual one is shown as it is.
func TestProtectionOfASparseToken(t *testing.T) {
	conf := config(softhsmtest.New(t))
	lib := sparseToken{unknown: unavailable, changed: unavailable}
	conf.Wrap = func(b Boundary) Boundary { lib.Boundary = b; return &lib }
	tok, err := Open(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	id, label := generate(t, tok, 1, 128)
	lib.unknown, lib.changed = p11.CKA_ALWAYS_SENSITIVE, p11.CKA_NEVER_EXTRACTABLE
	list, err := tok.Protection(t.Context(), id, label)
	if err != nil || len(list) != 1 || list[0].AlwaysSensitive != nil || !is(list[0].NeverExtractable, false) ||
		!is(list[0].Local, true) || list[0].Bits != 128 {
		t.Errorf("%+v, %v", list, err)
	}
	if p := protectionOf([]*p11.Attribute{p11.NewAttribute(p11.CKA_LOCAL, []byte{}),
		p11.NewAttribute(p11.CKA_KEY_GEN_MECHANISM, unavailable)}); p.Local != nil || p.Mechanism != "" {
		t.Errorf("%+v", p)
	}
	vendors := []*p11.Attribute{p11.NewAttribute(p11.CKA_KEY_GEN_MECHANISM, uint(0x80000001))}
	if p := protectionOf(vendors); p.Mechanism != "0x80000001" {
		t.Errorf("%+v", p)
	}
}
