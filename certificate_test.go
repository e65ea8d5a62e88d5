package claviger_test

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/certtest"
)

// TestCertificateCure: in real handshakes, each certificate that a client refuses has its own cure. For example,
// another truststore does not help against an expired certificate.
func TestCertificateCure(t *testing.T) {
	const trust = "the truststore"
	now := time.Now()
	for _, tt := range []struct {
		name         string
		begins, ends time.Time
		host         string
		trusted      bool
		cure         string
	}{
		{name: "trusted", host: "127.0.0.1", trusted: true},
		{name: "unknown authority", host: "127.0.0.1", cure: "put the certificate of its authority, or its own if " +
			"it is self-signed, into " + trust},
		{name: "another host", host: "elsewhere.example.com", trusted: true, cure: "use the host name that its " +
			"certificate has"},
		{name: "ended", host: "127.0.0.1", trusted: true, begins: now.Add(-time.Hour), ends: now.Add(-time.Minute),
			cure: "the certificate CN=ended expired at " + now.Add(-time.Minute).UTC().Format(time.RFC3339) +
				": have it renewed at that server"},
		{name: "early", host: "127.0.0.1", trusted: true, begins: now.Add(time.Hour), ends: now.Add(2 * time.Hour),
			cure: "correct the clock of this host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			authority := certtest.New(t, dir)
			authority.Begins, authority.Ends = tt.begins, tt.ends
			file := authority.Issue(tt.name, tt.host)
			pair, err := tls.LoadX509KeyPair(file, file)
			if err != nil {
				t.Fatal(err)
			}
			s := httptest.NewUnstartedServer(http.NotFoundHandler())
			s.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
			s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
			s.StartTLS()
			defer s.Close()
			roots := authority.Pool()
			if !tt.trusted {
				roots = certtest.New(t, t.TempDir()).Pool()
			}
			client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
				Timeout: 10 * time.Second}
			defer client.CloseIdleConnections()
			resp, err := client.Get(s.URL)
			if err == nil {
				_ = resp.Body.Close()
			}
			if got := claviger.CertificateCure(err, trust); !strings.Contains(got, tt.cure) ||
				(tt.cure == "") != (got == "") || (err == nil) != (tt.cure == "") {
				t.Errorf("%v: %q, want %q", err, got, tt.cure)
			}
		})
	}
	if got := claviger.CertificateCure(errors.New("connection refused"), trust); got != "" {
		t.Errorf("of another error: %q", got)
	}
}
