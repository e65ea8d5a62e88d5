package claviger

import (
	"net"
	"net/netip"
)

// networkBits is how much of an IPv6 address counts where a client is counted by its
// address: one host has all addresses of a network of 64 bits.
const networkBits = 64

// Network is what an address of a client counts as: an IPv4 address by itself, an IPv6
// address by its network. A port is left out. What is no address stays as it is.
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
