package replica

import "testing"

// TestModeOf: the active server works alone only if an operator allows it, and not before it has tried to reach
// the passive server, which may have been promoted.
func TestModeOf(t *testing.T) {
	for _, c := range []struct {
		synced, checked, alone bool
		want                   mode
	}{
		{false, false, false, refuse}, {false, false, true, refuse}, {false, true, false, refuse},
		{false, true, true, alone},
		{true, false, false, both}, {true, false, true, both}, {true, true, false, both}, {true, true, true, both},
	} {
		r := &Replica{synced: c.synced, checked: c.checked}
		if got := r.modeOf(&Position{Alone: c.alone}); got != c.want {
			t.Errorf("synced %t, checked %t, alone %t: mode %d, want %d", c.synced, c.checked, c.alone, got, c.want)
		}
	}
}
