//go:build cgo && !nogssapi

package gssapi_test

import (
	"errors"
	"strings"
	"testing"

	"claviger/gssapi"
	"claviger/internal/kdctest"
)

// TestEnctypes: tickets with each kind of AES key are accepted. If the key was changed at the KDC, the error has the
// key's version, until the keytab has the new key.
func TestEnctypes(t *testing.T) {
	for _, enctype := range []string{
		"aes128-cts-hmac-sha1-96", "aes256-cts-hmac-sha1-96", "aes128-cts-hmac-sha256-128",
		"aes256-cts-hmac-sha384-192",
	} {
		t.Run(enctype, func(t *testing.T) {
			r := newRealm(t)
			change := func() { r.Admin("cpw -randkey -e " + enctype + ":normal HTTP/localhost") }
			export := func() { r.Admin("ktadd -norandkey -k " + r.services + " HTTP/localhost") }
			a := r.acceptor(t, "")
			change()
			_, err := r.exchange(a, true)
			var e *gssapi.Error
			if !errors.As(err, &e) || e.Kind != gssapi.NoKey || e.Cure == "" {
				t.Fatalf("a key that is not in the keytab: %v", err)
			}
			for _, want := range []string{"HTTP/localhost@" + kdctest.Realm, "kvno 2"} {
				if !strings.Contains(e.Detail, want) {
					t.Errorf("%q does not name %s", e.Detail, want)
				}
			}
			if strings.Contains(e.Java, "HTTP/") {
				t.Errorf("the answer to the caller has the principal: %q", e.Java)
			}
			export() // to the file that the acceptor uses
			for _, spnego := range []bool{true, false} {
				if _, err := r.exchange(a, spnego); err != nil {
					t.Errorf("after the keytab got the key, spnego %v: %v", spnego, err)
				}
			}
		})
	}
}
