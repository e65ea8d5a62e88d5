package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ConnectionLimits bound the connections of a server: of all clients together, and of each
// address, so that a client that is not authenticated cannot take all of them.
type ConnectionLimits struct {
	// Total is the limit of all clients together. It is at least 1.
	Total int64
	// PerAddress is the limit of one IPv4 address, or of one /64 network of IPv6, since one host has all addresses of
	// such a network. 0 means no limit.
	PerAddress int64
	// Unlimited lists addresses that PerAddress does not limit, since many clients come from
	// them: balancers, proxies, NAT.
	Unlimited []netip.Prefix
	// The names of the properties or flags of these limits, for messages.
	TotalName, PerAddressName, UnlimitedName string
}

// Loopback is the default of the unlimited addresses: a proxy on the same host.
const Loopback = "127.0.0.1,::1"

// PerAddress checks a limit of one address. set is false if no value is configured; the
// limit then is half of total, rounded up.
func PerAddress(value int64, set bool, total int64) (int64, error) {
	switch {
	case !set:
		return (total + 1) / 2, nil
	case value < 0 || value > total:
		return 0, fmt.Errorf("it must be from 1 to the limit of all addresses, %d, or 0 for no limit of one address",
			total)
	}
	return value, nil
}

// FixedLimits are the limits of a port for operators, which no property changes: one address has at most half of the
// connections, except addresses of this host.
func FixedLimits(total int64) ConnectionLimits {
	half, _ := PerAddress(0, false, total) // an error is for values that are set
	own, _ := ParseAddresses(Loopback)     // the list is correct
	const name = "a fixed limit"
	return ConnectionLimits{Total: total, PerAddress: half, Unlimited: own, TotalName: name, PerAddressName: name}
}

// ParseAddresses reads a list of addresses and networks that are separated by commas.
func ParseAddresses(list string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		if p, err := netip.ParsePrefix(item); err == nil {
			// An IPv4 network written as IPv6, such as ::ffff:10.1.0.0/112, is compared as IPv4.
			const mapped = 96 // bits before the IPv4 address
			if p.Addr().Is4In6() && p.Bits() >= mapped {
				p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
			}
			out = append(out, p.Masked())
			continue
		}
		a, err := netip.ParseAddr(item)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("%q is neither an IP address, such as 10.0.0.7, nor a network, such as "+
				"10.1.0.0/16; names are not looked up", item)
		}
		a = a.Unmap()
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out, nil
}

// PeersOf returns a function that reports whether the peer of a request is in one of the
// networks.
func PeersOf(networks []netip.Prefix) func(*http.Request) bool {
	return func(r *http.Request) bool {
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			return false
		}
		address := peer.Addr().Unmap().WithZone("")
		return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(address) })
	}
}

// reservedDescriptors are kept for files, the HSM, the metastore and sources; connections
// never get them.
const reservedDescriptors = 256

// withinDescriptors lowers the limits to what the process's limit of open files allows.
func (l ConnectionLimits) withinDescriptors(log *slog.Logger) ConnectionLimits {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<30 {
		return l
	}
	room := max(int64(limit.Cur)-reservedDescriptors, int64(limit.Cur)/2) //nolint:gosec // below 2^30
	if l.Total <= room {
		return l
	}
	log.Warn("the server accepts fewer connections than the setting says, since each needs a descriptor; "+
		"raise LimitNOFILE of the systemd unit, or ulimit -n",
		"property", l.TotalName, "value", l.Total, "connections", room, "descriptors", limit.Cur)
	// PerAddress stays the same part of Total.
	l.Total, l.PerAddress = room, (l.PerAddress*room+l.Total-1)/l.Total
	return l
}

// Connections counts and limits the connections of one server. A connection over a limit is
// closed at once, so that its client tries another node; in a queue the client would wait
// for its own time limit, which is a minute.
type Connections struct {
	ConnectionLimits
	log *slog.Logger

	refused, refusedAddress atomic.Int64

	mu        sync.Mutex
	open      int64
	limited   int64 // the open connections of addresses with a limit
	byAddress map[netip.Addr]int64
	silent    map[net.Conn]struct{} // connections that have not sent the whole head of a request
	// The latest refusals by each of the two limits.
	totalRefusal, addressRefusal refusal
}

// refusal is the latest refusal of a connection.
type refusal struct {
	at     time.Time
	logged time.Time // the time of the latest log line
	from   netip.Addr
}

// refusalInterval is how often refusals are logged, and how long Check reports one.
const refusalInterval = time.Minute

// NewConnections makes the connections of a server. It lowers the limits if the process
// may not open that many files.
func NewConnections(limits ConnectionLimits, log *slog.Logger) *Connections {
	return &Connections{ConnectionLimits: limits.withinDescriptors(log), log: log, byAddress: map[netip.Addr]int64{},
		silent: map[net.Conn]struct{}{}}
}

// Bound returns a listener that accepts connections of l within the limits.
func (c *Connections) Bound(l net.Listener) net.Listener { return &boundedListener{l, c} }

// Watch makes a server report which connections have sent a request. Call it before the
// server serves.
func (c *Connections) Watch(server *http.Server) {
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if state == http.StateNew {
			c.silent[conn] = struct{}{}
		} else {
			delete(c.silent, conn)
		}
	}
}

// silentCount returns how many connections have not sent the whole head of a request.
func (c *Connections) silentCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.silent)
}

// boundedListener is the listener of Bound.
type boundedListener struct {
	net.Listener
	connections *Connections
}

// Accept returns the next connection that is within the limits.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if address := l.connections.limitedAddress(conn); l.connections.enter(address) {
			leave := sync.OnceFunc(func() { l.connections.leave(address) })
			return &boundedConn{Conn: conn, leave: leave}, nil
		}
		_ = conn.Close() // the connection is refused, whether closing it fails or not
	}
}

// limitedAddress returns the address or IPv6 network that the limit of one address counts
// the connection for; the zero address if there is no such limit.
func (c *Connections) limitedAddress(conn net.Conn) netip.Addr {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok || c.PerAddress == 0 {
		return netip.Addr{}
	}
	a := tcp.AddrPort().Addr().Unmap().WithZone("")
	if slices.ContainsFunc(c.Unlimited, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return netip.Addr{}
	}
	if a.Is6() {
		const network = 64
		p, _ := a.Prefix(network) // it cannot fail: an IPv6 address has 128 bits
		a = p.Addr()
	}
	return a
}

// enter counts a connection of an address, and returns false if it is over a limit.
func (c *Connections) enter(a netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.open >= c.Total, a.IsValid() && c.limited >= c.Total-c.Total/reservedPart:
		n := c.refused.Add(1)
		if c.totalRefusal.record(a) {
			c.log.Warn("connections are refused: the limit is reached", "property", c.TotalName, "open", c.open,
				"refused so far", n)
		}
		return false
	case a.IsValid() && c.byAddress[a] >= c.share():
		n := c.refusedAddress.Add(1)
		if c.addressRefusal.record(a) {
			text := "connections of one address are refused: it has reached its limit"
			if c.UnlimitedName != "" {
				text += ". If many clients come from this address, for instance through a balancer, add it to " +
					c.UnlimitedName
			}
			c.log.Warn(text, "property", c.PerAddressName, "address", a, "open", c.byAddress[a], "refused so far", n)
		}
		return false
	}
	c.open++
	if a.IsValid() {
		c.limited++
		c.byAddress[a]++
	}
	return true
}

// reservedPart says that one in reservedPart connections is reserved for unlimited addresses, which
// are balancers and the probes of this host.
const reservedPart = 16

// share returns how many connections one address may have now: never more than are left for
// all others. So one address alone gets half, a second a quarter, and so on. A configured
// limit above half is not reduced. c.mu is held.
func (c *Connections) share() int64 {
	if c.PerAddress > (c.Total+1)/2 {
		return c.PerAddress
	}
	return min(c.PerAddress, c.Total-c.open)
}

// record stores a refusal, and returns whether to log it.
func (r *refusal) record(from netip.Addr) bool {
	r.at, r.from = time.Now(), from
	if r.at.Sub(r.logged) < refusalInterval {
		return false
	}
	r.logged = r.at
	return true
}

// leave counts the end of a connection that enter has counted.
func (c *Connections) leave(a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if !a.IsValid() {
		return
	}
	c.limited--
	if c.byAddress[a]--; c.byAddress[a] == 0 {
		delete(c.byAddress, a)
	}
}

// use returns how many connections are open, and how many of them belong to the limited
// address that has most.
func (c *Connections) use() (open, ofOne int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.byAddress {
		ofOne = max(ofOne, n)
	}
	return c.open, ofOne
}

// Check is a readiness check. It fails for a minute after a connection was refused.
func (c *Connections) Check(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	if time.Since(c.totalRefusal.at) < refusalInterval {
		errs = append(errs, fmt.Errorf("connections are refused: %d of %d are open (%s)", c.open, c.Total, c.TotalName))
	}
	if r := c.addressRefusal; time.Since(r.at) < refusalInterval {
		errs = append(errs, fmt.Errorf("connections of %s are refused: it has %d open; its limit is %d (%s), or the "+
			"number of free connections if that is less; if many clients come from this address, add it to %s",
			r.from, c.byAddress[r.from], c.PerAddress, c.PerAddressName, c.UnlimitedName))
	}
	return errors.Join(errs...)
}

// MetricSink takes the metrics of a server.
type MetricSink interface {
	Counter(name, help string, f func() float64)
	Gauge(name, help string, f func() float64)
}

// AddMetrics adds the metrics of the connections to m.
func (c *Connections) AddMetrics(m MetricSink) {
	m.Gauge("claviger_http_connections", "Open connections of clients.",
		func() float64 { open, _ := c.use(); return float64(open) })
	m.Gauge("claviger_http_connections_silent",
		"Open connections that have not sent the whole head of a request yet.",
		func() float64 { return float64(c.silentCount()) })
	m.Gauge("claviger_http_connections_max", "Connections that may be open at once.",
		func() float64 { return float64(c.Total) })
	m.Gauge("claviger_http_connections_of_one_address",
		"Open connections of the limited address that has most.",
		func() float64 { _, one := c.use(); return float64(one) })
	m.Gauge("claviger_http_connections_of_one_address_max",
		"Connections that one address may have open at once; 0: no limit.",
		func() float64 { return float64(c.PerAddress) })
	m.Counter("claviger_http_connections_refused_total",
		"Connections closed at once because the limit of all clients was reached.",
		func() float64 { return float64(c.refused.Load()) })
	m.Counter("claviger_http_connections_refused_address_total",
		"Connections closed at once because their address had reached its limit.",
		func() float64 { return float64(c.refusedAddress.Load()) })
}

// boundedConn is a counted connection.
type boundedConn struct {
	net.Conn
	leave func()
}

// CloseWrite ends the direction to the client. net/http calls it after it answers a request whose body it has not read
// to the end; a plain close would send a reset, which can overtake the answer.
func (c *boundedConn) CloseWrite() error {
	if tcp, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return tcp.CloseWrite()
	}
	return nil
}

// Close may be called more than once. The connection stays counted until its descriptor is
// closed, since the limits may be those of descriptors.
func (c *boundedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
