package nodes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/internal/pgtest"
	"claviger/provider/kmsclient"
	"claviger/test/hadoop"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }

// site is what the nodes share: a database, a token and a configuration.
type site struct {
	conf   string
	hsm    hadoop.HSM
	store  string // URI
	binary string // "" is this release
}

func newSite(t *testing.T, more hadoop.Conf) *site {
	t.Helper()
	s := &site{conf: t.TempDir(), hsm: hadoop.NewHSM(t), store: pgtest.Database(t)}
	s.write(t, more)
	return s
}

// write writes the configuration of the site.
func (s *site) write(t *testing.T, more hadoop.Conf) {
	t.Helper()
	hadoop.Conf{
		"hadoop.kms.http.host":        "127.0.0.1",
		"hadoop.kms.key.provider.uri": s.hsm.URI,
		"claviger.metastore.uri":      s.store,
		// Deletes that reach the token can be interrupted at more moments.
		"claviger.delete.soft": "false",
	}.With(more).Write(t, filepath.Join(s.conf, "kms-site.xml"))
	hadoop.OpenACLs().Write(t, filepath.Join(s.conf, "kms-acls.xml"))
}

// node is one process.
type node struct {
	*hadoop.Process
	url string
}

// start starts a node at any free port.
func (s *site) start(t *testing.T) *node {
	t.Helper()
	return s.startAt(t, 0)
}

// startAt starts a node. If the node ends, the test fails with the reason.
func (s *site) startAt(t *testing.T, port int) *node {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	if s.binary == "" {
		s.binary = hadoop.Binary(t)
	}
	cmd := exec.CommandContext(context.Background(), s.binary, "kms", "--conf", s.conf, "--http-port",
		fmt.Sprint(port), "--ready-file", ready)
	cmd.Env = append(os.Environ(), s.hsm.Env...)
	n := &node{Process: hadoop.Start(t, "claviger", cmd)}
	n.WaitFor("its ready file", func() bool {
		b, err := os.ReadFile(ready)
		n.url = strings.TrimSpace(string(b))
		return err == nil
	})
	return n
}

// client returns a Hadoop client that uses only this node.
func (n *node) client(t *testing.T) *kmsclient.Provider {
	t.Helper()
	p, err := kmsclient.New(hadoop.ProviderURI(n.url),
		kmsclient.Options{User: "nn", MaxRetries: 1, Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}
