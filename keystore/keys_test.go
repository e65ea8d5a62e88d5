package keystore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/secret"
)

// wantKinds loads the certificates of a server, and compares the kinds of their keys and the doubts.
func wantKinds(t *testing.T, f TLSFile, doubt string, kinds ...x509.PublicKeyAlgorithm) {
	t.Helper()
	list, doubts, err := f.ServerCertificates()
	if err != nil {
		t.Fatal(err)
	}
	var got []x509.PublicKeyAlgorithm
	for _, c := range list {
		got = append(got, c.Leaf.PublicKeyAlgorithm)
		public := c.PrivateKey.(crypto.Signer).Public() //nolint:forcetypeassert // a panic fails the test
		if !public.(interface{ Equal(crypto.PublicKey) bool }).Equal(c.Leaf.PublicKey) {
			t.Errorf("%s: the key is not that of the certificate", c.Leaf.PublicKeyAlgorithm)
		}
	}
	if !slices.Equal(got, kinds) || strings.Join(doubts, "; ") != doubt {
		t.Errorf("%v, want %v; doubts %q, want %q", got, kinds, doubts, doubt)
	}
}

// TestTwoKeysOfKeytool: a store of Java with an RSA and an ECDSA key gives both, the ECDSA key first.
func TestTwoKeysOfKeytool(t *testing.T) {
	run, password := java(t), secret.Bytes("changeit")
	for _, kind := range []string{"JKS", "JCEKS", "PKCS12"} {
		t.Run(kind, func(t *testing.T) {
			f := TLSFile{Path: filepath.Join(t.TempDir(), "kms"), Password: password}
			add := func(alias, names string, options ...string) {
				run("keytool", slices.Concat([]string{"-genkeypair", "-alias", alias, "-dname", "CN=" + alias, "-ext",
					"san=" + names, "-validity", "10", "-storetype", kind, "-keystore", f.Path, "-storepass",
					"changeit", "-keypass", "changeit"}, options)...)
			}
			ecdsa, rsa := []string{"-keyalg", "EC", "-groupname", "secp256r1"}, []string{"-keyalg", "RSA"}
			add("kms", "dns:kms.example.com,ip:127.0.0.1", rsa...)
			if kind == "JKS" { // keytool is slow
				add("old", "dns:kms.example.com", ecdsa...)
				wantKinds(t, f, "old of "+f.Path+" is not valid for 127.0.0.1, as the first certificate is", x509.RSA)
			}
			add("kms-ec", "dns:kms.example.com,ip:127.0.0.1,dns:kms2.example.com", ecdsa...)
			wantKinds(t, f, "", x509.ECDSA, x509.RSA)
			if c, err := f.Certificate(); err != nil || c.Leaf.Subject.CommonName != "kms" {
				t.Errorf("the first by alias: %v, %v", c.Leaf, err)
			}
			if all, err := f.Certificates(); err != nil || len(all) != 2 {
				t.Errorf("certificates whose end is checked: %d, %v", len(all), err)
			}
		})
	}
}

// signed makes a certificate of a key for localhost, as PEM. Without an issuer it is an authority, which signs itself.
func signed(t *testing.T, name string, key, issuer crypto.Signer, change func(*x509.Certificate)) []byte {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: "root"}}
	if issuer == nil {
		c.IsCA, c.BasicConstraintsValid, issuer, parent = true, true, key, c
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), issuer)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// TestTwoKeysInPEM: each key of a PEM file finds its own certificate and those of its authorities, in any order.
func TestTwoKeysInPEM(t *testing.T) {
	private := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := signed(t, "root", authority, nil, nil)
	f := TLSFile{Path: filepath.Join(t.TempDir(), "kms.pem")}
	write := func(parts ...[]byte) {
		if err := os.WriteFile(f.Path, slices.Concat(parts...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(root, signed(t, "e", e, authority, nil), private(r), signed(t, "r", r, authority, nil), private(e))
	wantKinds(t, f, "", x509.ECDSA, x509.RSA)
	list, _, err := f.ServerCertificates()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if len(c.Certificate) != 2 {
			t.Errorf("the chain of %s has %d certificates", c.Leaf.Subject, len(c.Certificate))
		}
	}
	write(signed(t, "r", r, authority, nil), private(r), private(e))
	wantKinds(t, f, "private key 2 of "+f.Path+" cannot be read: no certificate of the file belongs to it: tls: "+
		"private key type does not match public key type", x509.RSA)
	write(signed(t, "r", r, authority, nil), private(r), private(e), signed(t, "e", e, authority,
		func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }))
	wantKinds(t, f, "private key 2 of "+f.Path+" is not valid for servers (serverAuth), as the first certificate is",
		x509.RSA)
	write(private(e), private(r), signed(t, "r", r, authority, nil))
	if _, _, err := f.ServerCertificates(); err == nil {
		t.Error("the first key has no certificate, and that is no error")
	}
}
