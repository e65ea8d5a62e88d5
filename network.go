package claviger

import (
	"net"
	"net/netip"
)

// networkBits is the number of bits of an IPv6 address that identify a client in counts: one host may use all addresses
// of a network of 64 bits.
const networkBits = 64

// Network returns the text that identifies a client in counts: the IPv4 address, or the network of the IPv6 address,
// without the port. If the text is not an address, Network returns it unchanged.
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
