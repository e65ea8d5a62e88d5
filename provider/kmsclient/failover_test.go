package kmsclient_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/internal/logtest"
	"claviger/provider"
	"claviger/provider/kmsclient"
)

// twoHosts serves two handlers on the same port of 127.0.0.1 and 127.0.0.2.
func twoHosts(t *testing.T, f1, f2 http.Handler) (s1, s2 *httptest.Server) {
	t.Helper()
	for range 20 { // until a port is free on both
		l1, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l1.Addr().String())
		l2, err := net.Listen("tcp", "127.0.0.2:"+port)
		if err != nil {
			_ = l1.Close()
			continue
		}
		start := func(l net.Listener, h http.Handler) *httptest.Server {
			s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h,
				ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}}
			s.Start()
			t.Cleanup(s.Close)
			return s
		}
		return start(l1, f1), start(l2, f2)
	}
	t.Skip("no port is free on 127.0.0.1 and 127.0.0.2")
	return nil, nil
}

func spec(name string) provider.Spec {
	return provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128}
}

// TestRoundRobinAndFailover checks that two hosts get half of the calls each, and that one host gets all calls while
// the other is down.
func TestRoundRobinAndFailover(t *testing.T) {
	f1, f2 := newFake(t), newFake(t)
	s1, s2 := twoHosts(t, f1, f2)
	p := open(t, uriOf(s1, s2), kmsclient.Options{})
	for range 20 {
		if _, err := p.Keys(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n1, n2 := len(f1.takeCalls()), len(f2.takeCalls()); n1 != 10 || n2 != 10 {
		t.Errorf("%d and %d calls, want 10 each", n1, n2)
	}
	s1.Close()
	// Make a new client without open connections. A request on a connection that the host has just closed might have
	// been read, so the client would not repeat it.
	p = open(t, uriOf(s1, s2), kmsclient.Options{})
	for i := range 20 {
		// A creation also fails over: a host that does not listen cannot have executed it.
		if _, err := p.Create(t.Context(), spec(fmt.Sprint("k", i))); err != nil {
			t.Fatalf("with one host down: %v", err)
		}
	}
	if n := f2.keys.Objects(); n != 20 {
		t.Errorf("%d keys at the remaining host, want 20", n)
	}
	s2.Close()
	_, err := p.Keys(t.Context())
	if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "127.0.0.1") ||
		!strings.Contains(err.Error(), "127.0.0.2") {
		t.Errorf("with both hosts down: %v", err)
	}
	if _, err = p.Create(t.Context(), spec("none")); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("Create with both hosts down: %v", err)
	}
}

// TestDeadHostIsLast checks that a host that cannot be reached is the last one to be tried for a while. So it delays
// one call, and not every second call.
func TestDeadHostIsLast(t *testing.T) {
	f := newFake(t)
	s1, s2 := twoHosts(t, f, f)
	var buf logtest.Buffer
	p := open(t, uriOf(s1, s2), kmsclient.Options{Log: slog.New(slog.NewTextHandler(&buf, nil))})
	s1.Close()
	for range 20 {
		if _, err := p.Keys(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(buf.String(), "KMS host failed"); n < 1 || n > 3 { // at most once in 5 s
		t.Errorf("the dead host was tried %d times:\n%s", n, buf.String())
	}
}

// TestFailoverIsLogged checks that the log names the failed host, the host that answered and the number of the attempt,
// and that it distinguishes a retry of the same host from another host.
func TestFailoverIsLogged(t *testing.T) {
	f := newFake(t)
	var calls atomic.Int32
	f.lock(func() {
		f.fault = func(w http.ResponseWriter, r *http.Request) bool {
			first := strings.HasSuffix(r.URL.Path, "/names") && calls.Add(1) == 1
			if first {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return first
		}
	})
	s1, s2 := twoHosts(t, f, f)
	for uri, want := range map[string]string{
		uriOf(s1):     "KMS host failed, and answered a retry",
		uriOf(s1, s1): "KMS host failed, and answered a retry",
		uriOf(s1, s2): "KMS host failed, and another answered",
	} {
		calls.Store(0)
		var buf logtest.Buffer
		p := open(t, uri, kmsclient.Options{MaxRetries: 1, SleepBase: time.Millisecond, SleepMax: time.Millisecond,
			Log: slog.New(slog.NewTextHandler(&buf, nil))})
		if _, err := p.Keys(t.Context()); err != nil {
			t.Fatal(err)
		}
		if text := buf.String(); !strings.Contains(text, want) || !strings.Contains(text, "attempt=2") {
			t.Errorf("%s: the log says %q, want %q", uri, text, want)
		}
	}
}

// hangUp closes the connection without an answer.
func hangUp(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = conn.Close()
	}
}

// TestUnknownOutcomeIsNotRepeated breaks the connection after the host has read the request. A reading request is sent
// to the next host; a change is not sent again.
func TestUnknownOutcomeIsNotRepeated(t *testing.T) {
	f1, f2 := newFake(t), newFake(t)
	f2.keys = f1.keys
	s1, s2 := twoHosts(t, f1, f2)
	p := open(t, uriOf(s1, s2), kmsclient.Options{})
	if _, err := p.Create(t.Context(), spec("k")); err != nil {
		t.Fatal(err)
	}
	edeks, err := p.Generate(t.Context(), "k", 2)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f1.takeCalls(), f2.takeCalls()
	var changes atomic.Int32
	faulty := func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodOptions || strings.HasSuffix(r.URL.Path, "/names") ||
			strings.HasSuffix(r.URL.Path, "/metadata") {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if r.Method == http.MethodDelete || r.Method == http.MethodPost && !strings.Contains(r.URL.Path, "_") {
			changes.Add(1)
		}
		hangUp(w)
		return true
	}
	both := func(fault func(http.ResponseWriter, *http.Request) bool) {
		f1.lock(func() { f1.fault = fault })
		f2.lock(func() { f2.fault = fault })
	}
	both(faulty)
	for name, call := range map[string]func() error{
		"Create": func() error { _, err := p.Create(t.Context(), spec("new")); return err },
		"Roll":   func() error { _, err := p.Roll(t.Context(), "k", nil); return err },
		"Delete": func() error { return p.Delete(t.Context(), "k") },
	} {
		changes.Store(0)
		err := call()
		if claviger.KindOf(err) != claviger.Internal ||
			!strings.Contains(err.Error(), "may have been executed") {
			t.Errorf("%s: %v", name, err)
		}
		if n := changes.Load(); n != 1 {
			t.Errorf("%s was sent %d times", name, n)
		}
	}
	if _, err := p.Unwrap(t.Context(), "k", "", edeks); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("Unwrap with all hosts failing: %v", err)
	}

	// While one host works, every reading request succeeds, whichever host is the first.
	both(nil)
	f1.lock(func() { f1.fault = faulty })
	for range 6 {
		if _, err := p.Unwrap(t.Context(), "k", "", edeks); err != nil {
			t.Errorf("Unwrap with one host failing: %v", err)
		}
		if _, err := p.Reencrypt(t.Context(), "k", edeks); err != nil {
			t.Errorf("Reencrypt with one host failing: %v", err)
		}
		if _, err := p.Generate(t.Context(), "k", 3); err != nil {
			t.Errorf("Generate with one host failing: %v", err)
		}
	}
}

// TestWhichAnswersFailOver checks which answers are final. After an answer that concerns only the host, the next host
// is tried.
func TestWhichAnswersFailOver(t *testing.T) {
	for _, c := range []struct {
		status      int
		body        string
		read, write int32 // wanted attempts of one reading and one changing call
		kind        claviger.Kind
		text        string
	}{
		{500, `{"RemoteException":{"message":"disk full","exception":"IOException",` +
			`"javaClassName":"java.io.IOException"}}`,
			3, 1, claviger.Internal, "disk full (IOException, 500 Internal Server Error)"},
		{400, `{"RemoteException":{"message":"no such thing","exception":"IllegalArgumentException",` +
			`"javaClassName":"x"}}`, 1, 1, claviger.Invalid, "no such thing"},
		{403, `{"RemoteException":{"message":"User:mig not allowed to do 'GET_KEYS'",` +
			`"exception":"AuthorizationException","javaClassName":"x"}}`, 1, 1, claviger.Denied,
			"hadoop.kms.acl.GET_KEYS"},
		{503, `busy`, 3, 3, claviger.Unavailable, "503"},
		{502, `<html>`, 3, 1, claviger.Unavailable, "502"},
		{404, `<html>`, 1, 1, claviger.Internal, "does the URI have the path of the KMS?"},
		{302, ``, 1, 1, claviger.Internal, "302"},
	} {
		var n atomic.Int32
		f := newFake(t)
		f.fault = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodOptions || !strings.HasPrefix(r.URL.Path, "/kms/v1/") {
				return false
			}
			n.Add(1)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.body)
			return true
		}
		s1, s2 := twoHosts(t, f, f)
		p := open(t, uriOf(s1, s2), kmsclient.Options{})
		_, err := p.Keys(t.Context())
		if n.Load() != c.read || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%d: %d reads, want %d: %v", c.status, n.Load(), c.read, err)
		}
		// If every host fails, the error is that of the last answer.
		if got := claviger.KindOf(err); got != c.kind {
			t.Errorf("%d: kind %v, want %v: %v", c.status, got, c.kind, err)
		}
		n.Store(0)
		_, err = p.Create(t.Context(), spec("k"))
		if n.Load() != c.write || err == nil {
			t.Errorf("%d: %d creations, want %d: %v", c.status, n.Load(), c.write, err)
		}
	}
}

// TestAnsweredBusy checks which errors are marked with ErrAnswered: those after a KMS answered that it is busy, even if
// the context ends before the last attempt, or the other host does not answer. An answer of a balancer does not count.
func TestAnsweredBusy(t *testing.T) {
	const standby = `{"RemoteException":{"message":"ask another node","exception":"StandbyException",` +
		`"javaClassName":"org.apache.hadoop.ipc.StandbyException"}}`
	for _, c := range []struct {
		name      string
		status    int
		body      string
		firstOnly bool // all later answers are 502
		timeout   time.Duration
		want      bool
	}{
		{"a KMS", 503, standby, false, time.Minute, true},
		{"a KMS, until the time ends", 503, standby, false, 50 * time.Millisecond, true},
		{"a KMS, and a dead host", 503, standby, true, time.Minute, true},
		{"a balancer", 503, `busy`, false, time.Minute, false},
		{"a gateway", 502, standby, false, time.Minute, false},
	} {
		var n atomic.Int32
		f := newFake(t)
		f.fault = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodOptions || !strings.HasPrefix(r.URL.Path, "/kms/v1/") {
				return false
			}
			status, body := c.status, c.body
			if n.Add(1) > 1 && c.firstOnly {
				status, body = 502, "<html>"
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
			return true
		}
		s1, s2 := twoHosts(t, f, f)
		opt := kmsclient.Options{}
		if c.timeout < time.Second {
			opt = kmsclient.Options{MaxRetries: 100, SleepBase: 20 * time.Millisecond, SleepMax: 20 * time.Millisecond}
		}
		ctx, cancel := context.WithTimeout(t.Context(), c.timeout)
		_, err := open(t, uriOf(s1, s2), opt).Keys(ctx)
		cancel()
		if !claviger.Is(err, claviger.Unavailable) || errors.Is(err, provider.ErrAnswered) != c.want {
			t.Errorf("%s: answered %v, want %v: %v", c.name, errors.Is(err, provider.ErrAnswered), c.want, err)
		}
	}
}

// TestDeadline: a call ends with the caller's context, with the client's timeout, or with Close. A creation that timed
// out may have been executed, so its error is not Unavailable.
func TestDeadline(t *testing.T) {
	f := newFake(t)
	release := make(chan struct{})
	f.fault = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodOptions {
			return false
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	}
	s := serve(t, f)
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	p := open(t, uriOf(s), kmsclient.Options{})
	if _, err := p.Keys(ctx); !errors.Is(err, context.DeadlineExceeded) || !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a caller's deadline: %v", err)
	}
	short := open(t, uriOf(s), kmsclient.Options{Timeout: 500 * time.Millisecond})
	if _, err := short.Keys(t.Context()); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "deadline exceeded") {
		t.Errorf("the client's timeout: %v", err)
	}
	if _, err := short.Create(t.Context(), spec("k")); claviger.KindOf(err) != claviger.Internal {
		t.Errorf("a creation that timed out: %v", err)
	}
	// Close ends running calls.
	done := make(chan error)
	go func() { _, err := p.Keys(t.Context()); done <- err }()
	time.Sleep(20 * time.Millisecond) // so that the call runs; a later call would fail in the same way
	_ = p.Close()
	if err := <-done; !claviger.Is(err, claviger.Closed) {
		t.Errorf("Close during a call: %v", err)
	}
}

// TestConnectionsAreBounded checks that connections are bounded and used again.
func TestConnectionsAreBounded(t *testing.T) {
	f := newFake(t)
	var conns, inside, most atomic.Int32
	s := httptest.NewUnstartedServer(f)
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	p := open(t, uriOf(s), kmsclient.Options{MaxConnsPerHost: 8, Parallel: 5})
	if _, err := p.Create(t.Context(), spec("k")); err != nil {
		t.Fatal(err)
	}
	edeks, err := p.Generate(t.Context(), "k", 200)
	if err != nil {
		t.Fatal(err)
	}
	f.lock(func() {
		f.fault = func(_ http.ResponseWriter, r *http.Request) bool {
			v := inside.Add(1)
			defer inside.Add(-1)
			for m := most.Load(); v > m && !most.CompareAndSwap(m, v); m = most.Load() {
			}
			time.Sleep(time.Millisecond) // time of one request at the KMS
			return false
		}
	})
	if _, err := p.Unwrap(t.Context(), "k", "", edeks); err != nil {
		t.Fatal(err)
	}
	if most.Load() > 5 {
		t.Errorf("%d requests of one Unwrap at once, want 5 at most", most.Load())
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := p.Unwrap(t.Context(), "k", "", edeks[:50]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if conns.Load() > 8 {
		t.Errorf("%d connections were opened, want 8 at most", conns.Load())
	}
}

// TestUnwrapStopsAtFirstError checks that Unwrap sends few more requests after the first EDEK that cannot be opened.
func TestUnwrapStopsAtFirstError(t *testing.T) {
	f := newFake(t)
	s := serve(t, f)
	p := open(t, uriOf(s), kmsclient.Options{Parallel: 2})
	if _, err := p.Create(t.Context(), spec("k")); err != nil {
		t.Fatal(err)
	}
	edeks, err := p.Generate(t.Context(), "k", 300)
	if err != nil {
		t.Fatal(err)
	}
	edeks[3].Version = "k@77"
	f.takeCalls()
	if _, err := p.Unwrap(t.Context(), "k", "", edeks); !claviger.Is(err, claviger.VersionNotFound) ||
		!strings.Contains(err.Error(), "k@77") {
		t.Errorf("%v", err)
	}
	if n := len(f.takeCalls()); n > 100 {
		t.Errorf("%d of 300 requests were sent although the 4th failed", n)
	}
}

// TestSchemeMismatch: if the URI has the wrong scheme, or the certificate is refused, the error names the cure.
func TestSchemeMismatch(t *testing.T) {
	plain := serve(t, newFake(t))
	secure := httptest.NewUnstartedServer(newFake(t))
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())

	p := open(t, uriOf(secure), kmsclient.Options{TLS: &tls.Config{RootCAs: roots}})
	if _, err := p.Keys(t.Context()); err != nil {
		t.Errorf("https: %v", err)
	}
	for name, c := range map[string]struct{ uri, want string }{
		"http to https": {strings.Replace(uriOf(secure), "https@", "http@", 1),
			"it speaks https, but the URI says http: write kms://https@"},
		"https to http": {strings.Replace(uriOf(plain), "http@", "https@", 1),
			"it speaks http, but the URI says https: write kms://http@"},
		"unknown authority": {uriOf(secure), "ssl.client.truststore.location"},
		"wrong name": {strings.Replace(uriOf(secure), "127.0.0.1", "127.0.0.3", 1),
			"use the host name that its certificate has"},
	} {
		opt := kmsclient.Options{}
		if name == "wrong name" {
			opt.TLS = &tls.Config{RootCAs: roots}
		}
		p := open(t, c.uri, opt)
		if name == "wrong name" {
			// The test server listens on 127.0.0.1 only: name it by a server name.
			opt.TLS.ServerName = "elsewhere.test"
			p = open(t, uriOf(secure), opt)
		}
		if _, err := p.Keys(t.Context()); !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// Servers other than Go's answer plain bytes with a TLS alert.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			_, _ = c.Write([]byte{0x15, 3, 3, 0, 2, 2, 0x50})
			_ = c.Close()
		}
	})
	defer wg.Wait()
	defer func() { _ = l.Close() }()
	p = open(t, "kms://http@"+l.Addr().String()+"/kms", kmsclient.Options{})
	if _, err := p.Keys(t.Context()); err == nil || !strings.Contains(err.Error(), "it speaks https") {
		t.Errorf("an answer in TLS: %v", err)
	}
}
