package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

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

// page asks for a page over the connection; "" where it was closed.
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

// TestConnectionsOfOneAddress: one address, whose peer need not have signed in, nor said
// anything, does not take all connections, unless it stands for many clients.
func TestConnectionsOfOneAddress(t *testing.T) {
	addr := serveWith(t, map[string]string{maxConnectionsName: "8", perAddressName: "3",
		unlimitedName: "127.0.0.8/30, ::1", "claviger.http.head.timeout": "2s", "claviger.console.details": "127.0.0.0/8"})
	began := time.Now()
	for _, says := range []string{"", "GET /healthz HTTP/1.1\r\nHost: kms\r\nX-Slow: ", "\x16\x03\x01"} { // nothing, half a head, half a handshake
		if _, err := io.WriteString(from(t, "127.0.0.2", addr), says); err != nil {
			t.Fatal(err)
		}
	}
	if got := page(t, from(t, "127.0.0.2", addr), "/healthz"); got != "" {
		if time.Since(began) > time.Second {
			t.Skip("the machine is too busy: the slow ones have been cut off meanwhile")
		}
		t.Errorf("one address has one more than its limit: %q", got)
	}
	other := from(t, "127.0.0.3", addr)
	if got := page(t, other, "/healthz"); got != "ok\n" {
		t.Errorf("another address: %q", got)
	}
	figures := page(t, other, "/metrics")
	for _, want := range []string{"claviger_http_connections_of_one_address 3\n", "claviger_http_connections_of_one_address_max 3\n", "claviger_http_connections_refused_address_total 1\n"} {
		if !strings.Contains(figures, want) {
			t.Errorf("/metrics lacks %q", want)
		}
	}
	if got := page(t, other, "/readyz"); !strings.Contains(got, "connections of 127.0.0.2 are refused") || !strings.Contains(got, unlimitedName) || !strings.Contains(got, `"ready": true`) {
		t.Errorf("/readyz: %s", got)
	}
	for i := range 4 { // of one that has no limit of its own
		if got := page(t, from(t, "127.0.0.9", addr), "/healthz"); got != "ok\n" {
			t.Errorf("connection %d of an address without limit: %q", i, got)
		}
	}
	if got := page(t, from(t, "127.0.0.9", addr), "/healthz"); got != "" {
		t.Errorf("more than all connections: %q", got)
	}
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) { // what a probe saw holds for a second
		got := page(t, other, "/readyz")
		if strings.Contains(got, " of 8 are open ("+maxConnectionsName+")") {
			break
		}
		if time.Since(began) > 5*time.Second {
			t.Fatalf("/readyz: %s", got)
		}
	}
	// Those that say nothing are cut off, and the address gets its places back.
	for tries := 0; page(t, from(t, "127.0.0.2", addr), "/healthz") != "ok\n"; tries++ {
		if tries == 100 {
			t.Fatal("connections that said nothing keep their places")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestConnectionFlags(t *testing.T) {
	for _, f := range []connectionFlags{{total: 0, perAddress: -1}, {total: 10, perAddress: 11},
		{total: 10, perAddress: -2}, {total: 10, perAddress: 1, unlimited: "nat"}} {
		if _, err := f.limits(); err == nil || !strings.Contains(err.Error(), "--") {
			t.Errorf("%+v: %v", f, err)
		}
	}
	f := connectionFlags{total: 4, perAddress: -1}
	if l, err := f.limits(); err != nil || l.PerAddress != 2 {
		t.Errorf("half of all: %+v, %v", l, err)
	}
}
