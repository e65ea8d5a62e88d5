// Package certtest makes certificates for tests: an authority, certificates of that
// authority, and a truststore for Java's clients.
package certtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"
)

// Password is the password of PKCS#12 files. Java needs a password even for truststores.
const Password = "changeit"

// Authority is a certificate authority for one test.
type Authority struct {
	// CA is the path of the authority's certificate, in PEM.
	CA string
	// Begins and Ends bound the validity of new certificates; zero means the authority's own.
	Begins, Ends time.Time

	t      testing.TB
	dir    string
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	issued int64
}

// New makes an authority whose files are in dir, and which is valid for a day.
func New(t testing.TB, dir string) *Authority {
	t.Helper()
	return NewUntil(t, dir, time.Now().Add(24*time.Hour))
}

// NewUntil makes an authority like New that is valid until ends.
func NewUntil(t testing.TB, dir string, ends time.Time) *Authority {
	t.Helper()
	a := &Authority{t: t, dir: dir, key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "certtest authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: ends,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.CA = a.write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

// Issue makes a key and a certificate for servers and clients that is valid for hosts
// (names and addresses). It returns the path of NAME.pem, which has both.
func (a *Authority) Issue(name string, hosts ...string) string {
	a.t.Helper()
	key, cert := a.issue(name, hosts)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write(name+".pem", append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...))
}

// IssueFor makes a certificate for the public key of a key that is elsewhere, such as in an HSM. It returns the path of
// NAME.pem, which has the certificate and that of the authority.
func (a *Authority) IssueFor(public crypto.PublicKey, name string, hosts ...string) string {
	a.t.Helper()
	cert := a.sign(public, name, hosts)
	return a.write(name+".pem", append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...))
}

// Keystore makes a key and a certificate as Issue does, and returns the path of a PKCS#12 file with Password, for
// Java's servers.
func (a *Authority) Keystore(name string, hosts ...string) string {
	a.t.Helper()
	key, cert := a.issue(name, hosts)
	p12, err := pkcs12.Modern.Encode(key, cert, []*x509.Certificate{a.cert}, Password)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write(name+".p12", p12)
}

func (a *Authority) issue(name string, hosts []string) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	key := newKey(a.t)
	return key, a.sign(&key.PublicKey, name, hosts)
}

// sign makes a certificate of a public key.
func (a *Authority) sign(public crypto.PublicKey, name string, hosts []string) *x509.Certificate {
	a.t.Helper()
	a.issued++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1 + a.issued), Subject: pkix.Name{CommonName: name}, NotBefore: a.cert.NotBefore,
		NotAfter: a.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth,
			x509.ExtKeyUsageClientAuth},
	}
	if !a.Begins.IsZero() {
		template.NotBefore = a.Begins
	}
	if !a.Ends.IsZero() {
		template.NotAfter = a.Ends
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// Truststore makes a PKCS#12 file with the authority's certificate and Password.
func (a *Authority) Truststore() string {
	a.t.Helper()
	p12, err := pkcs12.Modern.EncodeTrustStore([]*x509.Certificate{a.cert}, Password)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write("trust.p12", p12)
}

// Pool returns a pool with the authority's certificate, for Go's clients.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (a *Authority) write(name string, data []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}
