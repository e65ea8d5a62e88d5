package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
)

// TestTrustee runs the server that init made, with a client that registers, makes
// a deposit, and finds it after a restart.
func TestTrustee(t *testing.T) {
	dir := filepath.Join(t.TempDir(), ".keytrustee")
	var said strings.Builder
	if err := initTrustee(t.Context(), &said, dir, "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	store, err := sqlite.Open(t.Context(), filepath.Join(dir, trusteeStore), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.AddOrg(t.Context(), server.Org{Name: "ORG", UUID: "u", Auth: "walrus", Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, trusteeTLSCert))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate")
	}
	conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	id, err := trustee.NewIdentity("keytrustee", "client", "kms@h", 2048, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		url, stop := startTrustee(t, dir)
		ask := &http.Client{Transport: &http.Transport{TLSClientConfig: conf}}
		resp, err := ask.Get(url + "/?a=fingerprint") //nolint:noctx // of this test's own server
		if err != nil {
			t.Fatal(err)
		}
		fingerprint, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		ask.CloseIdleConnections()
		if !strings.Contains(said.String(), "Initialized directory for "+string(fingerprint)) || !strings.HasPrefix(string(fingerprint), "4096R/") {
			t.Errorf("%s, %q", &said, fingerprint)
		}
		endpoint := trustee.Endpoint{URL: url}
		c, err := trustee.NewClient(trustee.ClientConfig{Identity: id, Servers: []trustee.Endpoint{endpoint}, TLS: conf})
		if err != nil {
			t.Fatal(err)
		}
		if endpoint.Server, err = c.Introduce(t.Context(), url); err != nil {
			t.Fatal(err)
		}
		if c, err = trustee.NewClient(trustee.ClientConfig{Identity: id, Servers: []trustee.Endpoint{endpoint}, TLS: conf}); err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			if _, err := c.Find(t.Context(), "l"); !claviger.Is(err, claviger.Denied) {
				t.Error(err)
			}
			if active, err := c.Register(t.Context(), "ORG", "walrus"); err != nil || !active {
				t.Fatalf("%t, %v", active, err)
			}
			if _, err := c.Put(t.Context(), trustee.Deposit{Label: "l", Content: []byte("x")}, ""); err != nil {
				t.Fatal(err)
			}
		}
		if d, err := c.Find(t.Context(), "l"); err != nil || string(d.Content) != "x" {
			t.Errorf("%+v, %v", d, err)
		}
		c.Close()
		stop()
		if _, err := c.Find(t.Context(), "l"); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("a server that has ended: %v", err)
		}
	}
}

// startTrustee runs a server until stop.
func startTrustee(t *testing.T, dir string) (url string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := filepath.Join(t.TempDir(), "ready")
	ended := make(chan error, 1)
	go func() {
		ended <- serveTrustee(ctx, trusteeFlags{dir: dir, listen: "127.0.0.1:0", ready: ready}, slog.New(slog.DiscardHandler))
	}()
	for range 1000 {
		if text, err := os.ReadFile(ready); err == nil {
			return strings.TrimSpace(string(text)), func() {
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("the trustee ended: %v", err)
				}
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("the trustee did not start: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatal("the trustee did not start in time")
	return "", nil
}
