package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/pgtest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11"
)

// lockedBuffer is a log that another goroutine writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestStartWaits: a node that starts while PostgreSQL is away waits, says so, sends
// clients to other nodes, and serves when PostgreSQL is there. One that was stopped
// meanwhile ends.
func TestStartWaits(t *testing.T) {
	server := pgtest.Start(t)
	uri := server.Database(t)
	server.Stop(t)
	dir := t.TempDir()
	tok := softhsmtest.New(t)
	file := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label, PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "kms-acls.xml"), siteXML("default.key.acl.MANAGEMENT", "*"))
	writeSite(t, dir, map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file, hadoopconf.MetastoreURI: uri, "hadoop.kms.http.host": "127.0.0.1", "claviger.audit.file": filepath.Join(dir, "audit.log")})
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	kms := fmt.Sprintf("http://127.0.0.1:%d/kms", port)
	begin := func() (log *lockedBuffer, end func() error) {
		ctx, stop := context.WithCancel(context.Background())
		log = &lockedBuffer{}
		ended := make(chan error, 1)
		go func() {
			ended <- serveKMS(ctx, kmsFlags{conf: dir, port: port, ready: filepath.Join(dir, "ready")}, slog.New(slog.NewTextHandler(log, nil)), new(slog.LevelVar))
		}()
		return log, func() error { stop(); return <-ended }
	}
	until := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("within a minute never: %s", what)
			}
		}
	}
	listens := func() bool {
		resp, err := http.Get(strings.TrimSuffix(kms, "/kms") + "/healthz") //nolint:noctx // of a server of this test
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	_, end := begin()
	until("it listens", listens)
	if err := end(); err != nil {
		t.Errorf("stopped while it waited: %v", err)
	}

	log, end := begin()
	until("it listens", listens)
	status, body := fetch(t, kms, "/readyz", "")
	if status != http.StatusServiceUnavailable || !strings.Contains(body, "waits to start") || !strings.Contains(body, server.Addr) || !strings.Contains(body, hadoopconf.MetastoreURI) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := fetch(t, kms, "/kms/v1/keys/names", "a"); status != http.StatusServiceUnavailable || !strings.Contains(body, "StandbyException") {
		t.Errorf("a client: %d %s", status, body)
	}
	if _, err := os.Stat(filepath.Join(dir, "ready")); err == nil {
		t.Error("the ready file is there")
	}
	server.Start(t)
	until("it serves", func() bool { status, _ := fetch(t, kms, "/readyz", ""); return status == http.StatusOK })
	if status, names := fetch(t, kms, "/kms/v1/keys/names", "a"); status != http.StatusOK || strings.TrimSpace(names) != "[]" {
		t.Errorf("a client: %d %s", status, names)
	}
	if said := log.String(); strings.Count(said, "is away; it is tried again") != 1 {
		t.Errorf("the log says\n%s", said)
	}
	if err := end(); err != nil {
		t.Error(err)
	}

	// What a person must mend is not waited for.
	writeSite(t, dir, map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file, hadoopconf.MetastoreURI: server.URI("nobody_here", "test1"), "hadoop.kms.http.host": "127.0.0.1"})
	if err := serveKMS(t.Context(), kmsFlags{conf: dir, port: port}, slog.New(slog.DiscardHandler), new(slog.LevelVar)); err == nil || !strings.Contains(err.Error(), "nobody_here") {
		t.Errorf("a role that does not exist: %v", err)
	}
}
