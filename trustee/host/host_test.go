package host

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
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/internal/hosttest"
	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
	"claviger/web"
)

// site is a trustee with the organization ORG, whose secret is walrus, and one client.
type site struct {
	t      *testing.T
	dir    string
	folder *trustee.Folder
	store  server.Store
	tls    *tls.Config // of the client
	client *trustee.Identity
}

// shortKey makes an identity with a shorter key, which takes less time. A test binary makes it once.
func shortKey(comment string) func() *trustee.Identity {
	return sync.OnceValue(func() *trustee.Identity {
		id, err := trustee.NewIdentity("keytrustee", comment, "keytrustee@h", 2048, time.Now())
		if err != nil {
			panic(err)
		}
		return id
	})
}

var serverKey, clientKey = shortKey("keytrustee Server Key"), shortKey("client")

// newSite makes the folder of a trustee. Init makes the identity of the folder unless short is true; then
// it has a shorter key.
func newSite(t *testing.T, short bool) *site {
	t.Helper()
	s := &site{t: t, dir: filepath.Join(t.TempDir(), ".keytrustee"), client: clientKey()}
	if short {
		if _, err := trustee.NewFolder(s.dir, serverKey()); err != nil {
			t.Fatal(err)
		}
	}
	made, err := location.Init(t.Context(), s.dir,
		location.InitOptions{Hosts: []string{"127.0.0.1", "trustee.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	s.folder = made.Folder
	if s.store, err = sqlite.Open(t.Context(), filepath.Join(s.dir, location.FileName), false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.store.Close() }) // the test only reads it
	org := server.Org{Name: "ORG", UUID: "u", Auth: "walrus", Created: time.Now()}
	if err := s.store.AddOrg(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(s.dir, trustee.TLSCert))
	if err != nil {
		t.Fatal(err)
	}
	s.tls = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !s.tls.RootCAs.AppendCertsFromPEM(pem) {
		t.Fatal("the file of the certificate holds no certificate")
	}
	return s
}

// config completes the configuration of a server of this site.
func (s *site) config(c Config) Config {
	c.Folder, c.Listen, c.ReadyFile = s.dir, "127.0.0.1:0", filepath.Join(s.t.TempDir(), "ready")
	c.Connections = web.ConnectionLimits{Total: 1024}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// start runs a server until stop.
func (s *site) start(c Config) (url string, stop func()) {
	s.t.Helper()
	c = s.config(c)
	return hosttest.Start(s.t, c.ReadyFile, func(ctx context.Context) error { return Run(ctx, c) })
}

// connect returns a client of the server at url.
func (s *site) connect(url string) *trustee.Client {
	s.t.Helper()
	c, err := trustee.NewClient(trustee.ClientConfig{Identity: s.client, TLS: s.tls,
		Servers: []trustee.Endpoint{{URL: url, Server: &s.folder.Identity.Party}}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// register registers the client in ORG, at the server at url.
func (s *site) register(url string) {
	s.t.Helper()
	if active, err := s.connect(url).Register(s.t.Context(), "ORG", "walrus", false); err != nil || !active {
		s.t.Fatalf("%t, %v", active, err)
	}
}

// put makes a deposit.
func (s *site) put(c *trustee.Client, label, content string) {
	s.t.Helper()
	if _, err := c.Put(s.t.Context(), trustee.Deposit{Label: label, Content: []byte(content)}, ""); err != nil {
		s.t.Fatal(err)
	}
}

// find fails the test unless the deposit has the content.
func (s *site) find(c *trustee.Client, label, content string) {
	s.t.Helper()
	if d, err := c.Find(s.t.Context(), label); err != nil || string(d.Content) != content {
		s.t.Errorf("%s: %q, %v", label, d.Content, err)
	}
}

// TestRun runs a server on the folder that Init made. A client registers, makes a deposit, and finds it after
// a restart.
func TestRun(t *testing.T) {
	s := newSite(t, false)
	cert, err := tls.LoadX509KeyPair(filepath.Join(s.dir, trustee.TLSCert), filepath.Join(s.dir, trustee.TLSKey))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "trustee.example.com"} {
		if err := cert.Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	url, stop := s.start(Config{})
	s.fingerprint(url)
	if _, err := s.connect(url).Find(t.Context(), "l"); !claviger.Is(err, claviger.Denied) {
		t.Errorf("before the registration: %v", err)
	}
	s.register(url)
	c := s.introduced(url)
	s.put(c, "l", "x")
	s.find(c, "l", "x")
	stop()
	if _, err := c.Find(t.Context(), "l"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("after the end of the server: %v", err)
	}
	url, stop = s.start(Config{})
	defer stop()
	s.fingerprint(url)
	s.find(s.introduced(url), "l", "x")
}

// fingerprint fails the test unless the server at url has the identity of the folder, with 4096 bits.
func (s *site) fingerprint(url string) {
	s.t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: s.tls}}
	defer client.CloseIdleConnections()
	resp, err := client.Get(url + "/?a=fingerprint") //nolint:noctx // of this test's own server
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || string(text) != s.folder.Identity.String()+"\n" || !strings.HasPrefix(string(text), "4096R/") {
		s.t.Errorf("%q, %v; want %s", text, err, s.folder.Identity)
	}
}

// introduced returns a client that read the identity of the server at url from the server.
func (s *site) introduced(url string) *trustee.Client {
	s.t.Helper()
	endpoint := trustee.Endpoint{URL: url}
	connect := func() *trustee.Client {
		c, err := trustee.NewClient(
			trustee.ClientConfig{Identity: s.client, Servers: []trustee.Endpoint{endpoint}, TLS: s.tls})
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(c.Close)
		return c
	}
	var err error
	if endpoint.Server, err = connect().Introduce(s.t.Context(), url); err != nil {
		s.t.Fatal(err)
	}
	return connect()
}
