package tlskey

import (
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	"claviger/pkcs11"
	"claviger/tlskey/tlskeytest"
)

// TestRequest: a request makes the key once. A server takes the certificate that follows from the request.
func TestRequest(t *testing.T) {
	for _, kind := range []pkcs11.SigningKind{pkcs11.P256, pkcs11.RSA2048} {
		t.Run(string(kind), func(t *testing.T) {
			l := newLab(t)
			uri := tlskeytest.URI(l.tok, l.tok.Module, "kms")
			r := Request{URI: uri, Kind: kind, Hosts: []string{"kms.example.com", "127.0.0.1"}, Worker: testedMode()}
			for i := range 2 {
				done, err := r.Make(t.Context())
				if err != nil || done.Made != (i == 0) {
					t.Fatalf("%s: %+v, %v", kind, done, err)
				}
				block, _ := pem.Decode([]byte(done.PEM))
				csr, err := x509.ParseCertificateRequest(block.Bytes)
				if err != nil || csr.CheckSignature() != nil || csr.Subject.CommonName != "kms.example.com" ||
					len(csr.DNSNames) != 1 || len(csr.IPAddresses) != 1 || pkcs11.KindOf(csr.PublicKey) != done.Kind {
					t.Fatalf("%s: %+v, %v", kind, csr, err)
				}
				if i == 0 {
					l.certificate(csr.PublicKey, "kms")
				}
			}
			l.cfg.URIs = []string{uri}
			_, server := l.serve()
			if _, err := l.connect(server, clients["TLS 1.3"]); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		})
	}
}

// TestRequestRefused: a request without what it needs is refused.
func TestRequestRefused(t *testing.T) {
	l := newLab(t)
	uri := tlskeytest.URI(l.tok, l.tok.Module, "kms")
	for want, r := range map[string]Request{
		"is no pkcs11: URI":            {URI: "kms"},
		"object is missing":            {URI: strings.Replace(uri, "object=kms", "id=%01", 1)},
		"no host is named":             {URI: uri},
		"is no kind of keys that sign": {URI: uri, Hosts: []string{"h"}, Kind: "dsa", Worker: testedMode()},
		`fits token "none"`: {URI: strings.Replace(uri, l.tok.Label, "none", 1), Hosts: []string{"h"},
			Worker: testedMode()},
	} {
		if _, err := r.Make(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
