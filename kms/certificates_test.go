package kms

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
)

// serverPEM writes a file with a key and a certificate that is valid between two times.
func serverPEM(t *testing.T, path string, from, to time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "server"},
		NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var text []byte
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestCertificates: the check reads the certificate that the server presents to clients. A
// file that the next start could not use is another error.
func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "server.pem")
	now := time.Now()
	kmstest.WriteFile(t, filepath.Join(dir, "kms-site.xml"), kmstest.SiteXML("hadoop.kms.ssl.enabled", "true"))
	kmstest.WriteFile(t, filepath.Join(dir, "ssl-server.xml"), kmstest.SiteXML("ssl.server.keystore.location", path,
		"ssl.server.keystore.type", "pem"))
	conf, err := hadoopconf.LoadKMS(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	svc := &Service{Conf: conf, Log: slog.New(slog.DiscardHandler)}
	served := serverPEM(t, path, now.Add(-48*time.Hour), now.Add(-time.Hour))
	svc.certificateCheck.served = func() []tls.Certificate { return []tls.Certificate{served} }
	wants := func(when string, texts ...string) {
		t.Helper()
		svc.certificateCheck.at = time.Time{} // do not reuse the last result
		list, _, err := svc.certificates()
		if err != nil || len(list) != 1 || list[0].Store != "ssl.server.keystore.location" ||
			list[0].NotAfter.IsZero() {
			t.Errorf("%s: %+v, %v", when, list, err)
		}
		err = svc.checkCertificates(t.Context())
		if len(texts) == 0 && err != nil {
			t.Errorf("%s: %v", when, err)
		}
		for _, text := range texts {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	wants("it has ended", "the certificate of CN=server expired at ")
	whole := serverPEM(t, path, now.Add(-time.Hour), now.Add(365*24*time.Hour))
	wants("a new file that is not in use yet", "expired at ")
	served = whole
	wants("the new one is in use")
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	wants("a truncated file", "ssl.server.keystore.location: ",
		"the store that was loaded before stays in use, and the next start fails")
	served = serverPEM(t, path, now.Add(time.Hour), now.Add(365*24*time.Hour))
	wants("it begins later", "is not valid before ")
	served = serverPEM(t, path, now.Add(-time.Hour), now.Add(24*time.Hour))
	wants("it ends soon", "the certificate of CN=server expires at ")
}
