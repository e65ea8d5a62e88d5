package host

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/internal/certtest"
	"claviger/internal/hosttest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11"
	"claviger/tlskey/tlskeytest"
	"claviger/trustee"
)

// TestTLSKeyInHSM: a trustee serves with a private key in the HSM, if the file of the key holds its URI. A certificate
// of another key is refused, by a start and by the check of the doctor.
func TestTLSKeyInHSM(t *testing.T) {
	s, tok := newSite(t, true), softhsmtest.New(t)
	uri, public := tlskeytest.New(t, tok, "", pkcs11.P256, "trustee")
	if err := os.WriteFile(filepath.Join(s.dir, trustee.TLSKey), []byte(uri+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := "no certificate of the file belongs to the private key"
	if _, err := serverTLS(s.dir, false, slog.New(slog.DiscardHandler)); err == nil ||
		!strings.Contains(err.Error(), want) {
		t.Errorf("the old certificate: %v", err)
	}
	if _, err := InspectCertificate(t.Context(), s.dir, slog.New(slog.DiscardHandler)); err == nil ||
		!strings.Contains(err.Error(), want) {
		t.Errorf("the old certificate: %v", err)
	}
	ca := certtest.New(t, t.TempDir())
	issued, err := os.ReadFile(ca.IssueFor(public, "trustee", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, trustee.TLSCert), issued, 0o600); err != nil {
		t.Fatal(err)
	}
	leaf, err := InspectCertificate(t.Context(), s.dir, slog.New(slog.DiscardHandler))
	if err != nil || leaf.Subject.CommonName != "trustee" {
		t.Errorf("%v, %v", leaf, err)
	}
	found := false
	for _, f := range SecretFiles(s.folder) {
		found = found || f.Path == tok.PINFile
	}
	if !found {
		t.Error("the file of the PIN is not one with a secret")
	}
	var log hosttest.Log
	url, stop := s.start(Config{Metrics: "127.0.0.1:0", Log: log.Logger()})
	defer stop()
	s.tls.RootCAs = ca.Pool()
	s.register(url)
	log.Contains(t, "/readyz", `"TLS key in the HSM"`, `"ready": true`)
}
