package drills

import (
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/internal/certtest"
	"claviger/internal/faultmodule"
	"claviger/internal/porttest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms/kmstest"
	"claviger/provider/kmsclient"
)

// logsIn waits until the server has logged in once more.
func logsIn(t *testing.T, fault *faultmodule.Module) {
	t.Helper()
	before := fault.Calls(faultmodule.Login)
	fault.LogOut()
	for end := time.Now().Add(time.Minute); fault.Calls(faultmodule.Login) == before; {
		if time.Now().After(end) {
			t.Fatal("the server does not log in")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestRotatePIN plays "The HSM's PIN" of docs/rotation.md.
func TestRotatePIN(t *testing.T) {
	n, tok, fault := hsmNode(t, nil)
	n.start()
	l := use(t, client(t, kmsclient.Options{}, n.uriOf()), "zone")
	l.step("the server runs with the old PIN")
	made := filepath.Join(filepath.Dir(tok.PINFile), "pin.new")
	kmstest.WriteFile(t, made, "new-pin-4711\n")
	softhsmtest.ChangePIN(t, tok.Module, "12345678", "new-pin-4711")
	l.step("the PIN was changed in the HSM; open sessions stay")
	if out := command(t, 4, "hsm", "inspect", "--conf", n.dir); !strings.Contains(out, "refuses the PIN of file") {
		t.Errorf("hsm inspect with the old PIN: %s", out)
	}
	if err := os.Rename(made, tok.PINFile); err != nil {
		t.Fatal(err)
	}
	command(t, 0, "hsm", "inspect", "--conf", n.dir)
	l.step("the file has the new PIN")
	logsIn(t, fault)
	l.step("the server has lost its login, and has logged in with the new PIN")
	n.isReady("write", http.StatusOK)
}

// TestRotateCertificate plays the renewal of a certificate of docs/tls.md.
func TestRotateCertificate(t *testing.T) {
	n := &node{t: t, dir: t.TempDir()}
	ca := certtest.New(t, n.dir)
	kmstest.WriteFile(t, filepath.Join(n.dir, "ssl-server.xml"), kmstest.SiteXML("ssl.server.keystore.type", "pem",
		"ssl.server.keystore.location", ca.Issue("server", "127.0.0.1")))
	n.write(map[string]string{"hadoop.kms.ssl.enabled": "true",
		"hadoop.kms.key.provider.uri": "jceks://file@" + filepath.Join(n.dir, "kms.keystore")})
	n.start()
	conf := &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12}
	served := func() string {
		conn, err := tls.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(n.url, "https://"), "/kms"), conf)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() //nolint:errcheck // it has sent nothing
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	l := use(t, client(t, kmsclient.Options{TLS: conf}, n.uriOf()), "zone")
	before := served()
	l.step("the server shows certificate %s", before)
	ca.Issue("server", "127.0.0.1")
	began := time.Now()
	for served() == before {
		if time.Since(began) > time.Minute {
			t.Fatal("the server shows the old certificate after a minute")
		}
		time.Sleep(100 * time.Millisecond)
	}
	l.step("the file was replaced; after %v new connections get certificate %s", time.Since(began).Round(time.Second),
		served())
}

// TestRotateCookieSecret plays "Other secrets" of docs/rotation.md for the secret of cookies in a file: it is replaced
// on every node, and one node after the other is restarted.
func TestRotateCookieSecret(t *testing.T) {
	var nodes [2]*node
	port, err := porttest.Free()
	if err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(t.TempDir(), "kms.keystore") // both nodes have the same keys
	for i := range nodes {
		n := &node{t: t, dir: t.TempDir(), port: port}
		kmstest.WriteFile(t, filepath.Join(n.dir, "secret"), "the first secret of cookies")
		n.write(map[string]string{"hadoop.kms.http.host": []string{"127.0.0.1", "127.0.0.2"}[i],
			"hadoop.kms.key.provider.uri":                      "jceks://file@" + keys,
			"hadoop.kms.authentication.signer.secret.provider": "file",
			"hadoop.kms.authentication.signature.secret.file":  filepath.Join(n.dir, "secret")})
		n.start()
		nodes[i] = n
	}
	l := use(t, client(t, kmsclient.Options{}, nodes[0].uriOf()), "zone")
	names := func(n *node) string { return n.url + "/v1/keys/names" }
	status, old := get(t, names(nodes[0]), "alice", nil)
	if status != http.StatusOK || old == nil {
		t.Fatalf("a login: %d, %v", status, old)
	}
	accepts := func(what string, n *node, c *http.Cookie, want int) {
		t.Helper()
		if status, _ := get(t, names(n), "", c); status != want {
			t.Errorf("%s: %d, want %d", what, status, want)
		}
	}
	accepts("a cookie of node 1 at node 2", nodes[1], old, http.StatusOK)
	l.step("a cookie of node 1 is accepted at node 2")
	for _, n := range nodes {
		kmstest.WriteFile(t, filepath.Join(n.dir, "secret"), "the second secret of cookies")
	}
	accepts("the old cookie before the restart", nodes[0], old, http.StatusOK)
	l.step("the file was replaced on both nodes")
	nodes[1].end()
	nodes[1].start()
	accepts("the old cookie at the restarted node", nodes[1], old, http.StatusUnauthorized)
	status, made := get(t, names(nodes[1]), "alice", nil)
	if status != http.StatusOK || made == nil {
		t.Fatalf("a new login: %d, %v", status, made)
	}
	l.step("node 2 was restarted: the old cookie is refused there, and a client logs in once more")
	l.stop()
	nodes[0].end()
	nodes[0].start()
	accepts("the new cookie of node 2 at node 1", nodes[0], made, http.StatusOK)
	accepts("the old cookie at node 1", nodes[0], old, http.StatusUnauthorized)
	t.Log("node 1 was restarted: it accepts the new cookie of node 2, and refuses the old one")
}
