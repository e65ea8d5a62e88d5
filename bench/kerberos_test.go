//go:build cgo && !nogssapi

package bench

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"claviger/gssapi"
	"claviger/hadoopconf"
	"claviger/internal/kdctest"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/provider/kmsclient"
	"claviger/terminal"
)

// serveKerberos runs a KMS that requires Kerberos, and returns its URL and a login of the user bench.
func serveKerberos(t *testing.T) (base string, login kmsclient.Negotiate) {
	t.Helper()
	kdc := kdctest.Start(t)
	t.Setenv("KRB5_CONFIG", kdc.Krb5Conf)
	t.Setenv("KRB5RCACHEDIR", t.TempDir())
	users, dir := kdc.Keytab("users.keytab", "bench"), t.TempDir()
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI:                          "jceks://file@" + filepath.Join(dir, "kms.keystore"),
		hadoopconf.MetastoreURI:                         "sqlite://" + filepath.Join(dir, "c.db"),
		"hadoop.kms.http.host":                          "127.0.0.1",
		"hadoop.kms.key.authorization.enable":           "false",
		"hadoop.kms.authentication.type":                "kerberos",
		"hadoop.kms.authentication.kerberos.keytab":     kdc.Keytab("http.keytab", "HTTP/localhost"),
		"hadoop.kms.authentication.kerberos.principal":  "HTTP/localhost",
		"hadoop.kms.authentication.kerberos.name.rules": "RULE:[1:$1]",
		"claviger.audit.file":                           filepath.Join(dir, "audit.log"),
	})
	url := kmstest.Serve(t, func(ctx context.Context, ready string) error {
		return kms.Serve(ctx, kms.Options{Dir: dir, ReadyFile: ready, Log: slog.New(slog.DiscardHandler),
			Level: new(slog.LevelVar)})
	})
	return strings.Replace(url, "127.0.0.1", "localhost", 1), func(host string) (kmsclient.Negotiation, error) {
		return gssapi.NewInitiator(gssapi.InitiatorConfig{Keytab: users, Principal: "bench", Target: "HTTP@" + host,
			SPNEGO: true, Mutual: true})
	}
}

// TestKerberos: with --auth kerberos, each request of a load has a ticket of its own and no cookie, on kept and on new
// connections. A KMS that does not prove its identity in its answers fails the command.
func TestKerberos(t *testing.T) {
	base, login := serveKerberos(t)
	var mu sync.Mutex
	decrypts, tickets, proofs := 0, map[string]bool{}, true
	proxy := newProxy(t, base, func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if strings.Contains(r.URL.RawQuery, "eek_op=decrypt") && r.Header.Get("Cookie") == "" {
			decrypts++
			tickets[r.Header.Get("Authorization")] = true
		}
	}, func(answer *http.Response) error {
		mu.Lock()
		defer mu.Unlock()
		if answer.Request.Method == http.MethodPost && !proofs {
			answer.Header.Del("WWW-Authenticate")
		}
		return nil
	})
	proxy.Start()
	run := func(connect string) error {
		o := Options{Loads: []string{loadDecrypt}, Connections: 2, Duration: shortest, Rounds: 1, Auth: authKerberos,
			Connect: connect, Quiet: true, Client: kmsclient.Options{User: "bench", Negotiate: login},
			Out: *terminal.To(io.Discard)}
		return Run(t.Context(), &o, []string{strings.Replace(proxy.URL, "127.0.0.1", "localhost", 1) + "/kms"},
			io.Discard)
	}
	for _, connect := range []string{connectKeep, connectNew} {
		if err := run(connect); err != nil {
			t.Fatal(connect, err)
		}
	}
	if len(tickets) != decrypts || decrypts <= 2*decryptEDEKs || tickets[""] {
		t.Errorf("%d decrypts, %d different tickets", decrypts, len(tickets))
	}
	proofs = false
	if err := run(connectKeep); err == nil || !strings.Contains(err.Error(), "did not prove its identity") {
		t.Errorf("a KMS without proof: %v", err)
	}
}
