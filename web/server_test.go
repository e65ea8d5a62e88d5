package web

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/internal/logtest"
)

// newServer returns a server for a test, which listens at a free port of this host. Its
// handler answers "ok" once it has read the whole request.
func newServer() *Server {
	log := slog.New(slog.DiscardHandler)
	return &Server{
		Address: "127.0.0.1:0", AddressName: "--listen", Log: log,
		Connections: NewConnections(ConnectionLimits{Total: 256}, log),
		Limits: Limits{HeadBytes: 16 << 10, Head: 10 * time.Second, Request: 10 * time.Second,
			Answer: 10 * time.Second, Idle: 10 * time.Second, Stop: 10 * time.Second},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err == nil {
				_, _ = io.WriteString(w, "ok\n")
			}
		}),
	}
}

// start starts a server, and stops it at the end of the test.
func start(t *testing.T, s *Server) *Running {
	t.Helper()
	r, err := s.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func dial(t *testing.T, addr string) net.Conn { return dialFrom(t, "127.0.0.1", addr) }

const goodRequest = "GET /healthz HTTP/1.1\r\nHost: kms\r\n\r\n"

// status sends a request and returns the status of the answer, 0 where the connection is
// closed without one.
func status(t *testing.T, addr, request string) int {
	t.Helper()
	conn := dial(t, addr)
	_, _ = io.WriteString(conn, request) // the server may have closed the connection
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// TestRun: the ready file and OnReady get the base URL, the log says so, and the end of ctx
// ends the server without an error.
func TestRun(t *testing.T) {
	ready := filepath.Join(t.TempDir(), "ready")
	var text logtest.Buffer
	s := newServer()
	s.Path, s.ReadyFile, s.About, s.Log = "/kms", ready, []any{"provider", "p1"},
		slog.New(slog.NewTextHandler(&text, nil))
	urls := make(chan string, 1)
	s.OnReady = func(url string) error { urls <- url; return nil }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	url := <-urls
	for tries := 0; !strings.Contains(text.String(), "msg=serving url="+url+" provider=p1"); tries++ {
		if tries == 500 {
			t.Fatal(&text)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if data, err := os.ReadFile(ready); err != nil || string(data) != url+"\n" || !strings.HasSuffix(url, "/kms") {
		t.Errorf("%q, URL %s: %v", data, url, err)
	}
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", resp.Request.URL.Host); err == nil {
		t.Error("it still listens")
	}
}

// TestRunFails: if a server cannot become ready, Run returns the reason.
func TestRunFails(t *testing.T) {
	taken := start(t, newServer())
	for name, c := range map[string]struct {
		change func(*Server)
		want   string
	}{
		"port in use": {func(s *Server) { s.Address = taken.Addr().String() }, "--listen: "},
		"no folder": {func(s *Server) { s.ReadyFile = filepath.Join(t.TempDir(), "none", "ready") },
			"--ready-file: "},
		"OnReady says none": {func(s *Server) { s.OnReady = func(string) error { return errors.New("no room") } },
			"no room"},
	} {
		s := newServer()
		c.change(s)
		if err := s.Run(t.Context()); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestURL: the URL of a server that listens on all addresses has the host localhost.
func TestURL(t *testing.T) {
	for address, host := range map[string]string{":0": "localhost", "0.0.0.0:0": "localhost",
		"127.0.0.1:0": "127.0.0.1", "localhost:0": "localhost", "[::]:0": "localhost"} {
		s := newServer()
		s.Address = address
		r := start(t, s)
		_, port, err := net.SplitHostPort(r.Addr().String())
		if want := "http://" + net.JoinHostPort(host, port); err != nil || r.URL() != want {
			t.Errorf("%s: %s, want %s (%v)", address, r.URL(), want, err)
		}
	}
}

// underWay starts a server whose handler waits until finish is closed, and sends it a
// request. It returns when the handler runs; answer returns the answer's body.
func underWay(t *testing.T, stop time.Duration) (r *Running, log *logtest.Buffer, finish chan struct{},
	answer func() (string, error)) {
	t.Helper()
	log, finish = new(logtest.Buffer), make(chan struct{})
	began := make(chan struct{})
	s := newServer()
	s.Limits.Stop, s.Log = stop, slog.New(slog.NewTextHandler(log, nil))
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(began)
		<-finish
		_, _ = io.WriteString(w, "ok\n")
	})
	r, err := s.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, r.Addr().String())
	if _, err := io.WriteString(conn, goodRequest); err != nil {
		t.Fatal(err)
	}
	<-began
	return r, log, finish, func() (string, error) {
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		var b bytes.Buffer
		_, err = b.ReadFrom(resp.Body)
		return b.String(), err
	}
}

// TestStop: a request under way is answered, and no new one is accepted.
func TestStop(t *testing.T) {
	r, _, finish, answer := underWay(t, 10*time.Second)
	stopped := make(chan error, 1)
	go func() { stopped <- r.Stop() }()
	<-r.Ended() // the listener is closed
	if conn, err := net.Dial("tcp", r.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("a stopping server accepts connections")
	}
	select {
	case err := <-stopped:
		t.Errorf("stopped before the answer: %v", err)
	default:
	}
	close(finish)
	if got, err := answer(); got != "ok\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// TestStopCutsOff: after the time limit, requests under way are cut off, and the log says so and
// names the property of the limit.
func TestStopCutsOff(t *testing.T) {
	for _, limit := range []time.Duration{0, 50 * time.Millisecond} {
		r, log, finish, answer := underWay(t, limit)
		r.server.Limits.StopName = "claviger.shutdown.timeout"
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
		if got, err := answer(); err == nil {
			t.Errorf("limit %v: answered %q", limit, got)
		}
		for _, want := range []string{"cut off", "property=claviger.shutdown.timeout"} {
			if warned := strings.Contains(log.String(), want); warned != (limit > 0) {
				t.Errorf("limit %v: %q: %t\n%s", limit, want, warned, log)
			}
		}
		close(finish)
	}
}

// TestWait: a server that ended by itself is an error.
func TestWait(t *testing.T) {
	s := newServer()
	r, err := s.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = r.http.Close()
	if err := r.Wait(t.Context()); !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
}

// TestHandle: Handle replaces the handler of a running server.
func TestHandle(t *testing.T) {
	s := newServer()
	s.Handler = http.NotFoundHandler()
	r := start(t, s)
	if got := status(t, r.Addr().String(), goodRequest); got != http.StatusNotFound {
		t.Error(got)
	}
	r.Handle(newServer().Handler)
	if got := status(t, r.Addr().String(), goodRequest); got != http.StatusOK {
		t.Error(got)
	}
}

// TestHeadersOfEveryAnswer: each answer has the configured headers, in the spelling of the setting.
func TestHeadersOfEveryAnswer(t *testing.T) {
	s := newServer()
	s.Headers = map[string]string{"Strict-Transport-Security": "max-age=63072000", "X-XSS-Protection": "0"}
	addr := start(t, s).Addr().String()
	for _, request := range []string{goodRequest, "OPTIONS * HTTP/1.1\r\nHost: kms\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"} {
		conn := dial(t, addr)
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 4<<10)
		n, err := conn.Read(head)
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range s.Headers {
			if !strings.Contains(string(head[:n]), "\r\n"+name+": "+value+"\r\n") {
				t.Errorf("%q: answer without %s:\n%s", request, name, head[:n])
			}
		}
	}
}

// TestHTTP1: the beginning of HTTP/2 is refused, and so is a request whose head is too long.
func TestHTTP1(t *testing.T) {
	addr := start(t, newServer()).Addr().String()
	if got := status(t, addr, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); got != http.StatusHTTPVersionNotSupported {
		t.Error(got)
	}
	long := "GET / HTTP/1.1\r\nHost: kms\r\nX-Long: " + strings.Repeat("a", 32<<10) + "\r\n\r\n"
	if got := status(t, addr, long); got != http.StatusRequestHeaderFieldsTooLarge {
		t.Error(got)
	}
}
