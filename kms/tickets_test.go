package kms

import (
	"crypto/tls"
	"net/http"
	"path/filepath"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/certtest"
	"claviger/kms/kmstest"
)

// TestTicketsOfNodes: a client with a TLS session of one node can resume it at another node with the same signer
// secrets, and not at a node with other secrets.
func TestTicketsOfNodes(t *testing.T) {
	authority := certtest.New(t, t.TempDir())
	certificate := authority.Issue("kms", "127.0.0.1")
	node := func(secret string) (url string) {
		t.Helper()
		dir := t.TempDir()
		kmstest.WriteFile(t, filepath.Join(dir, "secret"), secret)
		kmstest.WriteFile(t, filepath.Join(dir, "ssl-server.xml"), kmstest.SiteXML("ssl.server.keystore.location",
			certificate))
		kmstest.WriteSite(t, dir, map[string]string{
			hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "kms.keystore"),
			"hadoop.kms.http.host": "127.0.0.1", "hadoop.kms.http.port": "0", "hadoop.kms.ssl.enabled": "true",
			"claviger.audit.file": filepath.Join(dir, "audit.log"), signerKind: "file",
			"hadoop.kms.authentication.signature.secret.file": filepath.Join(dir, "secret"),
		})
		return serve(t, dir)
	}
	a, b, other := node("ours"), node("ours"), node("another site's")
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: authority.Pool(),
		ClientSessionCache: tls.NewLRUClientSessionCache(1), ServerName: "127.0.0.1"}}
	for _, c := range []struct {
		url     string
		resumed bool
	}{{a, false}, {b, true}, {a, true}, {other, false}, {b, false}} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.TLS.DidResume != c.resumed {
			t.Errorf("%s: resumed %t, want %t", c.url, resp.TLS.DidResume, c.resumed)
		}
	}
}
