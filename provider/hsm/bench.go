package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// edekBytes is the size of what the HSM encrypts for one EDEK of a 256-bit DEK: two counter blocks.
const edekBytes = 32

// Measurement says how long calls to the token took. Each call encrypts for EDEKs EDEKs, and Sessions calls run at the
// same time.
type Measurement struct {
	What     string        `json:"what"`     // in words
	Sessions int           `json:"sessions"` // that make calls at the same time
	EDEKs    int           `json:"edeks"`    // in each call
	Calls    int           `json:"calls"`
	Median   time.Duration `json:"medianNanoseconds"`
	P90      time.Duration `json:"p90Nanoseconds"`
	P99      time.Duration `json:"p99Nanoseconds"`
	Max      time.Duration `json:"maxNanoseconds"`
	PerSec   float64       `json:"edeksPerSecond"`
	// Knee marks the fewest sessions, and the smallest calls, with at least nine tenths of the best rate.
	Knee bool `json:"knee"`
}

func newMeasurement(sessions, edeks int) Measurement {
	what := "one EDEK a call"
	if edeks > 1 {
		what = fmt.Sprintf("%d EDEKs a call", edeks)
	}
	return Measurement{What: what, Sessions: sessions, EDEKs: edeks}
}

// Bench measures calls to the token, with the newest version of some key, for about so long in each step. It begins
// with calls for one EDEK, by one session and then by twice as many, up to the limit of the configuration. Then one
// session makes calls for more and more EDEKs, up to a NameNode's batch of 1,000. It fails if there is no key. step is
// called before each step, and at the end.
func (p *Provider) Bench(ctx context.Context, each time.Duration, step func(done, steps int, name string)) (
	[]Measurement, error) {
	e, err := p.someEntry(ctx)
	if err != nil {
		return nil, err
	}
	_, limit := p.tok.Sessions()
	var plan []Measurement
	for n := 1; n < limit; n *= 2 {
		plan = append(plan, newMeasurement(n, 1))
	}
	plan = append(plan, newMeasurement(limit, 1))
	calls := len(plan)
	for _, n := range []int{1, 10, 100, 1000} {
		plan = append(plan, newMeasurement(1, n))
	}
	for i := range plan {
		m := &plan[i]
		step(i, len(plan), fmt.Sprintf("%d sessions, %s", m.Sessions, m.What))
		if err := p.measure(ctx, e, each, m); err != nil {
			return nil, err
		}
	}
	step(len(plan), len(plan), "")
	markKnee(plan[:calls])
	markKnee(plan[calls:])
	return plan, nil
}

// markKnee marks the first measurement with at least nine tenths of the best rate.
func markKnee(list []Measurement) {
	best := slices.MaxFunc(list, func(a, b Measurement) int { return int(a.PerSec - b.PerSec) })
	for i := range list {
		if list[i].PerSec >= 0.9*best.PerSec {
			list[i].Knee = true
			return
		}
	}
}

// leastCalls is the number of calls of each session in a step, at least.
const leastCalls = 10

// measure makes calls for that time, and no fewer than leastCalls by each session.
func (p *Provider) measure(ctx context.Context, e *entry, each time.Duration, m *Measurement) error {
	took := make([][]time.Duration, m.Sessions)
	errs := make([]error, m.Sessions)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range m.Sessions {
		wg.Go(func() {
			blocks := make([]byte, m.EDEKs*edekBytes)
			_, _ = rand.Read(blocks) // crypto/rand never fails
			for errs[i] == nil && (len(took[i]) < leastCalls || time.Since(began) < each) {
				from := time.Now()
				errs[i] = p.withChoice(ctx, e, func() error {
					return p.tok.EncryptAlone(ctx, e.id, e.name, e.check, blocks)
				})
				took[i] = append(took[i], time.Since(from))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	m.Calls, m.Max = len(all), all[len(all)-1]
	m.Median, m.P90, m.P99 = all[len(all)/2], all[len(all)*90/100], all[len(all)*99/100]
	m.PerSec = float64(m.EDEKs*m.Calls) / time.Since(began).Seconds()
	return nil
}

// someEntry returns the newest version of some key that has a check value.
func (p *Provider) someEntry(ctx context.Context) (*entry, error) {
	names, err := p.Keys(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.needsToken(ctx, "hsm.Bench"); err != nil {
		return nil, err
	}
	for _, n := range names {
		v, err := p.Current(ctx, n)
		if err != nil {
			continue
		}
		if e, err := p.entry(ctx, v.Name); err == nil && len(e.check) > 0 {
			return e, nil
		}
	}
	return nil, errors.New("there is no key yet to measure with; create one: " +
		"hadoop key create bench -provider kms://...")
}
