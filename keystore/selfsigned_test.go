package keystore

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"
)

// TestSelfSigned: the certificate is valid for its hosts only, and until the end of its life.
func TestSelfSigned(t *testing.T) {
	cert, key, err := SelfSigned("claviger test", []string{"kts1.example.com", "127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	for host, good := range map[string]bool{"kts1.example.com": true, "127.0.0.1": true, "kts2.example.com": false} {
		_, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots})
		if (err == nil) != good {
			t.Errorf("%s: %v", host, err)
		}
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots,
		CurrentTime: time.Now().Add(2 * time.Hour)}); err == nil {
		t.Error("the certificate is valid after its life")
	}
	if _, _, err := SelfSigned("", []string{"not ascii: \u00e9"}, time.Hour); err == nil {
		t.Error("SelfSigned accepts an invalid host name")
	}
}
