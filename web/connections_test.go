package web

import (
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
)

// dialFrom dials addr from the address source of this host.
func dialFrom(t *testing.T, source, addr string) net.Conn {
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

// TestConnectionsOfTwoAddresses: two addresses, as one host with IPv4 and IPv6 has, leave
// room for others, and all together leave some for addresses without a limit. A
// connection that has ended can be opened again. A limit above half of the total is not reduced.
func TestConnectionsOfTwoAddresses(t *testing.T) {
	const most = 128
	limits := ConnectionLimits{Total: most, PerAddress: most / 2}
	l := NewConnections(limits, slog.New(slog.DiscardHandler))
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
		t.Error("more connections than the limit")
	}
	for range most / 16 {
		l.leave(netip.Addr{})
	}
	for range 64 {
		l.leave(netip.MustParseAddr("10.0.0.0"))
	}
	if got := fill("10.0.0.9"); got < 30 {
		t.Errorf("%d connections after others have ended", got)
	}

	limits.PerAddress = most - 20
	l = NewConnections(limits, slog.New(slog.DiscardHandler))
	if got := fill("10.0.0.1"); got != most-20 {
		t.Errorf("%d connections of one address, which may have %d", got, most-20)
	}
}

// TestHandshakesOfOneAddress: a connection counts before its TLS handshake is complete.
func TestHandshakesOfOneAddress(t *testing.T) {
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	connections := NewConnections(ConnectionLimits{Total: 4, PerAddress: 2}, slog.New(slog.DiscardHandler))
	cert := certtest.New(t, t.TempDir()).Issue("server", "127.0.0.1")
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: 2 * time.Second,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	connections.Watch(server)
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(connections.Bound(listener), cert, cert) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	for range 3 {
		conn := dialFrom(t, "127.0.0.1", listener.Addr().String())
		_, _ = io.WriteString(conn, "\x16\x03\x01\x02\x00")
	}
	for tries := 0; connections.refusedAddress.Load() != 1; tries++ {
		if tries == 100 {
			t.Fatalf("%d refused", connections.refusedAddress.Load())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := connections.silentCount(); n != 2 {
		t.Errorf("two connections are within a handshake, and %d are counted", n)
	}
	for tries := 0; ; tries++ {
		if open, _ := connections.use(); open == 0 && connections.silentCount() == 0 {
			break
		}
		if tries == 1000 {
			t.Fatal("half a handshake still counts")
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

// TestCountedAddresses: connections count by IPv4 address or IPv6 network, and those of unlimited addresses do not
// count.
func TestCountedAddresses(t *testing.T) {
	unlimited, err := ParseAddresses("10.1.0.0/16, 2001:db8:2::7, ::ffff:10.2.0.0/112, ::ffff:10.3.0.1")
	if err != nil {
		t.Fatal(err)
	}
	l := NewConnections(ConnectionLimits{Total: 9, PerAddress: 3, Unlimited: unlimited}, slog.New(slog.DiscardHandler))
	for addr, want := range map[string]string{
		"10.0.0.7": "10.0.0.7", "::ffff:10.0.0.7": "10.0.0.7", "10.1.2.3": "", "::ffff:10.1.2.3": "",
		"10.2.3.4": "", "::ffff:10.2.3.4": "", "10.3.0.1": "", "10.3.0.2": "10.3.0.2",
		"2001:db8:1::5": "2001:db8:1::", "2001:db8:1::6": "2001:db8:1::", "2001:db8:2::7": "",
		"2001:db8:2::8": "2001:db8:2::", "fe80::1%eth0": "fe80::",
	} {
		got := l.limitedAddress(remote{addr: addr})
		if want == "" && got.IsValid() || want != "" && got.String() != want {
			t.Errorf("%s is counted as %s, want %q", addr, got, want)
		}
	}
	for _, bad := range []string{"kms1", "10.0.0.0/33", "10.0.0.1-10.0.0.9", "fe80::1%eth0"} {
		if _, err := ParseAddresses(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestWithinDescriptors: a limit above the number of files that the process may open is
// lowered, and the limit of one address is lowered in proportion.
func TestWithinDescriptors(t *testing.T) {
	l := ConnectionLimits{Total: 1 << 40, PerAddress: 1 << 39}.withinDescriptors(slog.New(slog.DiscardHandler))
	if l.Total <= 0 || l.Total < l.PerAddress || l.PerAddress != (l.Total+1)/2 {
		t.Errorf("%d connections, %d of one address", l.Total, l.PerAddress)
	}
}
