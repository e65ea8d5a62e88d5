package kmsapi

import (
	"fmt"
	"testing"
	"time"

	"claviger/authn"
)

// TestWarnings: one address can cause only a few different warnings a minute, so the warnings of
// others are logged.
func TestWarnings(t *testing.T) {
	now := time.Now()
	w := &warnings{now: func() time.Time { return now }, since: make(map[string]*warned)}
	logged := 0
	for i := range 1000 {
		if _, ok := w.due(fmt.Sprint("made up ", i), "192.0.2.1"); ok {
			logged++
		}
	}
	if logged != maxWarnedFrom {
		t.Errorf("%d warnings for one address, want %d", logged, maxWarnedFrom)
	}
	if notShown, ok := w.due("an honest one", "192.0.2.2"); !ok || notShown != 1000-maxWarnedFrom {
		t.Errorf("another address: %v, with %d not shown", ok, notShown)
	}
	if _, ok := w.due("an honest one", "192.0.2.2"); ok {
		t.Error("the same warning is logged twice in a minute")
	}
	now = now.Add(warnEvery)
	if notShown, ok := w.due("an honest one", "192.0.2.2"); !ok || notShown != 1 {
		t.Errorf("a minute later: %v, with %d not shown", ok, notShown)
	}
	if _, ok := w.due("made up again", "192.0.2.1"); !ok {
		t.Error("a minute later a warning for the first address is not logged")
	}
}

// TestWarningsOfOneNetwork: a host with a whole IPv6 network can cause only as many warnings as
// one address.
func TestWarningsOfOneNetwork(t *testing.T) {
	r := &authn.Refusal{Kind: authn.BadTicket, Explanation: "a ticket of another realm"}
	what, from := warningKey(r, "2001:db8:1:2::3")
	if again, f := warningKey(r, "2001:db8:1:2:ffff::9"); again != what || f != from {
		t.Errorf("%q from %q, and %q from %q", what, from, again, f)
	}
	if other, f := warningKey(r, "2001:db8:1:3::3"); other == what || f == from {
		t.Errorf("another network counts as the same: %q from %q", other, f)
	}
}
