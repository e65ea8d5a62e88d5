package web

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/http"
	"testing"
	"time"

	"claviger/internal/certtest"
)

// TestRequireClientCertificates: only clients with a certificate that one of the roots has issued are served.
func TestRequireClientCertificates(t *testing.T) {
	authority, other := certtest.New(t, t.TempDir()), certtest.New(t, t.TempDir())
	file := authority.Issue("server", "127.0.0.1")
	s := newServer()
	load := func() ([]tls.Certificate, error) { return loadPair(file) }
	conf, err := FollowCertificate([]string{file}, load, s.Log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conf.Close)
	roots := func() (*x509.CertPool, error) { return authority.Pool(), nil }
	if err := conf.RequireClientCertificates([]string{file}, roots, s.Log); err != nil {
		t.Fatal(err)
	}
	s.TLS = conf.Config
	url := start(t, s).URL()
	for name, c := range map[string]struct {
		certificate string // file; "": none
		served      bool
	}{"issued by the roots": {authority.Issue("alice"), true}, "issued by others": {other.Issue("alice"), false},
		"none": {"", false}} {
		client := &tls.Config{RootCAs: authority.Pool(), NextProtos: []string{"h2", "http/1.1"}}
		if c.certificate != "" {
			cert, err := tls.LoadX509KeyPair(c.certificate, c.certificate)
			if err != nil {
				t.Fatal(err)
			}
			client.Certificates = []tls.Certificate{cert}
		}
		transport := &http.Transport{TLSClientConfig: client}
		resp, err := (&http.Client{Transport: transport}).Get(url)
		if (err == nil) != c.served {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			_ = resp.Body.Close()
			if resp.ProtoMajor != 1 || resp.TLS.NegotiatedProtocol != "http/1.1" {
				t.Errorf("%s, %q", resp.Proto, resp.TLS.NegotiatedProtocol)
			}
		}
		transport.CloseIdleConnections()
	}
	if cert, err := conf.Certificate(); err != nil || cert.Subject.CommonName != "server" {
		t.Errorf("%v, %v", cert, err)
	}
}

// TestFollowCertificateFails: a certificate that cannot be loaded at first is an error.
func TestFollowCertificateFails(t *testing.T) {
	wrong := errors.New("wrong password")
	s := newServer()
	_, err := FollowCertificate(nil, func() ([]tls.Certificate, error) { return nil, wrong }, s.Log)
	if !errors.Is(err, wrong) {
		t.Error(err)
	}
}

// issued makes a self-signed certificate of a key for 127.0.0.1, which ends after life.
// newKeys makes a key of each kind.
func newKeys(t testing.TB) (*rsa.PrivateKey, *ecdsa.PrivateKey) {
	t.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return r, e
}

func issued(t testing.TB, key crypto.Signer, life time.Duration) tls.Certificate {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-2 * time.Hour),
		NotAfter: time.Now().Add(life), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestCertificateOfClient: a client gets the first certificate that it supports and that is valid.
func TestCertificateOfClient(t *testing.T) {
	r, e := newKeys(t)
	both := []tls.Certificate{issued(t, e, time.Hour), issued(t, r, time.Hour)}
	ended := []tls.Certificate{issued(t, e, -time.Hour), issued(t, r, time.Hour)}
	rsaOnly := &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}
	for name, c := range map[string]struct {
		list   []tls.Certificate
		client *tls.Config
		want   x509.PublicKeyAlgorithm
	}{
		"a client of both":         {both, &tls.Config{}, x509.ECDSA},
		"a client of another name": {both, &tls.Config{ServerName: "kms.example.com"}, x509.ECDSA},
		"a client of RSA":          {both, rsaOnly, x509.RSA},
		"a certificate that ended": {ended, &tls.Config{}, x509.RSA},
		"one certificate":          {both[:1], &tls.Config{}, x509.ECDSA},
	} {
		load := func() ([]tls.Certificate, error) { return c.list, nil }
		served, err := FollowCertificate(nil, load, newServer().Log)
		if err != nil {
			t.Fatal(err)
		}
		c.client = c.client.Clone()
		c.client.InsecureSkipVerify = true //nolint:gosec // the certificate is compared
		var got x509.PublicKeyAlgorithm
		c.client.VerifyConnection = func(s tls.ConnectionState) error {
			got = s.PeerCertificates[0].PublicKeyAlgorithm
			return nil
		}
		if _, err := resumes(served, c.client); err != nil || got != c.want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, c.want)
		}
		served.Close()
	}
}

// BenchmarkConnections measures client and server together: a new connection with each kind of key, and a resumed one.
func BenchmarkConnections(b *testing.B) {
	r, e := newKeys(b)
	for _, c := range []struct {
		name    string
		key     crypto.Signer
		resumed bool
	}{{"RSA", r, false}, {"ECDSA", e, false}, {"RSA resumed", r, true}} {
		b.Run(c.name, func(b *testing.B) {
			load := func() ([]tls.Certificate, error) { return []tls.Certificate{issued(b, c.key, time.Hour)}, nil }
			served, err := FollowCertificate(nil, load, newServer().Log)
			if err != nil {
				b.Fatal(err)
			}
			defer served.Close()
			client := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // its signature is verified
			if c.resumed {
				client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			}
			for i := 0; b.Loop(); i++ {
				if got, err := resumes(served, client); err != nil || got != (c.resumed && i > 0) {
					b.Fatal(got, err)
				}
			}
		})
	}
}
