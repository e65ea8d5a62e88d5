package web

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/internal/certtest"
	"claviger/internal/logtest"
	"claviger/internal/processtest"
)

// loadPair reads a certificate and its key from one file.
func loadPair(file string) ([]tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(file, file)
	return []tls.Certificate{c}, err
}

// withTLS gives a server a certificate for 127.0.0.1.
func withTLS(t *testing.T, s *Server) {
	t.Helper()
	file := certtest.New(t, t.TempDir()).Issue("server", "127.0.0.1")
	load := func() ([]tls.Certificate, error) { return loadPair(file) }
	conf, err := FollowCertificate([]string{file}, load, s.Log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conf.Close)
	s.TLS = conf.Config
}

// dribble writes text to a connection again and again, until stop is called.
func dribble(conn net.Conn, text string) (stop func()) {
	ended := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				if _, err := io.WriteString(conn, text); err != nil {
					return
				}
			}
		}
	})
	return func() { close(ended); group.Wait() }
}

// cutOff sends first, and then repeated again and again, slowly. The server must close the connection after a short
// time, but not at once.
func cutOff(t *testing.T, addr, first, repeated string) {
	t.Helper()
	conn := dial(t, addr)
	began := time.Now()
	if _, err := io.WriteString(conn, first); err != nil {
		t.Fatal(err)
	}
	stop := func() {}
	if repeated != "" {
		stop = dribble(conn, repeated)
	}
	_, err := io.Copy(io.Discard, conn) // until the server has closed it
	stop()
	if took := time.Since(began); took > 10*time.Second || took < 50*time.Millisecond {
		t.Errorf("the connection was cut off after %v (%v)", took, err)
	}
}

// TestSlowClients: clients that send slowly or nothing are cut off.
func TestSlowClients(t *testing.T) {
	s := newServer()
	s.Limits.Head, s.Limits.Request, s.Limits.Idle = 100*time.Millisecond, 200*time.Millisecond, 100*time.Millisecond
	addr := start(t, s).Addr().String()
	const post = "POST /kms/v1/keys?user.name=a HTTP/1.1\r\nHost: kms\r\nContent-Type: application/json\r\n"
	for name, c := range map[string]struct{ first, repeated string }{
		"sends nothing":                 {"", ""},
		"dribbles a head":               {"GET /healthz HTTP/1.1\r\nHost: kms\r\nX-Slow: ", "a"},
		"dribbles a body":               {post + "Content-Length: 1000\r\n\r\n{", "a"},
		"dribbles chunks":               {post + "Transfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n"},
		"sends one request and no more": {goodRequest, ""},
	} {
		t.Run(name, func(t *testing.T) { cutOff(t, addr, c.first, c.repeated) })
	}
}

// TestSlowHandshakes: the time limit of a request's head also limits a TLS handshake.
func TestSlowHandshakes(t *testing.T) {
	s := newServer()
	s.Limits.Head = 100 * time.Millisecond
	withTLS(t, s)
	addr := start(t, s).Addr().String()
	for name, first := range map[string]string{"sends nothing": "", "begins": "\x16\x03\x01\x02\x00"} {
		t.Run(name, func(t *testing.T) { cutOff(t, addr, first, "") })
	}
}

// TestSlowReaders: a client that does not read its answer is cut off.
func TestSlowReaders(t *testing.T) {
	s := newServer()
	s.Limits.Answer = 100 * time.Millisecond
	ended := make(chan error, 1)
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := w.Write(make([]byte, 64<<20)) // more than the buffers of the kernel take
		ended <- err
	})
	conn := dial(t, start(t, s).Addr().String())
	if _, err := io.WriteString(conn, goodRequest); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the whole answer was written")
		}
	case <-time.After(10 * time.Second):
		t.Error("the answer still is written")
	}
}

// TestMaxConnections: one more connection than the limit is closed at once, and one that
// ends gives room to another.
func TestMaxConnections(t *testing.T) {
	const total = 5
	s := newServer()
	s.Connections = NewConnections(ConnectionLimits{Total: total}, s.Log)
	addr := start(t, s).Addr().String()
	var open []net.Conn
	for range total {
		conn := dial(t, addr)
		open = append(open, conn)
		if got := page(t, conn, "/healthz"); got != "ok\n" {
			t.Fatalf("connection %d: %q", len(open), got)
		}
	}
	began := time.Now()
	if got := status(t, addr, goodRequest); got != 0 || time.Since(began) > 5*time.Second {
		t.Errorf("the connection over the limit is answered %d after %v", got, time.Since(began))
	}
	_ = open[0].Close()
	for tries := 0; status(t, addr, goodRequest) != http.StatusOK; tries++ {
		if tries == 200 {
			t.Fatal("a connection that has ended still counts")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// page requests a page over the connection; "" if it was closed.
func page(t *testing.T, conn net.Conn, path string) string {
	t.Helper()
	_, _ = io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: kms\r\n\r\n") // the server may have closed it
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return ""
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// figures takes metrics by their names.
type figures map[string]func() float64

func (f figures) Counter(name, _ string, v func() float64) { f[name] = v }
func (f figures) Gauge(name, _ string, v func() float64)   { f[name] = v }

// TestConnectionsOfOneAddress: one address cannot take all connections, whether its peer
// sends nothing or a part of a request; an unlimited address can. Check and the metrics say
// so.
func TestConnectionsOfOneAddress(t *testing.T) {
	s := newServer()
	s.Limits.Head = 2 * time.Second
	unlimited, err := ParseAddresses("127.0.0.8/30, ::1")
	if err != nil {
		t.Fatal(err)
	}
	s.Connections = NewConnections(ConnectionLimits{Total: 8, PerAddress: 3, Unlimited: unlimited, TotalName: "total",
		UnlimitedName: "unlimited"}, s.Log)
	addr := start(t, s).Addr().String()
	began := time.Now()
	// Nothing, half a head, half a TLS handshake.
	for _, sent := range []string{"", "GET /healthz HTTP/1.1\r\nHost: kms\r\nX-Slow: ", "\x16\x03\x01"} {
		if _, err := io.WriteString(dialFrom(t, "127.0.0.2", addr), sent); err != nil {
			t.Fatal(err)
		}
	}
	if got := page(t, dialFrom(t, "127.0.0.2", addr), "/healthz"); got != "" {
		if time.Since(began) > time.Second {
			t.Skip("the machine is too busy: the server has cut off the slow connections meanwhile")
		}
		t.Errorf("one address has one more connection than its limit: %q", got)
	}
	if got := page(t, dialFrom(t, "127.0.0.3", addr), "/healthz"); got != "ok\n" {
		t.Errorf("another address: %q", got)
	}
	f := figures{}
	s.Connections.AddMetrics(f)
	for name, want := range map[string]float64{"": 4, "_of_one_address": 3, "_of_one_address_max": 3,
		"_refused_address_total": 1, "_refused_total": 0, "_max": 8} {
		if got := f["claviger_http_connections"+name](); got != want {
			t.Errorf("claviger_http_connections%s is %v, want %v", name, got, want)
		}
	}
	if err := s.Connections.Check(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "connections of 127.0.0.2 are refused") ||
		!strings.Contains(err.Error(), "unlimited") {
		t.Error(err)
	}
	for i := range 4 {
		if got := page(t, dialFrom(t, "127.0.0.9", addr), "/healthz"); got != "ok\n" {
			t.Errorf("connection %d of an unlimited address: %q", i, got)
		}
	}
	if got := page(t, dialFrom(t, "127.0.0.9", addr), "/healthz"); got != "" {
		t.Errorf("more than all connections: %q", got)
	}
	if err := s.Connections.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "of 8 are open (total)") {
		t.Error(err)
	}
	// The silent connections are cut off, and the address can open others.
	for tries := 0; page(t, dialFrom(t, "127.0.0.2", addr), "/healthz") != "ok\n"; tries++ {
		if tries == 100 {
			t.Fatal("silent connections still count")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// leavesNothing opens total connections, atOnce at a time, calls speak on each, and ends half
// of them by a reset. No goroutine and no descriptor may be left.
func leavesNothing(t *testing.T, addr string, total, atOnce int, speak func(i int, conn net.Conn)) {
	t.Helper()
	goroutines, open := runtime.NumGoroutine(), processtest.Descriptors(t)
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
				_ = conn.(*net.TCPConn).SetLinger(0) // a reset
			}
			_ = conn.Close()
		}
	}
	var g, fd int
	for range 500 {
		if g, fd = runtime.NumGoroutine(), processtest.Descriptors(t); g <= goroutines+2 && fd <= open+2 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("goroutines %d, before %d; descriptors %d, before %d", g, goroutines, fd, open)
}

// droppedRequests are sent before a connection is dropped.
var droppedRequests = []string{"", "GET /kms/v1/k", goodRequest,
	"POST /kms/v1/keys HTTP/1.1\r\nHost: kms\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"}

// TestConnectionsLeaveNothing drops connections in every state.
func TestConnectionsLeaveNothing(t *testing.T) {
	addr := start(t, newServer()).Addr().String()
	leavesNothing(t, addr, 4000, 100, func(i int, conn net.Conn) {
		_, _ = io.WriteString(conn, droppedRequests[i%len(droppedRequests)])
	})
}

// TestTLSConnectionsLeaveNothing drops connections before, in and after the handshake.
func TestTLSConnectionsLeaveNothing(t *testing.T) {
	s := newServer()
	withTLS(t, s)
	addr := start(t, s).Addr().String()
	client := &tls.Config{InsecureSkipVerify: true, //nolint:gosec // the test is not about the server's identity
		ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	leavesNothing(t, addr, 500, 50, func(i int, conn net.Conn) {
		switch i % 4 {
		case 0:
			_, _ = io.WriteString(conn, "\x16\x03\x01\x02\x00\x01") // the beginning of a ClientHello
		case 1:
			_, _ = io.WriteString(conn, goodRequest) // no TLS at all
		case 2:
			_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
			c := tls.Client(conn, client)
			if err := c.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, droppedRequests[i/4%len(droppedRequests)])
		}
	})
}

// TestRefusalsAreLoggedOnceAMinute: a client cannot fill the log.
func TestRefusalsAreLoggedOnceAMinute(t *testing.T) {
	var text logtest.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	c := NewConnections(ConnectionLimits{Total: 1, PerAddress: 1, TotalName: "total"}, log)
	for i := range 100 {
		if got := c.enter(netip.MustParseAddr(fmt.Sprint("10.0.0.", i))); got != (i == 0) {
			t.Fatalf("connection %d: %t", i, got)
		}
	}
	if lines := strings.Count(text.String(), "\n"); lines != 1 || c.refused.Load() != 99 {
		t.Errorf("%d lines, %d refused", lines, c.refused.Load())
	}
}
