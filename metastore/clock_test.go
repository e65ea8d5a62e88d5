package metastore_test

import (
	"strings"
	"testing"
	"time"

	"claviger/metastore"
)

// TestCompare: what the round trip leaves open is taken for no difference, and clocks are
// apart beyond the margin alone.
func TestCompare(t *testing.T) {
	asked := time.Unix(1_700_000_000, 0)
	answered := asked.Add(10 * time.Second)
	for _, tt := range []struct {
		there, ahead time.Duration // after asked
		apart        string
	}{
		{0, 0, ""},
		{10 * time.Second, 0, ""},
		{-metastore.ClockMargin, metastore.ClockMargin, ""},
		{10*time.Second + metastore.ClockMargin, -metastore.ClockMargin, ""},
		{-metastore.ClockMargin - time.Second, metastore.ClockMargin + time.Second, "1m1s ahead of Whose's"},
		{10*time.Second + metastore.ClockMargin + time.Second, -metastore.ClockMargin - time.Second,
			"1m1s behind Whose's"},
	} {
		c := metastore.Compare(asked, asked.Add(tt.there), answered, "Whose's")
		if c.Ahead != tt.ahead {
			t.Errorf("%v: ahead %v, want %v", tt.there, c.Ahead, tt.ahead)
		}
		if err := c.Apart(); (err == nil) != (tt.apart == "") || err != nil &&
			!strings.Contains(err.Error(), tt.apart) {
			t.Errorf("%v: apart: %v, want %q", tt.there, err, tt.apart)
		}
		early, late := answered, answered
		if tt.there < 10*time.Second {
			early = asked.Add(tt.there)
		} else {
			late = asked.Add(tt.there)
		}
		if !c.Earliest().Equal(early) || !c.Latest().Equal(late) {
			t.Errorf("%v: from %v to %v, want %v to %v", tt.there, c.Earliest(), c.Latest(), early, late)
		}
	}
}
