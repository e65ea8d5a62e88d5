package main

import (
	"strings"
	"testing"
)

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
