package metastore_test

import (
	"strings"
	"testing"
	"time"

	"claviger/metastore"
)

// TestCompare checks that a difference within the time of the round trip counts as none, and that Check fails only if
// the difference exceeds ClockMargin.
func TestCompare(t *testing.T) {
	sent := time.Unix(1_700_000_000, 0)
	received := sent.Add(10 * time.Second)
	for _, tt := range []struct {
		there, ahead time.Duration // after sent
		apart        string
	}{
		{0, 0, ""},
		{10 * time.Second, 0, ""},
		{-metastore.ClockMargin, metastore.ClockMargin, ""},
		{10*time.Second + metastore.ClockMargin, -metastore.ClockMargin, ""},
		{-metastore.ClockMargin - time.Second, metastore.ClockMargin + time.Second, "1m1s ahead of ClockOwner's"},
		{10*time.Second + metastore.ClockMargin + time.Second, -metastore.ClockMargin - time.Second,
			"1m1s behind ClockOwner's"},
	} {
		c := metastore.Compare(sent, sent.Add(tt.there), received, "ClockOwner's")
		if c.Ahead != tt.ahead {
			t.Errorf("%v: ahead %v, want %v", tt.there, c.Ahead, tt.ahead)
		}
		if err := c.Check(); (err == nil) != (tt.apart == "") || err != nil &&
			!strings.Contains(err.Error(), tt.apart) {
			t.Errorf("%v: apart: %v, want %q", tt.there, err, tt.apart)
		}
		early, late := received, received
		if tt.there < 10*time.Second {
			early = sent.Add(tt.there)
		} else {
			late = sent.Add(tt.there)
		}
		if !c.Earliest().Equal(early) || !c.Latest().Equal(late) {
			t.Errorf("%v: from %v to %v, want %v to %v", tt.there, c.Earliest(), c.Latest(), early, late)
		}
	}
}
