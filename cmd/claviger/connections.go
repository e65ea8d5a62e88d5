package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"claviger/console"
	"claviger/keyhsm"
)

// connectionLimits is how many connections a server takes: of all its clients, and of one
// address, so that one peer, who need not have signed in, cannot take them all.
type connectionLimits struct {
	most int64
	// perAddress is for one IPv4 address, and for one /64 network of IPv6, of which one
	// host has all addresses; 0: no limit.
	perAddress int64
	// unlimited are addresses that stand for many clients: balancers, proxies, NAT.
	unlimited []netip.Prefix
	// The properties or flags that say so, for messages.
	mostName, perAddressName, unlimitedName string
}

// loopback is the default of the unlimited addresses: a proxy on this host.
const loopback = "127.0.0.1,::1"

// perAddressOf checks the limit of one address; given tells whether somebody has set it.
// Otherwise it is half of all, rounded up.
func perAddressOf(value int64, given bool, most int64) (int64, error) {
	switch {
	case !given:
		return (most + 1) / 2, nil
	case value < 0 || value > most:
		return 0, fmt.Errorf("it must be from 1 to the limit of all addresses, %d, or 0 for no limit of one address", most)
	}
	return value, nil
}

// parseAddresses reads a comma list of addresses and networks.
func parseAddresses(list string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		if p, err := netip.ParsePrefix(item); err == nil {
			// IPv4 in the form of IPv6, as in ::ffff:10.1.0.0/112, is compared as IPv4.
			const mapped = 96 // bits before the IPv4 address
			if p.Addr().Is4In6() && p.Bits() >= mapped {
				p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
			}
			out = append(out, p.Masked())
			continue
		}
		a, err := netip.ParseAddr(item)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("%q is neither an IP address nor a network, as 10.0.0.7 or 10.1.0.0/16; names are not looked up", item)
		}
		a = a.Unmap()
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out, nil
}

// connectionFlags are those of a server without a file of settings.
type connectionFlags struct {
	most, perAddress int64
	unlimited        string
}

func (f *connectionFlags) flags(cmd *cobra.Command) {
	cmd.Flags().Int64Var(&f.most, "max-connections", 1024, "connections at once; one more is closed at once")
	cmd.Flags().Int64Var(&f.perAddress, "max-connections-per-address", -1, "most of them of one IPv4 address, or one /64 network of IPv6; 0 is no limit (default: half of all)")
	cmd.Flags().StringVar(&f.unlimited, "unlimited-addresses", loopback, "comma list of addresses and networks without that limit")
}

// limits checks the flags.
func (f *connectionFlags) limits() (connectionLimits, error) {
	l := connectionLimits{most: f.most, mostName: "--max-connections", perAddressName: "--max-connections-per-address", unlimitedName: "--unlimited-addresses"}
	if f.most < 1 || f.most > 1<<20 {
		return l, &exitError{exitUsage, fmt.Errorf("%s %d: it must be from 1 to %d", l.mostName, f.most, 1<<20)}
	}
	var err error
	if l.perAddress, err = perAddressOf(f.perAddress, f.perAddress != -1, f.most); err != nil {
		return l, &exitError{exitUsage, fmt.Errorf("%s %d: %w", l.perAddressName, f.perAddress, err)}
	}
	if l.unlimited, err = parseAddresses(f.unlimited); err != nil {
		return l, &exitError{exitUsage, fmt.Errorf("%s: %w", l.unlimitedName, err)}
	}
	return l, nil
}

// keyHSMConnections are the limits in a Key HSM's settings, which are in that folder.
func keyHSMConnections(dir string, set *keyhsm.Settings) (connectionLimits, error) {
	l := connectionLimits{most: int64(set.MaxConnections), mostName: "keyhsm.max.connections", perAddressName: "keyhsm.max.connections.per.address", unlimitedName: "keyhsm.unlimited.addresses"}
	refused := func(name, value string, err error) error {
		return fmt.Errorf("%s: %s has the value %q; %w", filepath.Join(dir, keyhsm.SettingsFile), name, value, err)
	}
	var of int
	if set.MaxPerAddress != nil {
		of = *set.MaxPerAddress
	}
	var err error
	if l.perAddress, err = perAddressOf(int64(of), set.MaxPerAddress != nil, l.most); err != nil {
		return l, refused(l.perAddressName, strconv.Itoa(of), err)
	}
	list := loopback
	if set.Unlimited != nil {
		list = *set.Unlimited
	}
	if l.unlimited, err = parseAddresses(list); err != nil {
		return l, refused(l.unlimitedName, list, err)
	}
	return l, nil
}

// boundedListener takes connections within limits. One more is closed as soon as it
// comes, so that its client goes to another node; in a queue it would wait for its own
// time limit, a minute.
type boundedListener struct {
	net.Listener
	connectionLimits
	log *slog.Logger

	refused, refusedAddress atomic.Int64

	mu        sync.Mutex
	open      int64
	limited   int64 // of these, those of addresses with a limit
	byAddress map[netip.Addr]int64
	// silent have sent no whole head of a request yet: nobody knows whose they are.
	silent map[net.Conn]struct{}
	full   refusal // for want of room at all
	own    refusal // of an address that has its share
}

// refusal is when connections were refused last.
type refusal struct {
	at   time.Time
	told time.Time // when it was last logged
	from netip.Addr
}

// tellEvery is how often a fault that repeats is logged, and how long readiness shows it.
const tellEvery = time.Minute

// bound bounds a listener.
func bound(l net.Listener, limits connectionLimits, log *slog.Logger) *boundedListener {
	return &boundedListener{Listener: l, connectionLimits: limits, log: log, byAddress: map[netip.Addr]int64{},
		silent: map[net.Conn]struct{}{}}
}

// Watch has a server tell which connections have sent a request, before it serves.
func (l *boundedListener) Watch(server *http.Server) {
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if state == http.StateNew {
			l.silent[conn] = struct{}{}
		} else {
			delete(l.silent, conn)
		}
	}
}

// waiting returns how many connections have sent no request yet.
func (l *boundedListener) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.silent)
}

// Accept returns the next connection that there is room for.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if counted := l.counted(conn); l.enter(counted) {
			return &boundedConn{Conn: conn, done: sync.OnceFunc(func() { l.leave(counted) })}, nil
		}
		_ = conn.Close() // it goes one way or the other
	}
}

// counted is what the connections of one peer are counted by; the zero address where they
// are not.
func (l *boundedListener) counted(conn net.Conn) netip.Addr {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok || l.perAddress == 0 {
		return netip.Addr{}
	}
	a := tcp.AddrPort().Addr().Unmap().WithZone("")
	if slices.ContainsFunc(l.unlimited, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return netip.Addr{}
	}
	if a.Is6() {
		const network = 64
		p, _ := a.Prefix(network) // which each address of 128 bits has
		a = p.Addr()
	}
	return a
}

// enter takes a place for a connection, if there is one.
func (l *boundedListener) enter(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.open >= l.most, a.IsValid() && l.limited >= l.most-l.most/reservedPart:
		n := l.refused.Add(1)
		if l.full.happened(a) {
			l.log.Warn("connections are refused: as many are open as may be", "property", l.mostName, "open", l.open, "refused so far", n)
		}
		return false
	case a.IsValid() && l.byAddress[a] >= l.share():
		n := l.refusedAddress.Add(1)
		if l.own.happened(a) {
			l.log.Warn("connections of one address are refused: as many are open as one may have. If it stands for many clients, as a balancer does, name it in "+l.unlimitedName,
				"property", l.perAddressName, "address", a, "open", l.byAddress[a], "refused so far", n)
		}
		return false
	}
	l.open++
	if a.IsValid() {
		l.limited++
		l.byAddress[a]++
	}
	return true
}

// reservedPart: one in so many places is for addresses without a limit, which are
// balancers and the probes of this host, and no other address gets it.
const reservedPart = 16

// share is how many connections an address may have now. It never has more than are left
// for all others: one alone half, a second a quarter, and so on. Where the setting gives
// one address more than half, the setting alone counts. l.mu is held.
func (l *boundedListener) share() int64 {
	if l.perAddress > (l.most+1)/2 {
		return l.perAddress
	}
	return min(l.perAddress, l.most-l.open)
}

// happened notes a refusal, and reports whether to log it.
func (r *refusal) happened(from netip.Addr) bool {
	r.at, r.from = time.Now(), from
	if r.at.Sub(r.told) < tellEvery {
		return false
	}
	r.told = r.at
	return true
}

func (l *boundedListener) leave(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if !a.IsValid() {
		return
	}
	l.limited--
	if l.byAddress[a]--; l.byAddress[a] == 0 {
		delete(l.byAddress, a)
	}
}

// use returns how many connections are open, and how many the address has that has most
// of those that are limited.
func (l *boundedListener) use() (open, ofOne int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.byAddress {
		ofOne = max(ofOne, n)
	}
	return l.open, ofOne
}

// check fails for a minute after a connection was refused.
func (l *boundedListener) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	if time.Since(l.full.at) < tellEvery {
		errs = append(errs, fmt.Errorf("connections are refused: %d of %d are open (%s)", l.open, l.most, l.mostName))
	}
	if time.Since(l.own.at) < tellEvery {
		errs = append(errs, fmt.Errorf("connections of %s are refused: %d of %d are open (%s); where it stands for many clients, name it in %s",
			l.own.from, l.byAddress[l.own.from], l.perAddress, l.perAddressName, l.unlimitedName))
	}
	return errors.Join(errs...)
}

// metrics shows how full it is.
func (l *boundedListener) metrics(m *console.Metrics) {
	m.Gauge("claviger_http_connections", "Open connections of clients.", func() float64 { open, _ := l.use(); return float64(open) })
	m.Gauge("claviger_http_connections_silent",
		"Of these, those that have sent no whole head of a request yet: in a TLS handshake, or before.",
		func() float64 { return float64(l.waiting()) })
	m.Gauge("claviger_http_connections_max", "Connections that may be open at once.", func() float64 { return float64(l.most) })
	m.Gauge("claviger_http_connections_of_one_address", "Open connections of the address that has most, of those that are limited.", func() float64 { _, one := l.use(); return float64(one) })
	m.Gauge("claviger_http_connections_of_one_address_max", "Connections that one address may have open at once; 0: no limit.", func() float64 { return float64(l.perAddress) })
	m.Counter("claviger_http_connections_refused_total", "Connections closed at once, as so many were open.", func() float64 { return float64(l.refused.Load()) })
	m.Counter("claviger_http_connections_refused_address_total", "Connections closed at once, as their address had so many open.", func() float64 { return float64(l.refusedAddress.Load()) })
}

// boundedConn gives its place back when it is closed.
type boundedConn struct {
	net.Conn
	done func()
}

// CloseWrite ends our half. net/http does so after an answer to a request that it
// has not read to its end, and lingers: else a reset would overtake the answer.
func (c *boundedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close closes it, however often it is called. The place is given back afterwards, with
// the descriptor: the limits may be what descriptors allow.
func (c *boundedConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}
