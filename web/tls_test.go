package web

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"testing"

	"claviger/internal/certtest"
)

// TestRequireClientCertificates: only clients with a certificate of the roots are served.
func TestRequireClientCertificates(t *testing.T) {
	authority, other := certtest.New(t, t.TempDir()), certtest.New(t, t.TempDir())
	file := authority.Issue("server", "127.0.0.1")
	s := newServer()
	load := func() (tls.Certificate, error) { return tls.LoadX509KeyPair(file, file) }
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
	}{"of the roots": {authority.Issue("alice"), true}, "of others": {other.Issue("alice"), false},
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
	_, err := FollowCertificate(nil, func() (tls.Certificate, error) { return tls.Certificate{}, wrong }, s.Log)
	if !errors.Is(err, wrong) {
		t.Error(err)
	}
}
