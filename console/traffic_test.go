package console_test

import (
	"testing"
	"time"

	"claviger/console"
)

// TestTraffic: requests are counted in the interval of their end, percentiles are at most 19 % too high, and what is
// older than 15 minutes is gone.
func TestTraffic(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 5, 0, time.UTC)
	traffic := console.NewTraffic(func() time.Time { return now })
	for i := range 100 {
		status := 200
		if i >= 97 {
			status = 500 + i%2*3
		}
		traffic.Observe("decrypt_eek", status, 1, time.Duration(i+1)*time.Millisecond)
	}
	traffic.Observe("decrypt_eek", 404, 1, 0)
	if list := traffic.Intervals(time.Minute); len(list) != 15 || list[14].Requests != 0 {
		t.Errorf("the slot of now counts: %+v", list)
	}
	now = now.Add(10 * time.Second)
	list := traffic.Intervals(10 * time.Second)
	last := list[len(list)-1]
	if len(list) != 90 || last.Requests != 101 || last.Errors != 3 || last.PerSecond() != 10.1 ||
		!last.Begin.Equal(now.Truncate(10*time.Second).Add(-10*time.Second)) {
		t.Errorf("%d, %+v", len(list), last)
	}
	for _, c := range []struct{ got, want time.Duration }{
		{last.P50, 50 * time.Millisecond}, {last.P99, 99 * time.Millisecond},
	} {
		if c.got < c.want || float64(c.got) > 1.2*float64(c.want) {
			t.Errorf("a percentile is %v, want %v", c.got, c.want)
		}
	}
	for _, c := range []struct {
		later time.Duration
		want  int
	}{{890 * time.Second, 101}, {900 * time.Second, 0}} {
		moment := now
		now = now.Add(c.later)
		sum := 0
		for _, i := range traffic.Intervals(time.Minute) {
			sum += i.Requests
		}
		if now = moment; sum != c.want {
			t.Errorf("after %v: %d requests, want %d", c.later, sum, c.want)
		}
	}
	traffic.Observe("", 200, 0, 1000*time.Hour) // longer than the last bucket
}
