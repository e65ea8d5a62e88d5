package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/certtest"
)

// serveWith runs a KMS with properties over what it needs, and returns its
// address.
func serveWith(t *testing.T, props map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	all := map[string]string{hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "kms.keystore"), "hadoop.kms.http.host": "127.0.0.1", "claviger.audit.file": filepath.Join(dir, "audit.log")}
	maps.Copy(all, props)
	writeSite(t, dir, all)
	return strings.TrimSuffix(strings.TrimPrefix(serve(t, dir), "http://"), "/kms")
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// status sends a request and returns the status of the answer, 0 where the
// connection is closed without one.
func status(t *testing.T, addr, request string) int {
	t.Helper()
	conn := dial(t, addr)
	_, _ = io.WriteString(conn, request) // the server may have closed it half way
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

const goodRequest = "GET /healthz HTTP/1.1\r\nHost: kms\r\n\r\n"

// TestRequestShapes: what may be two requests to two servers is refused, and so
// is what is too long.
func TestRequestShapes(t *testing.T) {
	addr := serveWith(t, nil)
	const post = "POST /kms/v1/keys?user.name=a HTTP/1.1\r\nHost: kms\r\nContent-Type: application/json\r\n"
	for name, c := range map[string]struct {
		request string
		status  []int
	}{
		"good":                {goodRequest, []int{200}},
		"8 KiB x 200 headers": {"GET /healthz HTTP/1.1\r\nHost: kms\r\n" + strings.Repeat("X-Long: "+strings.Repeat("a", 8<<10)+"\r\n", 200) + "\r\n", []int{431}},
		"a long request line": {"GET /" + strings.Repeat("a", 100<<10) + " HTTP/1.1\r\nHost: kms\r\n\r\n", []int{431}},
		// RFC 9112, section 6.3: chunks count, and here they hold nothing.
		"length and chunks":                {post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", []int{500}},
		"two lengths":                      {post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", []int{400}},
		"two lengths in one":               {post + "Content-Length: 2, 3\r\n\r\n{}x", []int{400}},
		"a signed length":                  {post + "Content-Length: +2\r\n\r\n{}", []int{400}},
		"chunks by another name":           {post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", []int{501}},
		"a coding before chunks":           {post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", []int{501}},
		"a blank before the colon":         {"GET /healthz HTTP/1.1\r\nHost: kms\r\nContent-Length : 2\r\n\r\n{}", []int{400}},
		"a header folded into a second":    {"GET /healthz HTTP/1.1\r\nHost : kms\r\n X: y\r\n\r\n", []int{400}},
		"no host":                          {"GET /healthz HTTP/1.1\r\n\r\n", []int{400}},
		"two hosts":                        {"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", []int{400}},
		"HTTP/2 without having agreed":     {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{505}},
		"HTTP/3 in name":                   {"GET /healthz HTTP/3.0\r\nHost: kms\r\n\r\n", []int{505}},
		"a TLS handshake at the http port": {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", []int{400}},
	} {
		t.Run(name, func(t *testing.T) {
			got := status(t, addr, c.request)
			for _, want := range c.status {
				if got == want {
					return
				}
			}
			t.Errorf("answered %d, want one of %v", got, c.status)
		})
	}
}

// TestSlowClients: who dribbles, or says nothing, is cut off, and who reads a
// keep-alive connection without using it, too.
func TestSlowClients(t *testing.T) {
	addr := serveWith(t, map[string]string{"claviger.http.head.timeout": "300ms", "claviger.http.request.timeout": "600ms", "hadoop.http.idle_timeout.ms": "300"})
	for name, first := range map[string]string{
		"says nothing":     "",
		"dribbles a head":  "GET /healthz HTTP/1.1\r\nHost: kms\r\nX-Slow: ",
		"dribbles a body":  "POST /kms/v1/keys?user.name=a HTTP/1.1\r\nHost: kms\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
		"dribbles chunks":  "POST /kms/v1/keys?user.name=a HTTP/1.1\r\nHost: kms\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
		"keeps a good one": goodRequest,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := dial(t, addr)
			began := time.Now()
			if _, err := io.WriteString(conn, first); err != nil {
				t.Fatal(err)
			}
			stop := make(chan struct{})
			var dribble sync.WaitGroup
			if strings.HasPrefix(name, "dribbles") {
				drop := "a"
				if name == "dribbles chunks" {
					drop = "1\r\na\r\n"
				}
				dribble.Go(func() {
					tick := time.NewTicker(50 * time.Millisecond)
					defer tick.Stop()
					for {
						select {
						case <-stop:
							return
						case <-tick.C:
							if _, err := io.WriteString(conn, drop); err != nil {
								return
							}
						}
					}
				})
			}
			_, err := io.Copy(io.Discard, conn) // until the server has closed it
			close(stop)
			dribble.Wait()
			if took := time.Since(began); took > 10*time.Second || took < 150*time.Millisecond {
				t.Errorf("it was cut off after %v (%v)", took, err)
			}
		})
	}
}

// TestSlowHandshakes: a TLS handshake has as long as a head.
func TestSlowHandshakes(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "ssl-server.xml"), siteXML("ssl.server.keystore.type", "pem", "ssl.server.keystore.location", certtest.New(t, dir).Issue("server", "127.0.0.1")))
	writeSite(t, dir, map[string]string{
		hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "kms.keystore"), "hadoop.kms.http.host": "127.0.0.1", "claviger.audit.file": filepath.Join(dir, "audit.log"),
		"hadoop.kms.ssl.enabled": "true", "claviger.http.head.timeout": "300ms",
	})
	addr := strings.TrimSuffix(strings.TrimPrefix(serve(t, dir), "https://"), "/kms")
	for name, first := range map[string]string{"says nothing": "", "begins": "\x16\x03\x01\x02\x00"} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, addr)
			began := time.Now()
			if _, err := io.WriteString(conn, first); err != nil {
				t.Fatal(err)
			}
			_, err := io.Copy(io.Discard, conn)
			if took := time.Since(began); took > 10*time.Second || took < 150*time.Millisecond {
				t.Errorf("it was cut off after %v (%v)", took, err)
			}
		})
	}
}

// TestMaxConnections: no more than so many, and one that ends makes room.
func TestMaxConnections(t *testing.T) {
	const most = 5
	addr := serveWith(t, map[string]string{maxConnectionsName: fmt.Sprint(most)})
	var held []net.Conn
	for range most {
		conn := dial(t, addr)
		held = append(held, conn)
		if _, err := io.WriteString(conn, goodRequest); err != nil {
			t.Fatal(err)
		}
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil { //nolint:bodyclose // the connection is kept
			t.Fatalf("connection %d: %v", len(held), err)
		}
	}
	began := time.Now()
	if got := status(t, addr, goodRequest); got != 0 || time.Since(began) > 5*time.Second {
		t.Errorf("one too many is answered %d after %v", got, time.Since(began))
	}
	_ = held[0].Close()
	for tries := 0; ; tries++ {
		if status(t, addr, goodRequest) == 200 {
			break
		}
		if tries == 200 {
			t.Fatal("a connection that has ended makes no room")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// descriptors counts those that this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// dropped opens connections, so many at once, speaks on each, drops half of them
// by a reset, and demands that goroutines and descriptors are then as before.
func dropped(t *testing.T, addr string, total, atOnce int, speak func(i int, conn net.Conn)) {
	t.Helper()
	http.DefaultClient.CloseIdleConnections()
	time.Sleep(50 * time.Millisecond)
	goroutines, open := runtime.NumGoroutine(), descriptors(t)
	for i := 0; i < total; i += atOnce {
		conns := make([]net.Conn, atOnce)
		for j := range conns {
			conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
			if err != nil {
				t.Fatalf("connection %d: %v", i+j, err)
			}
			conns[j] = conn
			speak(i+j, conn)
		}
		for j, conn := range conns {
			if j%2 == 0 {
				_ = conn.(*net.TCPConn).SetLinger(0) // ends with a reset
			}
			_ = conn.Close()
		}
	}
	var g, fd int
	for range 500 {
		if g, fd = runtime.NumGoroutine(), descriptors(t); g <= goroutines+2 && fd <= open+2 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("goroutines %d, before %d; descriptors %d, before %d", g, goroutines, fd, open)
}

const namesRequest = "GET /kms/v1/keys/names?user.name=a HTTP/1.1\r\nHost: kms\r\n\r\n"

// droppedRequests are what is said before a connection is dropped.
var droppedRequests = []string{"", "GET /kms/v1/k", goodRequest, "POST /kms/v1/keys?user.name=a HTTP/1.1\r\nHost: kms\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{", namesRequest}

// TestConnectionsLeaveNothing opens 10,000 connections and drops them in every
// state.
func TestConnectionsLeaveNothing(t *testing.T) {
	addr := serveWith(t, nil)
	// So that what is made once is there before.
	if status(t, addr, goodRequest) != 200 || status(t, addr, namesRequest) != 200 {
		t.Fatal("no answer")
	}
	dropped(t, addr, 10000, 100, func(i int, conn net.Conn) { _, _ = io.WriteString(conn, droppedRequests[i%len(droppedRequests)]) })
}

// TestTLSConnectionsLeaveNothing does so before, in and after the handshake, which
// costs both sides too much to do it as often.
func TestTLSConnectionsLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	authority := certtest.New(t, dir)
	writeFile(t, filepath.Join(dir, "ssl-server.xml"), siteXML("ssl.server.keystore.type", "pem", "ssl.server.keystore.location", authority.Issue("server", "127.0.0.1")))
	writeSite(t, dir, map[string]string{
		hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "kms.keystore"), "hadoop.kms.http.host": "127.0.0.1", "claviger.audit.file": filepath.Join(dir, "audit.log"),
		"hadoop.kms.ssl.enabled": "true",
	})
	addr := strings.TrimSuffix(strings.TrimPrefix(serve(t, dir), "https://"), "/kms")
	client := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1)} //nolint:gosec // whom it talks to is not what is tested
	shake := func(conn net.Conn) *tls.Conn {
		_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
		c := tls.Client(conn, client)
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := shake(dial(t, addr))
	_, _ = io.WriteString(c, namesRequest)
	if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	} else {
		_ = resp.Body.Close()
	}
	_ = c.Close()
	dropped(t, addr, 2000, 50, func(i int, conn net.Conn) {
		switch i % 4 {
		case 0:
			_, _ = io.WriteString(conn, "\x16\x03\x01\x02\x00\x01") // the beginning of a ClientHello
		case 1:
			_, _ = io.WriteString(conn, goodRequest) // no TLS at all
		case 2:
			_, _ = io.WriteString(shake(conn), droppedRequests[i/4%len(droppedRequests)])
		}
	})
}

func TestHeadersOfEveryAnswer(t *testing.T) {
	addr := serveWith(t, map[string]string{headerPrefix + "Strict-Transport-Security": "max-age=63072000", headerPrefix + "X-Frame-Options": "DENY", headerPrefix + "X-XSS-Protection": "0"})
	for _, path := range []string{"/healthz", "/kms/v1/keys/names?user.name=a", "/nothing"} {
		resp, err := http.Get("http://" + addr + path) //nolint:noctx // of a server of this test
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		for name, want := range map[string]string{"Strict-Transport-Security": "max-age=63072000", "X-Frame-Options": "DENY", "X-XSS-Protection": "0"} {
			if got := resp.Header.Values(name); len(got) != 1 || got[0] != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestWebSettings(t *testing.T) {
	for name, value := range map[string]string{
		headerPrefix + "X Y": "a", headerPrefix + "X-Y": "a\r\nSet-Cookie: b", "claviger.http.head.timeout": "0", "hadoop.http.idle_timeout.ms": "0", maxConnectionsName: "0",
		perAddressName: "8193", unlimitedName: "balancer.example.com",
	} {
		conf := hadoopconf.New(t.TempDir(), nil)
		for _, k := range hadoopconf.KMS {
			if k.Default != "" {
				conf.SetDefault(k.Name, k.Default)
			}
		}
		conf.Override(name, value, "kms-site.xml")
		r := &reader{conf: conf}
		if r.web(); r.err == nil || !strings.Contains(r.err.Error(), name) {
			t.Errorf("%s = %q: %v", name, value, r.err)
		}
	}
	conf := hadoopconf.New(t.TempDir(), nil)
	for _, k := range hadoopconf.KMS {
		if k.Default != "" {
			conf.SetDefault(k.Name, k.Default)
		}
	}
	conf.Override(maxMemoryName, "134217727", "kms-site.xml") // one byte less than two bodies
	r := &reader{conf: conf}
	if readLimits(r); r.err == nil || !strings.Contains(r.err.Error(), maxMemoryName) || !strings.Contains(r.err.Error(), "134217728") {
		t.Errorf("%s: %v", maxMemoryName, r.err)
	}
}
