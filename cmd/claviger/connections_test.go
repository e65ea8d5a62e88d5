package main

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"claviger/internal/certtest"
	"claviger/keyhsm"
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

// TestConnectionsOfTwoAddresses: two addresses, as one host with IPv4 and IPv6 has, leave
// room for others, and all together leave some for addresses without a limit. What is
// given back can be had again. A limit of more than half is what the operator wants.
func TestConnectionsOfTwoAddresses(t *testing.T) {
	const most = 128
	limits := connectionLimits{most: most, perAddress: most / 2}
	l := bound(nil, limits, slog.New(slog.DiscardHandler))
	fill := func(a string) (n int) {
		for l.enter(netip.MustParseAddr(a)) {
			n++
		}
		return n
	}
	for i, want := range []int{64, 32, 16, 8} {
		if got := fill(fmt.Sprint("10.0.0.", i)); got != want {
			t.Errorf("address %d has %d connections, want %d", i, got, want)
		}
	}
	for i := range 200 {
		l.enter(netip.MustParseAddr(fmt.Sprint("10.0.1.", i)))
	}
	if open, _ := l.use(); open != most-most/16 {
		t.Errorf("addresses with a limit have %d connections of %d", open, most)
	}
	for i := range most / 16 {
		if !l.enter(netip.Addr{}) {
			t.Fatalf("connection %d of an address without a limit", i)
		}
	}
	if l.enter(netip.Addr{}) {
		t.Error("more connections than may be")
	}
	for range most / 16 {
		l.leave(netip.Addr{})
	}
	for range 64 {
		l.leave(netip.MustParseAddr("10.0.0.0"))
	}
	if got := fill("10.0.0.9"); got < 30 {
		t.Errorf("%d connections of those that were given back", got)
	}

	limits.perAddress = most - 20
	l = bound(nil, limits, slog.New(slog.DiscardHandler))
	if got := fill("10.0.0.1"); got != most-20 {
		t.Errorf("%d connections of one address, which may have %d", got, most-20)
	}
}

// TestHandshakesOfOneAddress: half a TLS handshake is a connection too.
func TestHandshakesOfOneAddress(t *testing.T) {
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := connectionFlags{most: 4, perAddress: -1}
	limits, err := f.limits()
	if err != nil || limits.perAddress != 2 {
		t.Fatal(limits, err)
	}
	bounded := bound(listener, limits, slog.New(slog.DiscardHandler))
	cert := certtest.New(t, t.TempDir()).Issue("server", "127.0.0.1")
	web := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: 2 * time.Second,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	bounded.Watch(web)
	done := make(chan error, 1)
	go func() { done <- web.ServeTLS(bounded, cert, cert) }()
	t.Cleanup(func() { _ = web.Close(); <-done })
	for range 3 {
		conn := from(t, "127.0.0.1", listener.Addr().String())
		_, _ = io.WriteString(conn, "\x16\x03\x01\x02\x00")
	}
	for tries := 0; bounded.refusedAddress.Load() != 1; tries++ {
		if tries == 100 {
			t.Fatalf("%d refused", bounded.refusedAddress.Load())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := bounded.waiting(); n != 2 {
		t.Errorf("two connections are within a handshake, and %d are counted", n)
	}
	for tries := 0; ; tries++ {
		if open, _ := bounded.use(); open == 0 && bounded.waiting() == 0 {
			break
		}
		if tries == 1000 {
			t.Fatal("half a handshake keeps its place")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

type remote struct {
	net.Conn
	addr string
}

func (r remote) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(r.addr), 1))
}

func TestCountedAddresses(t *testing.T) {
	unlimited, err := parseAddresses("10.1.0.0/16, 2001:db8:2::7, ::ffff:10.2.0.0/112, ::ffff:10.3.0.1")
	if err != nil {
		t.Fatal(err)
	}
	l := bound(nil, connectionLimits{most: 9, perAddress: 3, unlimited: unlimited}, nil)
	for addr, want := range map[string]string{
		"10.0.0.7": "10.0.0.7", "::ffff:10.0.0.7": "10.0.0.7", "10.1.2.3": "", "::ffff:10.1.2.3": "",
		"10.2.3.4": "", "::ffff:10.2.3.4": "", "10.3.0.1": "", "10.3.0.2": "10.3.0.2",
		"2001:db8:1::5": "2001:db8:1::", "2001:db8:1::6": "2001:db8:1::", "2001:db8:2::7": "", "2001:db8:2::8": "2001:db8:2::", "fe80::1%eth0": "fe80::",
	} {
		got := l.counted(remote{addr: addr})
		if want == "" && got.IsValid() || want != "" && got.String() != want {
			t.Errorf("%s is counted as %s, want %q", addr, got, want)
		}
	}
	for _, bad := range []string{"kms1", "10.0.0.0/33", "10.0.0.1-10.0.0.9", "fe80::1%eth0"} {
		if _, err := parseAddresses(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestConnectionSettings(t *testing.T) {
	for _, f := range []connectionFlags{{most: 0, perAddress: -1}, {most: 10, perAddress: 11}, {most: 10, perAddress: -2}, {most: 10, perAddress: 1, unlimited: "nat"}} {
		if _, err := f.limits(); err == nil || !strings.Contains(err.Error(), "--") {
			t.Errorf("%+v: %v", f, err)
		}
	}
	n, list := 300, "nat"
	for name, s := range map[string]keyhsm.Settings{
		"keyhsm.max.connections.per.address": {MaxConnections: 256, MaxPerAddress: &n},
		"keyhsm.unlimited.addresses":         {MaxConnections: 256, Unlimited: &list},
	} {
		if _, err := keyHSMConnections("/etc/keyhsm", &s); err == nil || !strings.Contains(err.Error(), "/etc/keyhsm/application.properties: "+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if l, err := keyHSMConnections("/etc/keyhsm", &keyhsm.Settings{MaxConnections: 256}); err != nil || l.perAddress != 128 || len(l.unlimited) != 2 {
		t.Errorf("%+v, %v", l, err)
	}
}
