package claviger

import (
	"net"
	"net/netip"
)

// networkBits is the length of the part of an IPv6 address by which a client is counted: one host has all addresses
// of a network of 64 bits.
const networkBits = 64

// Network returns the text by which a client's address is counted: an IPv4 address as it is, of an IPv6 address its
// network. The port is left out. A text that is no address stays as it is.
func Network(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a.String()
	}
	return netip.PrefixFrom(a, networkBits).Masked().String()
}
