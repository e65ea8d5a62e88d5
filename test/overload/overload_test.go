package overload

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authn"
	"claviger/authz"
	"claviger/keyring"
	"claviger/kmsapi"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/test/hadoop"
)

// node is one KMS. The nodes share their keys.
type node struct {
	*memory.Provider
	hang    chan struct{} // closed when large generates must not hang any more
	hanging chan struct{} // gets one element for each generate that hangs
	refused atomic.Int64  // generates
	served  atomic.Int64
}

func (n *node) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	if len(blocks) >= 100*claviger.IVSize {
		select {
		case n.hanging <- struct{}{}:
			<-n.hang
		case <-n.hang:
		}
	}
	return n.Provider.EncryptBlocks(ctx, version, blocks)
}

func (n *node) EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error {
	return n.EncryptBlocks(ctx, v.Name, blocks)
}

type noAudit struct{}

func (noAudit) Log(context.Context, audit.Event) {}
func (noAudit) Err() error                       { return nil }
func (noAudit) Close() error                     { return nil }

// start serves at the address of l until the test ends.
func (n *node) start(t *testing.T, l net.Listener) {
	t.Helper()
	policy, _ := authz.Parse([]authz.Property{
		{Name: "default.key.acl.GENERATE_EEK", Value: "*"}, {Name: "default.key.acl.DECRYPT_EEK", Value: "*"},
	})
	ring, err := keyring.New(keyring.Config{
		Primary: n, Policy: func() *authz.Policy { return policy }, KeyAuthorization: true, Audit: noAudit{},
		QueueSize: 10, QueueLowWatermark: 0.3, QueueExpiry: time.Hour, QueueFillers: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	auth, err := authn.New(authn.Config{Handler: authn.Simple{}, Validity: time.Hour,
		Secrets: authn.NewRandomSecrets(time.Hour, nil)})
	if err != nil {
		t.Fatal(err)
	}
	api, err := kmsapi.New(kmsapi.Config{
		Ring: ring, Auth: auth, Audit: noAudit{}, Log: slog.New(slog.DiscardHandler), KeyAuthorization: true,
		Limits:    kmsapi.Limits{MaxKeys: 1000, MaxBatch: 1000, MaxBody: 1 << 20},
		Admission: kmsapi.Admission{Decrypts: 10, Generates: 1, Batches: 1, Management: 1, Wait: 10 * time.Millisecond},
		Observe: func(op string, status, _ int, _ time.Duration) {
			switch {
			case op == "generate_eek" && status == http.StatusServiceUnavailable:
				n.refused.Add(1)
			case op == "generate_eek" && status == http.StatusOK:
				n.served.Add(1)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: api, ReadHeaderTimeout: 10 * time.Second, DisableGeneralOptionsHandler: true}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
		if err := ring.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestStockClientFailsOver: one of two nodes already serves as many generates as it accepts. Hadoop's own client
// gets every EDEK from the other node, and decrypts it at any node.
func TestStockClientFailsOver(t *testing.T) {
	hadoop.Require(t)
	keys := memory.New(memory.Config{SequentialIDs: true})
	if _, err := keys.Create(t.Context(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher,
		BitLength: 128}); err != nil {
		t.Fatal(err)
	}
	// A kms:// URI has several hosts and one port.
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(first.Addr().String())
	second, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", port))
	if err != nil {
		t.Fatal(err)
	}
	newNode := func() *node {
		return &node{Provider: keys, hang: make(chan struct{}), hanging: make(chan struct{})}
	}
	full, free := newNode(), newNode()
	full.start(t, first)
	free.start(t, second)

	taken := make(chan error, 1)
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
			"http://127.0.0.1:"+port+"/kms/v1/key/k/_eek?eek_op=generate&num_keys=500&user.name=nn", nil)
		if err != nil {
			taken <- err
			return
		}
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			err = res.Body.Close()
		}
		taken <- err
	}()
	<-full.hanging

	const edeks = 30
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "log4j.properties"), []byte("log4j.rootLogger=OFF\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	classPath := hadoop.RuntimeClassPath(t)
	classes := hadoop.Javac(t, classPath, filepath.Join(hadoop.Root(), "test", "overload", "java"))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "java", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx256m",
		"-Djava.net.preferIPv4Stack=true", "-Dlog4j.configuration=file:"+filepath.Join(dir, "log4j.properties"),
		"-cp", classes+string(os.PathListSeparator)+classPath, "Generate",
		"kms://http@127.0.0.1;127.0.0.2:"+port+"/kms", strconv.Itoa(edeks))
	cmd.Env = append(os.Environ(), "HADOOP_USER_NAME=alice")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("the client: %v\n%s", err, out)
	}
	if n := strings.Count(string(out), "opened 16\n"); n != edeks ||
		!strings.Contains(string(out), "LoadBalancingKMSClientProvider") {
		t.Errorf("%d EDEKs of %d:\n%s", n, edeks, out)
	}
	if full.refused.Load() == 0 || full.served.Load() > 0 || free.served.Load() == 0 {
		t.Errorf("the full node refused %d and served %d, the other served %d", full.refused.Load(),
			full.served.Load(), free.served.Load())
	}
	close(full.hang)
	if err := <-taken; err != nil {
		t.Error(err)
	}
}
