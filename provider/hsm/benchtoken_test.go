package hsm_test

import (
	"strings"
	"testing"
	"time"
)

// TestBench: each step of the measurement uses its own number of sessions and of EDEKs in a call, and reports them. The
// progress counts the steps.
func TestBench(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	each := 5 * time.Millisecond
	if _, err := p.Bench(t.Context(), each, func(int, int, string) {}); err == nil ||
		!strings.Contains(err.Error(), "no key yet") {
		t.Errorf("without a key: %v", err)
	}
	create(t, p, "k")
	const latency = 3 * time.Millisecond
	b.meter.SetLatency(latency)
	shown := 0
	list, err := p.Bench(t.Context(), each, func(done, steps int, _ string) {
		if done != shown || steps != 10 {
			t.Errorf("step %d of %d after %d", done, steps, shown)
		}
		shown++
	})
	b.meter.SetLatency(0)
	if err != nil || shown != 11 || len(list) != 10 {
		t.Fatalf("%d measurements, %d steps shown, %v", len(list), shown, err)
	}
	for i, want := range [][2]int{{1, 1}, {2, 1}, {4, 1}, {8, 1}, {16, 1}, {29, 1}, {1, 1}, {1, 10}, {1, 100},
		{1, 1000}} {
		m := list[i]
		if m.Sessions != want[0] || m.EDEKs != want[1] || m.Calls < 10*m.Sessions || m.Median < latency ||
			m.P90 < m.Median || m.P99 < m.P90 || m.Max < m.P99 {
			t.Errorf("%d sessions, %d EDEKs a call: %+v", want[0], want[1], m)
		}
	}
	if one, all := list[0].PerSec, list[5].PerSec; all < 2*one {
		t.Errorf("%.0f EDEKs/s with one session, %.0f with all", one, all)
	}
	if !list[9].Knee {
		t.Errorf("calls for 1,000 EDEKs are not the knee: %+v", list[6:])
	}
}
