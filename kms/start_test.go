package kms

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/logtest"
	"claviger/internal/pgtest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/internal/zktest"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
)

// starting is a node with a configuration folder and its own port.
type starting struct {
	t    *testing.T
	dir  string
	port int
	kms  string
}

func newStarting(t *testing.T, dir string) *starting {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return &starting{t: t, dir: dir, port: port, kms: fmt.Sprintf("http://127.0.0.1:%d/kms", port)}
}

// begin starts the node. It returns its log, and a function that ends the node.
func (s *starting) begin() (log *logtest.Buffer, end func() error) {
	ctx, stop := context.WithCancel(context.Background())
	log = &logtest.Buffer{}
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, Options{Dir: s.dir, Port: s.port, ReadyFile: filepath.Join(s.dir, "ready"),
			Log: slog.New(slog.NewTextHandler(log, nil)), Level: new(slog.LevelVar)})
	}()
	return log, func() error { stop(); return <-ended }
}

func (s *starting) until(what string, f func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within a minute: %s", what)
		}
	}
}

func (s *starting) listens() bool {
	resp, err := http.Get(strings.TrimSuffix(s.kms, "/kms") + "/healthz") //nolint:noctx // the server runs in this test
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (s *starting) ready() bool {
	status, _ := kmstest.Get(s.t, s.kms, "/readyz", "")
	return status == http.StatusOK
}

// TestStartWaits: a node that starts while PostgreSQL is down waits, reports that, makes clients
// try other nodes, and serves when PostgreSQL answers. A node that is stopped while it waits
// ends.
func TestStartWaits(t *testing.T) {
	server := pgtest.Start(t)
	uri := server.Database(t)
	server.Stop(t)
	dir := t.TempDir()
	tok := softhsmtest.New(t)
	file := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label,
		PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.MANAGEMENT", "*"))
	kmstest.WriteSite(t, dir, map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file,
		hadoopconf.MetastoreURI: uri, "hadoop.kms.http.host": "127.0.0.1", "claviger.audit.file": filepath.Join(dir,
			"audit.log")})
	node := newStarting(t, dir)
	kms := node.kms
	_, end := node.begin()
	node.until("it listens", node.listens)
	if err := end(); err != nil {
		t.Errorf("stopped while it waited: %v", err)
	}

	log, end := node.begin()
	node.until("it listens", node.listens)
	status, body := kmstest.Get(t, kms, "/readyz", "")
	if status != http.StatusServiceUnavailable || !strings.Contains(body, "waits to start") || !strings.Contains(body,
		server.Addr) || !strings.Contains(body, hadoopconf.MetastoreURI) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := kmstest.Get(t, kms, "/kms/v1/keys/names", "a"); status != http.StatusServiceUnavailable ||
		!strings.Contains(body, "StandbyException") {
		t.Errorf("a client: %d %s", status, body)
	}
	if _, err := os.Stat(filepath.Join(dir, "ready")); err == nil {
		t.Error("the ready file exists")
	}
	server.Start(t)
	node.until("it serves", node.ready)
	if status, names := kmstest.Get(t, kms, "/kms/v1/keys/names", "a"); status != http.StatusOK ||
		strings.TrimSpace(names) != "[]" {
		t.Errorf("a client: %d %s", status, names)
	}
	if text := log.String(); strings.Count(text, "does not answer; the server tries to start") != 1 {
		t.Errorf("the log says\n%s", text)
	}
	if err := end(); err != nil {
		t.Error(err)
	}

	// A node does not wait if a person must solve the problem.
	kmstest.WriteSite(t, dir, map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file,
		hadoopconf.MetastoreURI: server.URI("nobody_here", "test1"), "hadoop.kms.http.host": "127.0.0.1"})
	if err := Serve(t.Context(), Options{Dir: dir, Port: node.port, Log: slog.New(slog.DiscardHandler),
		Level: new(slog.LevelVar)}); err == nil || !strings.Contains(err.Error(), "nobody_here") {
		t.Errorf("a role that does not exist: %v", err)
	}
}

// TestStartWaitsForZooKeeper: a node also waits for ZooKeeper, which keeps the secrets of
// cookies and the delegation tokens.
func TestStartWaitsForZooKeeper(t *testing.T) {
	server := zktest.Start(t, zktest.Options{})
	server.Stop()
	dir := t.TempDir()
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.MANAGEMENT", "*"))
	kmstest.WriteSite(t, dir, with(signerSite, signerEnsemble, server.Addr, signerPrefix+"auth.type", "none",
		tokensEnable, "true", tokensEnsemble, server.Addr, tokensPrefix+"zkAuthType", "none",
		hadoopconf.ProviderURI, "jceks://file@"+filepath.Join(dir, "kms.keystore"), "hadoop.kms.http.host", "127.0.0.1",
		"claviger.audit.file", filepath.Join(dir, "audit.log")))
	node := newStarting(t, dir)
	log, end := node.begin()
	node.until("it waits for ZooKeeper", func() bool {
		if !node.listens() {
			return false
		}
		status, body := kmstest.Get(t, node.kms, "/readyz", "")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "waits to start") &&
			strings.Contains(body, server.Addr)
	})
	if status, body := kmstest.Get(t, node.kms, "/kms/v1/keys/names", "a"); status != http.StatusServiceUnavailable ||
		!strings.Contains(body, "StandbyException") {
		t.Errorf("a client: %d %s", status, body)
	}
	server.Start()
	node.until("it serves", node.ready)
	if text := log.String(); strings.Count(text, "does not answer; the server tries to start") != 1 {
		t.Errorf("the log says\n%s", text)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}
