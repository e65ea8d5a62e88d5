package zookeeper

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"go.uber.org/goleak"

	"claviger"
	"claviger/internal/zktest"
	"claviger/metastore"
	"claviger/metastore/storetest"
	"claviger/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open connects to servers, "h:p,h:p/chroot".
func open(t testing.TB, servers string, change func(*Config)) *Client {
	t.Helper()
	e, err := ParseEnsemble(servers)
	if err != nil {
		t.Fatal(err)
	}
	conf := Config{Ensemble: e, Property: "the.property", SessionTimeout: 6 * time.Second,
		ConnectTimeout: 5 * time.Second, RetryTimeout: 15 * time.Second}
	if change != nil {
		change(&conf)
	}
	c, err := Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func tokens(t testing.TB, c *Client) *Tokens {
	t.Helper()
	d, err := NewTokens(c, "zkdtsm")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func signers(t testing.TB, c *Client) *Signers {
	t.Helper()
	s, err := NewSigners(c, "/hadoop-kms/hadoop-auth-signature-secret")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestContracts runs the suites of the contracts. Each test has its own chroot, which does not exist before.
func TestContracts(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t, zktest.Options{})
	n := 0
	two := func(t *testing.T) (a, b *Client) {
		n++
		at := fmt.Sprintf("%s/of/test%d", server.Addr, n)
		return open(t, at, nil), open(t, at, nil)
	}
	t.Run("Delegations", func(t *testing.T) {
		storetest.Delegations(t, func(t *testing.T) (metastore.Delegations, metastore.Delegations) {
			a, b := two(t)
			return tokens(t, a), tokens(t, b)
		})
	})
	t.Run("Signers", func(t *testing.T) {
		storetest.Signers(t, func(t *testing.T) (metastore.Signers, metastore.Signers) {
			a, b := two(t)
			return signers(t, a), signers(t, b)
		})
	})
	t.Run("Foreign nodes", func(t *testing.T) {
		a, _ := two(t)
		testForeignNodes(t, a)
	})
	t.Run("ACL", func(t *testing.T) {
		a, _ := two(t)
		if _, err := tokens(t, a).NextKeyID(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/zkdtsm", "/zkdtsm/ZKDTSMRoot", "/zkdtsm/ZKDTSMRoot/ZKDTSMKeyIdRoot"} {
			acl, _, err := a.zk.GetACL(a.conf.Ensemble.Chroot + path)
			if err != nil || len(acl) != 1 || acl[0] != (zk.ACL{Perms: zk.PermAll, Scheme: "world", ID: "anyone"}) {
				t.Errorf("%s has the ACL %v (%v)", path, acl, err)
			}
		}
	})
}

// testForeignNodes tests nodes that are not in our format.
func testForeignNodes(t *testing.T, c *Client) {
	ctx := t.Context()
	d := tokens(t, c)
	for path, data := range map[string]string{
		"ZKDTSMTokensRoot/DT_7": "", "ZKDTSMTokensRoot/DT_8": "\x00", "ZKDTSMTokensRoot/DT_x": "x",
		"ZKDTSMTokensRoot/other":   "x",
		"ZKDTSMMasterKeyRoot/DK_3": "\x03", "ZKDTSMMasterKeyRoot/DK_y": "",
	} {
		if _, err := c.create(ctx, "test", "/zkdtsm/ZKDTSMRoot/"+path, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int32{7, 8} {
		if got, ok, err := d.Delegation(ctx, n); ok || err != nil {
			t.Errorf("other data is a token: %v, %v", got, err)
		}
		if ok, err := d.RenewDelegation(ctx, n, time.Now()); ok || err != nil {
			t.Errorf("other data was renewed: %v, %v", ok, err)
		}
	}
	if keys, err := d.MasterKeys(ctx); err != nil || len(keys) != 0 {
		t.Errorf("keys %v, %v", keys, err)
	}
	if n, err := d.RemoveExpired(ctx, time.Now()); err != nil || n != 0 {
		t.Errorf("%d removed, %v", n, err)
	}
	if err := d.PutDelegation(ctx, metastore.Delegation{Sequence: 1, Identifier: []byte("no identifier"),
		Password: secret.Bytes("p")}); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("PutDelegation accepts a token without an identifier: %v", err)
	}
	if _, err := c.create(ctx, "test", "/zkdtsm/ZKDTSMRoot/ZKDTSMSeqNumRoot", []byte("many bytes")); err != nil {
		t.Fatal(err)
	}
	if n, err := d.NextSequences(ctx, 1); err == nil || !strings.Contains(err.Error(), "ZKDTSMSeqNumRoot") {
		t.Errorf("the next number is %d, %v", n, err)
	}
	s := signers(t, c)
	if _, err := c.create(ctx, "test", s.path, []byte{0, 0, 0, 1}); err != nil {
		t.Fatal(err)
	}
	if got, _, err := s.SignerSecrets(ctx); err == nil || !strings.Contains(err.Error(), "version 1") ||
		!strings.Contains(err.Error(), s.path) {
		t.Errorf("secrets of a newer format: %v, %v", got, err)
	}
}

// TestRestart kills the server while nodes use it, and starts it again. The operations wait and then continue; no
// number is used twice, and no token is lost.
func TestRestart(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t, zktest.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	longRetry := func(c *Config) { c.RetryTimeout = time.Minute }
	stop := make(chan struct{})
	var group sync.WaitGroup
	var mu sync.Mutex
	used := make(map[int32]bool)
	for range 2 {
		d := tokens(t, open(t, server.Addr, longRetry))
		group.Go(func() {
			for n := int32(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				first, err := d.NextSequences(ctx, 1)
				if err == nil {
					err = d.PutDelegation(ctx, metastore.Delegation{Sequence: first, Identifier: make([]byte, 8),
						Password: secret.Bytes("p"), Renew: time.Now()})
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if used[first] {
					t.Errorf("number %d is used twice", first)
				}
				used[first] = true
				mu.Unlock()
			}
		})
	}
	waitForTokens := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			mu.Lock()
			done := len(used) >= n
			mu.Unlock()
			if done {
				return
			}
			if time.Now().After(deadline) || t.Failed() {
				t.Fatalf("there are not %d tokens after a minute", n)
			}
		}
	}
	waitForTokens(50)
	server.Kill()
	server.Start()
	mu.Lock()
	n := len(used)
	mu.Unlock()
	waitForTokens(n + 50)
	close(stop)
	group.Wait()
	d := tokens(t, open(t, server.Addr, nil))
	for sequence := range used {
		if _, ok, err := d.Delegation(ctx, sequence); err != nil || !ok {
			t.Fatalf("token %d is lost: %v", sequence, err)
		}
	}
}

// TestStall pauses the server: an operation fails when its time ends, and an operation with more time succeeds when the
// server resumes.
func TestStall(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t, zktest.Options{})
	c := open(t, server.Addr, func(c *Config) { c.RetryTimeout = 500 * time.Millisecond })
	longer := open(t, server.Addr, func(c *Config) { c.RetryTimeout = time.Minute })
	for _, c := range []*Client{c, longer} {
		for i := 0; ; i++ { // the first connection may take longer than RetryTimeout
			if err := c.Check(t.Context()); err == nil {
				break
			} else if i == 200 {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	server.Pause()
	begin := time.Now()
	err := c.Check(t.Context())
	if took := time.Since(begin); !claviger.Is(err, claviger.Unavailable) || took > 10*time.Second {
		t.Errorf("a paused server: %v after %v", err, took)
	}
	if err == nil || !strings.Contains(err.Error(), "the.property") || !strings.Contains(err.Error(), server.Addr) {
		t.Errorf("the error must name property and ensemble: %v", err)
	}
	checkFailsFast(t, c) // even if the library still has its connection
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := longer.Check(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a context that ends: %v", err)
	}
	waiting := make(chan error, 1)
	go func() { waiting <- longer.Check(t.Context()) }()
	time.Sleep(200 * time.Millisecond) // the call must begin while the server is paused
	server.Resume()
	if err := <-waiting; err != nil {
		t.Errorf("after the server has resumed: %v", err)
	}
	for deadline := time.Now().Add(30 * time.Second); c.Check(t.Context()) != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still an error after the server has resumed: %v", c.Check(t.Context()))
		}
	}
}

// checkFailsFast checks that most callers do not wait, because the client knows that the servers do not answer.
// It tries several times, because on a busy machine callers can be slow by themselves.
func checkFailsFast(t *testing.T, c *Client) {
	t.Helper()
	var n int32
	for range 5 {
		if n = fastFailures(t, c); n >= 45 {
			return
		}
	}
	t.Errorf("only %d of 50 callers failed at once, although the client knows that the servers do not answer", n)
}

// fastFailures makes 50 concurrent calls to servers that do not answer, and returns the number of calls that failed at
// once.
func fastFailures(t *testing.T, c *Client) int32 {
	t.Helper()
	var group sync.WaitGroup
	var quick atomic.Int32
	begun := time.Now()
	for range 50 {
		group.Go(func() {
			if err := c.Check(t.Context()); !claviger.Is(err, claviger.Unavailable) {
				t.Errorf("servers that do not answer: %v", err)
			}
			if time.Since(begun) < c.answerLimit/2 {
				quick.Add(1)
			}
		})
	}
	group.Wait()
	return quick.Load()
}

// TestFailover: if some servers of the list do not answer, another server is used.
func TestFailover(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t, zktest.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 { // the library tries the servers in random order
		c := open(t, l.Addr().String()+",127.0.0.1:1,"+server.Addr,
			func(c *Config) { c.ConnectTimeout = 300 * time.Millisecond })
		if err := c.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestEnsemble: nodes use different servers of an ensemble, and each node sees the changes of the others at once. Two
// servers are killed and restarted, one of them the leader.
func TestEnsemble(t *testing.T) {
	t.Parallel()
	servers := zktest.StartEnsemble(t, zktest.Options{})
	addresses := make([]string, len(servers))
	for i, s := range servers {
		addresses[i] = s.Addr
	}
	longRetry := func(c *Config) { c.RetryTimeout = time.Minute }
	var nodes []*Tokens
	for _, a := range addresses {
		nodes = append(nodes, tokens(t, open(t, a, longRetry)))
	}
	put := func(node *Tokens, sequence int32) metastore.Delegation {
		t.Helper()
		d := metastore.Delegation{Sequence: sequence, Identifier: make([]byte, 8), Password: secret.Bytes("p"),
			Renew: time.Now()}
		if err := node.PutDelegation(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	for n := range int32(30) {
		put(nodes[n%3], n)
		for _, node := range nodes {
			if _, ok, err := node.Delegation(t.Context(), n); err != nil || !ok {
				t.Fatalf("token %d is not seen at once: %v", n, err)
			}
		}
		if ok, err := nodes[(n+1)%3].RemoveDelegation(t.Context(), n); err != nil || !ok {
			t.Fatalf("remove: %v, %v", ok, err)
		}
		for _, node := range nodes {
			if _, ok, err := node.Delegation(t.Context(), n); err != nil || ok {
				t.Fatalf("token %d is seen after its removal (%v)", n, err)
			}
		}
	}
	moving := tokens(t, open(t, strings.Join(addresses, ","), longRetry))
	used := make(map[int32]bool)
	// First the last server is the leader. After it is killed, another server is the leader.
	for round, s := range []*zktest.Server{servers[2], servers[0]} {
		s.Kill()
		for range 10 {
			n, err := moving.NextSequences(t.Context(), 1)
			if err != nil || used[n] {
				t.Fatalf("after kill %d: number %d, used before: %v; %v", round+1, n, used[n], err)
			}
			used[n] = true
			put(moving, n)
		}
		s.Start()
	}
	for n := range used {
		for i, node := range nodes {
			if _, ok, err := node.Delegation(t.Context(), n); err != nil || !ok {
				t.Errorf("server %d has lost token %d (%v)", i+1, n, err)
			}
		}
	}
}

// TestTLS: a client with a certificate of the server's authority is served over TLS. Any other client gets kind
// Unavailable.
func TestTLS(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t, zktest.Options{TLS: true, TLSClients: true})
	ca, err := os.ReadFile(server.Certificates.CA)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(server.Certificates.Client, server.Certificates.Client)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	c := open(t, server.Addr, func(c *Config) {
		c.TLS = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	})
	if _, err := tokens(t, c).NextKeyID(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, conf := range map[string]*tls.Config{
		"no certificate": {RootCAs: roots, MinVersion: tls.VersionTLS12},
		"another authority": {RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{pair},
			MinVersion: tls.VersionTLS12},
		"no TLS": nil,
	} {
		c := open(t, server.Addr, func(c *Config) { c.TLS, c.RetryTimeout = conf, time.Second })
		if err := c.Check(t.Context()); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

// TestNoServer: without a server each call fails with kind Unavailable within RetryTimeout, and after Close with kind
// Closed.
func TestNoServer(t *testing.T) {
	c := open(t, "127.0.0.1:1", func(c *Config) { c.RetryTimeout = 300 * time.Millisecond })
	err := c.Check(t.Context())
	if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "the.property") ||
		!strings.Contains(err.Error(), "connection refused") {
		t.Errorf("without a server: %v", err)
	}
	checkFailsFast(t, c)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Check(t.Context()); !claviger.Is(err, claviger.Closed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestHostileServer answers connections with bytes that no ZooKeeper server sends.
func TestHostileServer(t *testing.T) {
	t.Parallel()
	connected := "\x00\x00\x00\x25" + strings.Repeat("\x00", 7) + "\x10" + "\x00\x00\x00\x00\x00\x00\x00\x07" +
		"\x00\x00\x00\x10" + strings.Repeat("p", 16) + "\x00"
	for name, answer := range map[string]string{
		"a long first frame": "\x7f\xff\xff\xff", "a short first frame": "\x00\x00\x00\x01\x00",
		"another protocol": "HTTP/1.1 400 Bad Request\r\n\r\n",
		"a long frame":     connected + "\xff\xff\xff\xff", "a short frame": connected + "\x00\x00\x00\x02ab",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var group sync.WaitGroup
			group.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = io.WriteString(conn, answer)      // fails if the client has disconnected
					_, _ = io.CopyN(io.Discard, conn, 1<<10) // until the client disconnects
					_ = conn.Close()
				}
			})
			c := open(t, l.Addr().String(), func(c *Config) { c.RetryTimeout = 300 * time.Millisecond })
			if err := c.Check(t.Context()); !claviger.Is(err, claviger.Unavailable) {
				t.Errorf("%v", err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			_ = l.Close()
			group.Wait()
		})
	}
}
