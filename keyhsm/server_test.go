package keyhsm

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/internal/certtest"
	"claviger/pkcs11"
	"claviger/web"
)

// running is a running Key HSM, with the certificate of a trustee that it trusts and the certificate of an untrusted
// client. The same authority has issued both.
type running struct {
	*Server
	keeper                  *Keeper
	token                   *pkcs11.Token
	meter                   *pkcs11.Meter
	address                 string
	trustDir                string
	ca                      *certtest.Authority
	own, trustee, untrusted string // files
	stop                    func()
}

func start(t *testing.T) *running {
	t.Helper()
	k, tok, m := newKeeper(t)
	dir := t.TempDir()
	r := &running{keeper: k, token: tok, meter: m, trustDir: filepath.Join(dir, "trust"), ca: certtest.New(t, dir)}
	r.own, r.trustee, r.untrusted = r.ca.Issue("keyhsm", "localhost", "127.0.0.1"), r.ca.Issue("trustee"),
		r.ca.Issue("untrusted")
	if _, _, added, err := AddTrusted(r.trustDir, r.trustee); err != nil || !added {
		t.Fatal(added, err)
	}
	s, err := NewServer(k, r.load, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r.Server = s
	r.serve(t, "127.0.0.1:0")
	return r
}

func (r *running) load() (*Identity, error) {
	cert, err := tls.LoadX509KeyPair(r.own, r.own)
	if err != nil {
		return nil, err
	}
	trust, err := ReadTrust(r.trustDir)
	return &Identity{cert, trust}, err
}

func (r *running) serve(t *testing.T, address string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	server := &web.Server{Address: address, Connections: web.NewConnections(web.ConnectionLimits{Total: 64}, log),
		Limits: Limits, TLS: r.TLS(), Handler: r.Handler(), Log: log}
	running, err := server.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.address = running.Addr().String()
	r.stop = sync.OnceFunc(func() {
		if err := running.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
}

// client returns a client with the certificate of a file.
func (r *running) client(t *testing.T, file string) *Client {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(ClientConfig{URL: "https://" + r.address, Servers: r.ca.Pool(),
		Certificate: func() (*tls.Certificate, error) { return &cert, nil }, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestServer: a client wraps and unwraps a deposit over TLS.
func TestServer(t *testing.T) {
	r := start(t)
	c := r.client(t, r.trustee)
	ctx := t.Context()
	content := bytes.Repeat([]byte("deposit "), MaxContent/8)
	w, err := c.Wrap(ctx, uuid1, content)
	if err != nil {
		t.Fatal(err)
	}
	r.meter.Reset()
	got, err := c.Unwrap(ctx, uuid1, w)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n := r.meter.Counts(); n["Decrypt"] != 1 || n["DecryptInit"] != 1 || len(n) != 2 {
		t.Errorf("one unwrap made the calls %v", n)
	}
	if _, err := c.Unwrap(ctx, uuid2, w); !claviger.Is(err, claviger.Invalid) || errors.Is(err, ErrKeyGone) {
		t.Errorf("swapped: %v", err)
	}
	if _, err := c.Unwrap(ctx, uuid1, w[:len(w)-1]); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("cut: %v", err)
	}
	if _, err := c.Unwrap(ctx, uuid1, []byte("x")); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("no envelope: %v", err)
	}
	if _, err := c.Wrap(ctx, "", nil); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("no uuid: %v", err)
	}
	st, err := c.Status(ctx)
	if err != nil || st.State != Ready || st.KeyID != "ab01" || st.KeyBits != 2048 || st.Trusted != 1 ||
		st.Wrapped != 1 || st.Unwrapped != 1 || st.Refused != 2 ||
		st.CertificateUntil.Before(time.Now()) || !strings.HasPrefix(st.OAEP, "SHA-") {
		t.Errorf("%+v, %v", st, err)
	}
	// Many requests at once, more than connections.
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			want := bytes.Repeat([]byte{byte(i)}, 1000)
			w, err := c.Wrap(ctx, uuid1, want)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := c.Unwrap(ctx, uuid1, w); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// TestRequests sends requests that no Client makes.
func TestRequests(t *testing.T) {
	r := start(t)
	c := r.client(t, r.trustee)
	for _, q := range []struct {
		method, path, body string
		status             int
		kind               string
	}{
		{"POST", "/v1/wrap", "", 400, "invalid"},
		{"POST", "/v1/wrap", "{", 400, "invalid"},
		{"POST", "/v1/wrap", `{"uuid":"x","content":"%%%"}`, 400, "invalid"},
		{"POST", "/v1/wrap", `{"uuid":"x","content":"` + strings.Repeat("A", int(maxBody)) + `"}`, 400, "invalid"},
		{"POST", "/v1/wrap", `{"uuid":"a b","content":"AAAA"}`, 400, "invalid"},
		{"POST", "/v1/unwrap", `{"uuid":"x","wrapped":"AAAA"}`, 400, "invalid"},
		{"GET", "/v1/wrap", "", 405, ""},
		{"POST", "/v1/destroy", "{}", 404, ""},
		{"GET", "/", "", 404, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), q.method, c.base+q.path, strings.NewReader(q.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Errorf("%s %s of %d bytes: %v", q.method, q.path, len(q.body), err)
			continue
		}
		data, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		var a errorAnswer
		_ = json.Unmarshal(data, &a)
		if resp.StatusCode != q.status || a.Error.Kind != q.kind {
			t.Errorf("%s %s of %d bytes: %d %s", q.method, q.path, len(q.body), resp.StatusCode, data)
		}
	}
}

// TestMethods: a path answers 405 to a method that it does not support. No request makes the server fail.
func TestMethods(t *testing.T) {
	r := start(t)
	c := r.client(t, r.trustee)
	for path, has := range map[string]string{"/v1/wrap": "POST", "/v1/unwrap": "POST", "/v1/status": "GET HEAD",
		"/v1/none": "", "/": ""} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND",
			"get", "FOO"} {
			req, err := http.NewRequestWithContext(t.Context(), method, c.base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if refused := has != "" && !slices.Contains(strings.Fields(has), method); resp.StatusCode >= 500 ||
				refused != (resp.StatusCode == http.StatusMethodNotAllowed) ||
				refused == (resp.Header.Get("Allow") == "") {
				t.Errorf("%s %s: %d, Allow %q", method, path, resp.StatusCode, resp.Header.Get("Allow"))
			}
		}
	}
}

// TestUntrusted: the server refuses another certificate of the same authority, and a client without a certificate.
// The server's own certificate may only request the status.
func TestUntrusted(t *testing.T) {
	r := start(t)
	ctx := t.Context()
	untrusted := r.client(t, r.untrusted)
	for range 3 { // the alert may be lost when the connection is reset
		_, err := untrusted.Wrap(ctx, uuid1, []byte("x"))
		if !claviger.Is(err, claviger.Denied) && !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("an untrusted client: %v", err)
		}
	}
	if _, err := untrusted.Status(ctx); err == nil {
		t.Error("an untrusted client gets the status")
	}
	// After the handshake, the server reads no HTTP from the untrusted client.
	pair, err := tls.LoadX509KeyPair(r.untrusted, r.untrusted)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: r.ca.Pool(), ServerName: "localhost",
		Certificates: []tls.Certificate{pair}}}).DialContext(ctx, "tcp", r.address)
	if err != nil {
		t.Fatal(err) // in TLS 1.3, the client completes the handshake before the server checks the certificate
	}
	defer conn.Close()
	var remote *net.OpError
	if _, err := conn.Read(make([]byte, 1)); !errors.As(err, &remote) || remote.Op != "remote error" {
		t.Errorf("an untrusted client after the handshake: %v", err)
	}
	none, err := NewClient(ClientConfig{URL: "https://" + r.address, Servers: r.ca.Pool(),
		Certificate: func() (*tls.Certificate, error) { return new(tls.Certificate), nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.Status(ctx); err == nil {
		t.Error("a client without a certificate sees the status")
	}
	_ = none.Close()
	own := r.client(t, r.own)
	if st, err := own.Status(ctx); err != nil || st.State != Ready {
		t.Errorf("the administrator: %+v, %v", st, err)
	}
	if _, err := own.Wrap(ctx, uuid1, []byte("x")); !claviger.Is(err, claviger.Denied) {
		t.Errorf("the administrator wraps: %v", err)
	}
	// A client that trusts another server.
	cert, err := tls.LoadX509KeyPair(r.trustee, r.trustee)
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := NewClient(ClientConfig{URL: "https://" + r.address, Servers: x509.NewCertPool(),
		Certificate: func() (*tls.Certificate, error) { return &cert, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.Wrap(ctx, uuid1, []byte("x")); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "not the one expected") {
		t.Errorf("a server that is not trusted: %v", err)
	}
	_ = wrong.Close()
	if n := r.wrapped.Load(); n != 0 {
		t.Errorf("%d deposits were wrapped", n)
	}
}

// TestReload: the trusted certificates change without a restart, on open connections too. If a certificate cannot
// be read, nothing changes.
func TestReload(t *testing.T) {
	r := start(t)
	ctx := t.Context()
	trustee := r.client(t, r.trustee)
	if _, err := trustee.Wrap(ctx, uuid1, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, _, added, err := AddTrusted(r.trustDir, r.untrusted); err != nil || !added {
		t.Fatal(err)
	}
	if _, _, added, err := AddTrusted(r.trustDir, r.untrusted); err != nil || added {
		t.Errorf("added twice: %v", err)
	}
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client(t, r.untrusted).Wrap(ctx, uuid1, []byte("x")); err != nil {
		t.Errorf("newly trusted: %v", err)
	}
	cert, err := ReadCertificate(r.trustee)
	if err != nil {
		t.Fatal(err)
	}
	removeFile(t, filepath.Join(r.trustDir, shortFingerprint(cert)+".pem"))
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := trustee.Wrap(ctx, uuid1, []byte("x")); !claviger.Is(err, claviger.Denied) {
		t.Errorf("no longer trusted, on an open connection: %v", err)
	}
	writeFile(t, filepath.Join(r.trustDir, "broken.pem"), "no certificate")
	if err := r.Reload(); err == nil || !strings.Contains(err.Error(), "broken.pem") {
		t.Errorf("a file that is not a certificate: %v", err)
	}
	st, err := r.client(t, r.untrusted).Status(ctx)
	if err != nil || st.Trusted != 1 || !strings.Contains(st.LoadError, "broken.pem") {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestGoneAndBack: the errors of a client while the server restarts, while the HSM does not answer, and after the
// key was destroyed.
func TestGoneAndBack(t *testing.T) {
	r := start(t)
	c := r.client(t, r.trustee)
	ctx := t.Context()
	w, err := c.Wrap(ctx, uuid1, []byte("deposit"))
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	if _, err := c.Unwrap(ctx, uuid1, w); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("no Key HSM: %v", err)
	}
	r.serve(t, r.address)
	if got, err := c.Unwrap(ctx, uuid1, w); err != nil || string(got) != "deposit" {
		t.Errorf("after a restart: %q, %v", got, err)
	}

	release := r.meter.Hang("Decrypt")
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	if _, err := c.Unwrap(short, uuid1, w); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("an HSM that hangs: %v", err)
	}
	cancel()
	release()
	if got, err := c.Unwrap(ctx, uuid1, w); err != nil || string(got) != "deposit" {
		t.Errorf("when it is back: %q, %v", got, err)
	}

	if err := r.token.DestroyPair(ctx, []byte{0xab, 1}, "deposits"); err != nil {
		t.Fatal(err)
	}
	_, err = c.Unwrap(ctx, uuid1, w)
	var e *claviger.Error
	if !claviger.Is(err, claviger.Invalid) || !errors.Is(err, ErrKeyGone) || !errors.As(err, &e) || e.Key != "ab01" ||
		!strings.Contains(err.Error(), "destroyed") {
		t.Errorf("the key is destroyed: %v", err)
	}
	if _, err := c.Wrap(ctx, uuid1, []byte("x")); !errors.Is(err, ErrKeyGone) {
		t.Errorf("wrapped by a destroyed key: %v", err)
	}
	if st, err := c.Status(ctx); err != nil || st.State != KeyGone || st.Detail == "" {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestBusy: a request that gets no slot in time is refused as unavailable.
func TestBusy(t *testing.T) {
	r := start(t)
	r.slotWait = 100 * time.Millisecond
	for range cap(r.slots) {
		r.slots <- struct{}{}
	}
	c := r.client(t, r.trustee)
	if _, err := c.Status(t.Context()); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "is already serving") {
		t.Errorf("a busy server: %v", err)
	}
	for range cap(r.slots) {
		<-r.slots
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestNewClient checks which URLs are refused, and that others get the default port.
func TestNewClient(t *testing.T) {
	cert := func() (*tls.Certificate, error) { return nil, nil }
	for _, u := range []string{"", "localhost:9090", "http://localhost:9090", "https://", "https://u:p@h",
		"https://h/x", "https://h?x=1", "https://h:9090#x", "https://[::1"} {
		if _, err := NewClient(ClientConfig{URL: u, Certificate: cert, Servers: x509.NewCertPool()}); !claviger.Is(err,
			claviger.Invalid) {
			t.Errorf("%q: %v", u, err)
		}
	}
	if _, err := NewClient(ClientConfig{URL: "https://h"}); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("without certificates: %v", err)
	}
	for u, want := range map[string]string{"https://h": "https://h:9090", "https://[::1]/": "https://[::1]:9090",
		"https://h:1": "https://h:1"} {
		c, err := NewClient(ClientConfig{URL: u, Certificate: cert, Servers: x509.NewCertPool()})
		if err != nil || c.base != want {
			t.Errorf("%q: %v, %v", u, c, err)
		}
	}
}
