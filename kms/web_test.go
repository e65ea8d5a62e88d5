package kms

import (
	"bufio"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
)

// serveWith runs a KMS with additional properties, and returns its address.
func serveWith(t *testing.T, props map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	all := map[string]string{hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "kms.keystore"),
		"hadoop.kms.http.host": "127.0.0.1", "claviger.audit.file": filepath.Join(dir, "audit.log")}
	maps.Copy(all, props)
	kmstest.WriteSite(t, dir, all)
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

// status sends a request and returns the status of the answer; 0 if the connection is closed
// without an answer.
func status(t *testing.T, addr, request string) int {
	t.Helper()
	conn := dial(t, addr)
	_, _ = io.WriteString(conn, request) // the server may close the connection early
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

const goodRequest = "GET /healthz HTTP/1.1\r\nHost: kms\r\n\r\n"

// TestRequestShapes: the server refuses a request that another server could take for two
// requests, and one that is too long.
func TestRequestShapes(t *testing.T) {
	addr := serveWith(t, nil)
	const post = "POST /kms/v1/keys?user.name=a HTTP/1.1\r\nHost: kms\r\nContent-Type: application/json\r\n"
	for name, c := range map[string]struct {
		request string
		status  []int
	}{
		"good": {goodRequest, []int{200}},
		"8 KiB x 200 headers": {"GET /healthz HTTP/1.1\r\nHost: kms\r\n" + strings.Repeat("X-Long: "+strings.Repeat("a",
			8<<10)+"\r\n", 200) + "\r\n", []int{431}},
		"a long request line": {"GET /" + strings.Repeat("a", 100<<10) + " HTTP/1.1\r\nHost: kms\r\n\r\n", []int{431}},
		// RFC 9112, section 6.3: the chunks count, not the length; here they are empty.
		"length and chunks": {post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			[]int{500}},
		"two lengths":            {post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", []int{400}},
		"two lengths in one":     {post + "Content-Length: 2, 3\r\n\r\n{}x", []int{400}},
		"a signed length":        {post + "Content-Length: +2\r\n\r\n{}", []int{400}},
		"chunks by another name": {post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", []int{501}},
		"a coding before chunks": {post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", []int{501}},
		"a blank before the colon": {"GET /healthz HTTP/1.1\r\nHost: kms\r\nContent-Length : 2\r\n\r\n{}",
			[]int{400}},
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

// TestKMSLimits: the server, its metrics and its readiness use the properties of connections
// and headers.
func TestKMSLimits(t *testing.T) {
	addr := serveWith(t, map[string]string{maxConnectionsName: "8", perAddressName: "3", unlimitedName: "127.0.0.8/30",
		detailsName: "127.0.0.0/8", headerPrefix + "X-Frame-Options": "DENY"})
	for range 3 {
		from(t, "127.0.0.2", addr)
	}
	other := from(t, "127.0.0.3", addr)
	for tries := 0; !strings.Contains(page(t, other, "/metrics"), "claviger_http_connections_of_one_address "+
		"3\n"); tries++ {
		if tries == 500 {
			t.Fatal("three connections of one address do not count")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got := page(t, from(t, "127.0.0.2", addr), "/healthz"); got != "" {
		t.Errorf("one address has one more than its limit: %q", got)
	}
	for range 2 { // more connections than the limit of one address
		if got := page(t, from(t, "127.0.0.9", addr), "/healthz"); got != "ok\n" {
			t.Errorf("an unlimited address: %q", got)
		}
	}
	figures := page(t, other, "/metrics")
	for _, want := range []string{"claviger_http_connections_max 8\n",
		"claviger_http_connections_of_one_address_max 3\n",
		"claviger_http_connections_refused_address_total 1\n"} {
		if !strings.Contains(figures, want) {
			t.Errorf("/metrics lacks %q", want)
		}
	}
	got := page(t, other, "/readyz")
	for tries := 0; tries < 500 && !strings.Contains(got, "connections of 127.0.0.2 are refused"); tries++ {
		time.Sleep(10 * time.Millisecond) // the result of the check that /metrics has made counts for a second
		got = page(t, other, "/readyz")
	}
	if !strings.Contains(got, "connections of 127.0.0.2 are refused") || !strings.Contains(got, unlimitedName) ||
		!strings.Contains(got, `"ready": true`) {
		t.Errorf("/readyz: %s", got)
	}
	for _, path := range []string{"/healthz", "/kms/v1/keys/names?user.name=a", "/nothing"} {
		if _, err := io.WriteString(other, "GET "+path+" HTTP/1.1\r\nHost: kms\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(other), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body) // so that the next request gets this connection
		_ = resp.Body.Close()
		if got := resp.Header.Values("X-Frame-Options"); len(got) != 1 || got[0] != "DENY" {
			t.Errorf("%s: X-Frame-Options is %q", path, got)
		}
	}
}

// TestWebSettings: a wrong value of a property of the web server is refused, and the error names the property.
func TestWebSettings(t *testing.T) {
	for name, value := range map[string]string{
		headerPrefix + "X Y": "a", headerPrefix + "X-Y": "a\r\nSet-Cookie: b", "claviger.http.head.timeout": "0",
		"hadoop.http.idle_timeout.ms": "0", maxConnectionsName: "0",
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
	if w := r.web(); w.limits.StopName != "claviger.shutdown.timeout" || w.limits.Stop != 15*time.Second {
		t.Errorf("limit of a stop: %v, named %q", w.limits.Stop, w.limits.StopName)
	}
	if readLimits(r); r.err == nil || !strings.Contains(r.err.Error(), maxMemoryName) ||
		!strings.Contains(r.err.Error(), "134217728") {
		t.Errorf("%s: %v", maxMemoryName, r.err)
	}
}

// from dials from an address of this host.
func from(t *testing.T, source, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// page requests a page over the connection; "" if the connection was closed.
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
