package claviger

import "testing"

// TestNetwork: an IPv4 address counts for itself, and an IPv6 address for its /64.
func TestNetwork(t *testing.T) {
	for address, want := range map[string]string{
		"10.1.2.3:80": "10.1.2.3", "10.1.2.3": "10.1.2.3", "[::ffff:10.1.2.3]:80": "10.1.2.3",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "[2001:db8:1:2::9]:81": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:81": "fe80::/64",
		"@":                 "@", "": "",
	} {
		if got := Network(address); got != want {
			t.Errorf("%q counts as %q, want %q", address, got, want)
		}
	}
}
