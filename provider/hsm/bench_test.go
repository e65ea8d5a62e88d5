package hsm

import "testing"

// TestKnee: the knee is the first measurement with nine tenths of the best rate.
func TestKnee(t *testing.T) {
	for _, c := range []struct {
		rates []float64
		want  int
	}{{[]float64{10, 18, 19, 21}, 2}, {[]float64{5}, 0}, {[]float64{100, 90, 10}, 0}, {[]float64{1, 2, 4, 8}, 3}} {
		list := make([]Measurement, len(c.rates))
		for i, r := range c.rates {
			list[i].PerSec = r
		}
		markKnee(list)
		for i, m := range list {
			if m.Knee != (i == c.want) {
				t.Errorf("%v: measurement %d has knee %v", c.rates, i, m.Knee)
			}
		}
	}
}
