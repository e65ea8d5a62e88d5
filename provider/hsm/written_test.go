package hsm_test

import (
	"fmt"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/provider"
)

// TestFullToken: once a token has refused to make a key, readiness for changes fails until the token makes a key. The
// keys that the token has can be used meanwhile.
func TestFullToken(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	p := b.mustOpen(t)
	create(t, p, "a")
	if err := p.CheckWrites(ctx); err != nil {
		t.Fatal(err)
	}
	for _, code := range []p11.Error{p11.CKR_DEVICE_MEMORY, p11.CKR_FUNCTION_FAILED} {
		b.meter.Fail("GenerateKey", 1, code)
		if code == p11.CKR_FUNCTION_FAILED { // it is tried again with another session
			b.meter.Fail("GenerateKey", 5, code)
		}
		if _, err := p.Create(ctx, provider.Spec{Name: "b", Cipher: claviger.DefaultCipher,
			BitLength: 256}); !claviger.Is(err, claviger.Unavailable) {
			t.Fatalf("%v: %v", code, err)
		}
		for range 2 {
			if err := p.CheckWrites(ctx); !claviger.Is(err, claviger.Unavailable) ||
				!strings.Contains(err.Error(), "refused to make an object") ||
				!strings.Contains(err.Error(), "make room") {
				t.Errorf("%v: %v", code, err)
			}
		}
		b.meter.Heal()
		keystream(t, p, "a@0")
		if last, ok := p.LastWrite(); !ok || last.Err == nil {
			t.Errorf("%v: LastWrite after Heal: %+v, %t", code, last, ok)
		}
		create(t, p, "b-"+fmt.Sprint(uint(code)))
		if err := p.CheckWrites(ctx); err != nil {
			t.Errorf("%v: once a key was made: %v", code, err)
		}
	}
}
