package kms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"log/slog"
	"os"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/libcrypto"
)

// TestRSASigners: the property decides what signs; keys of other kinds stay as they are.
func TestRSASigners(t *testing.T) {
	own, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	base := map[string]string{hadoopconf.ProviderURI: "jceks://file@/k.jceks"}
	signers := func(pairs ...string) (func(crypto.PrivateKey) crypto.PrivateKey, error) {
		return rsaSigners(kmstest.Conf(t, with(base, pairs...)), slog.New(slog.NewTextHandler(&log, nil)))
	}
	byDefault, err := signers()
	if err != nil {
		t.Fatal(err)
	}
	_, isSigner := byDefault(own).(*libcrypto.Signer)
	if logged := strings.Contains(log.String(), "made by Go's own code"); isSigner == logged {
		t.Errorf("the library signs: %t; the log says %s", isSigner, log.String())
	}
	if !isSigner && os.Getenv("CLAVIGER_REQUIRE_LIBCRYPTO") == "1" {
		t.Errorf("%s: %s", libcrypto.Name, log.String())
	}
	if byDefault(other) != crypto.PrivateKey(other) {
		t.Error("an ECDSA key was replaced")
	}
	byGo, err := signers(rsaProperty, "go")
	if err != nil || byGo(own) != crypto.PrivateKey(own) {
		t.Errorf("go: %v", err)
	}
	if _, err := signers(rsaProperty, "openssl"); err == nil || !strings.Contains(err.Error(),
		`claviger.ssl.rsa has the value "openssl"; it must be libcrypto or go`) {
		t.Error(err)
	}
}
