package main

import (
	"strings"
	"testing"
)

// TestConnectionFlags: impossible values of the flags for connections are refused with the flag's name, and without
// --max-connections-per-address one address gets half of all connections.
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
