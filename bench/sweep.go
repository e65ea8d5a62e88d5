package bench

import (
	"context"
	"fmt"
)

// Knee is the smallest step of a sweep whose throughput is within a twentieth of the greatest. More load than that
// brings no more work.
type Knee struct {
	KMS         string  `json:"kms"`
	Load        string  `json:"load"`
	Connections int     `json:"connections"`
	Rate        float64 `json:"rate,omitempty"`
	PerSecond   float64 `json:"perSecond"`
	P99         float64 `json:"p99Ms"`
	// Last is true if the last step was the best, so a greater load may bring more.
	Last bool `json:"last"`
}

// nearBest is the share of the greatest throughput that the knee has at least.
const nearBest = 0.95

// sweep loads each KMS with more and more connections, or at a greater and greater rate.
func (r *Report) sweep(ctx context.Context, o *Options, targets []*target, load string,
	show func(done, of int, step string)) error {
	shapes := o.steps(load)
	for i, t := range targets {
		if err := warm(ctx, t, shapes[len(shapes)-1], o.WarmUp); err != nil {
			return err
		}
		var steps []*Measurement
		for n, s := range shapes {
			show(i*len(shapes)+n, len(targets)*len(shapes), t.name)
			m, err := measure(ctx, t, s)
			if err != nil {
				return fmt.Errorf("with %d connections and a rate of %.0f/s: %w", s.connections, s.rate, err)
			}
			steps = append(steps, m)
			r.judge(o, m)
		}
		r.Measurements = append(r.Measurements, steps...)
		r.Knees = append(r.Knees, knee(steps))
	}
	show(1, 1, "done")
	return nil
}

// rateSteps is the number of steps of a sweep of rates.
const rateSteps = 10

// steps returns the loads of a sweep.
func (o *Options) steps(load string) (shapes []shape) {
	s := shape{load: load, connections: o.Connections, connect: o.Connect, duration: o.Duration}
	if o.Rate > 0 {
		for n := 1; n <= rateSteps; n++ {
			s.rate = o.Rate * float64(n) / rateSteps
			shapes = append(shapes, s)
		}
		return shapes
	}
	for n := 1; n < o.Connections; n *= 2 {
		s.connections = n
		shapes = append(shapes, s)
	}
	s.connections = o.Connections
	return append(shapes, s)
}

func knee(steps []*Measurement) Knee {
	best := 0
	for i, m := range steps {
		if m.PerSecond > steps[best].PerSecond {
			best = i
		}
	}
	for _, m := range steps {
		if m.PerSecond >= nearBest*steps[best].PerSecond {
			return Knee{KMS: m.KMS, Load: m.Load, Connections: m.Connections, Rate: m.Rate, PerSecond: m.PerSecond,
				P99: m.Latency.P99, Last: best == len(steps)-1 && m == steps[best]}
		}
	}
	return Knee{}
}
