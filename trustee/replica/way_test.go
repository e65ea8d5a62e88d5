package replica

import "testing"

// TestWayOf: the active server goes on alone only where an operator says so, and not before it has asked
// the passive server, which may have been promoted.
func TestWayOf(t *testing.T) {
	for _, c := range []struct {
		synced, tried, alone bool
		want                 way
	}{
		{false, false, false, noWay}, {false, false, true, noWay}, {false, true, false, noWay},
		{false, true, true, alone},
		{true, false, false, both}, {true, false, true, both}, {true, true, false, both}, {true, true, true, both},
	} {
		r := &Replica{synced: c.synced, tried: c.tried}
		if got := r.wayOf(&Position{Alone: c.alone}); got != c.want {
			t.Errorf("synced %t, tried %t, alone %t: way %d, want %d", c.synced, c.tried, c.alone, got, c.want)
		}
	}
}
