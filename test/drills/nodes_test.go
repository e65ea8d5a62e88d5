package drills

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/pgtest"
	"claviger/internal/porttest"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
	"claviger/provider/kmsclient"
)

// copied makes the folder of one more node as docs/nodes/add.md says: a copy of another node's, without the files that
// each node has for itself.
func (n *node) copied(host string) *node {
	n.t.Helper()
	c := &node{t: n.t, dir: n.t.TempDir(), port: n.port}
	files, err := os.ReadDir(n.dir)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range files {
		if name := f.Name(); strings.HasSuffix(name, ".json") || strings.Contains(name, "audit") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(n.dir, f.Name()))
		if err != nil {
			n.t.Fatal(err)
		}
		text = []byte(strings.ReplaceAll(strings.ReplaceAll(string(text), n.dir, c.dir), "127.0.0.1", host))
		kmstest.WriteFile(n.t, filepath.Join(c.dir, f.Name()), string(text))
	}
	return c
}

// newShared makes and starts the first node of several, at 127.0.0.1.
func newShared(t *testing.T) *node {
	t.Helper()
	port, err := porttest.Free()
	if err != nil {
		t.Fatal(err)
	}
	first, tok, _ := hsmNode(t, nil)
	file := filepath.Join(first.dir, "luna.keystore")
	if err := os.Remove(file); err != nil { // without the module that makes faults
		t.Fatal(err)
	}
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label,
		PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	database := strings.ReplaceAll(pgtest.Database(t), "&", "&amp;")
	first.write(map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file,
		hadoopconf.MetastoreURI:                            strings.Replace(database, "127.0.0.1", "localhost", 1),
		"hadoop.kms.authentication.signer.secret.provider": "sql"})
	first.port = port
	first.start()
	return first
}

// uri returns the URI of nodes at these addresses.
func (n *node) uri(addresses ...string) string {
	return fmt.Sprintf("kms://http@%s:%d/kms", strings.Join(addresses, ";"), n.port)
}

// TestAddAndRemoveNode plays docs/nodes/add.md: a second node is added, and then the first one is removed.
func TestAddAndRemoveNode(t *testing.T) {
	first := newShared(t)
	l := use(t, client(t, kmsclient.Options{}, first.uri("127.0.0.1")), "zone")
	old := seal(t, client(t, kmsclient.Options{}, first.uri("127.0.0.1")), "zone")
	token := delegationToken(t, first)
	l.step("one node serves")

	second := first.copied("127.0.0.2")
	if out := command(t, 0, "hsm", "inspect", "--conf", second.dir); !strings.Contains(out, "keys in use") {
		t.Errorf("hsm inspect: %s", out)
	}
	if out := command(t, 0, "metastore", "verify", "--conf", second.dir); strings.Contains(out, "MISSING") {
		t.Errorf("metastore verify: %s", out)
	}
	second.start()
	for _, purpose := range []string{"decrypt", "generate", "write"} {
		second.isReady(purpose, http.StatusOK)
	}
	l.step("a second node sees the same keys, and is ready")
	useToken(t, second, token)
	c := client(t, kmsclient.Options{}, first.uri("127.0.0.1", "127.0.0.2"))
	both := use(t, c, "both")
	both.step("clients were restarted with the URI of both; a job's delegation token is accepted at the new node")

	l.stop() // its URI names the first node alone
	left := use(t, client(t, kmsclient.Options{}, first.uri("127.0.0.2")), "left")
	first.isReady("write", http.StatusOK) // no use of a source is waiting
	first.end()
	left.step("the first node was taken out of the URI, and stopped")
	both.step("a client that was not restarted goes on, too")
	useToken(t, second, token)
	if err := old.opens(t.Context(), c); err != nil {
		t.Errorf("a file of the first node: %v", err)
	}
}

// delegationToken requests a delegation token of alice.
func delegationToken(t *testing.T, n *node) string {
	t.Helper()
	status, body := kmstest.Get(t, n.url, "/kms/v1/?op=GETDELEGATIONTOKEN&renewer=yarn", "alice")
	var answer struct {
		Token struct {
			URL string `json:"urlString"`
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK {
		t.Fatalf("a delegation token: %d %s, %v", status, body, err)
	}
	return answer.Token.URL
}

// useToken sends a request with a delegation token, and without a user.
func useToken(t *testing.T, n *node, token string) {
	t.Helper()
	if status, body := kmstest.Get(t, n.url, "/kms/v1/keys/names?delegation="+url.QueryEscape(token),
		""); status != http.StatusOK {
		t.Errorf("a delegation token at %s: %d %s", n.url, status, body)
	}
}
