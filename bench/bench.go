// Package bench loads running KMSs and compares them. It is the work of 'claviger bench kms'.
//
// A load sends requests as Hadoop's clients do: decrypts, the generation of 350 EDEKs, the re-encryption of 1,000, or a
// mix. Several KMSs are loaded in turn, round by round. With a rate, requests are due at equal distances, and the
// latency of a request is the time since it was due (an open loop), so the latency shows when a server stalls. Each
// answer is checked.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"claviger"
	"claviger/durable"
	"claviger/terminal"
)

// Report is the result of the command.
type Report struct {
	Format string    `json:"format"`
	At     time.Time `json:"at"`
	Cores  int       `json:"cores"` // of this machine
	Auth   string    `json:"auth"`
	Key    string    `json:"key,omitempty"` // the existing key that was used
	// Measurements are the median round of each load of each KMS, or the steps of a sweep.
	Measurements []*Measurement `json:"measurements"`
	Ratios       []Ratio        `json:"ratios"`
	Knees        []Knee         `json:"knees,omitempty"`
	NotRemoved   []string       `json:"left"`   // what could not be removed
	Missed       []string       `json:"missed"` // thresholds that were missed
}

// Run does the work of the command. It shows progress on log.
func Run(ctx context.Context, o *Options, urls []string, log io.Writer) error {
	targets, err := o.check(urls)
	if err != nil {
		return err
	}
	if o.HTML != "" {
		if err := terminal.NewFile("the report", o.HTML); err != nil {
			return err
		}
	}
	r := &Report{Format: "claviger bench 1", At: time.Now().UTC().Truncate(time.Second), Cores: runtime.NumCPU(),
		Auth: o.Auth, Key: o.Key, NotRemoved: []string{}, Missed: []string{}, Ratios: []Ratio{}}
	err = r.measure(ctx, o, targets, log)
	// The keys are removed also after an interrupt, and after a KMS failed.
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	for _, t := range targets {
		left, failed := t.close(late)
		if err = errors.Join(err, failed); left != "" {
			r.NotRemoved = append(r.NotRemoved, left)
		}
	}
	if err != nil {
		return err
	}
	if err := o.Out.Write(r, r.text); err != nil {
		return err
	}
	if o.HTML != "" {
		page, err := r.page()
		if err != nil {
			return err
		}
		if err := durable.Create(o.HTML, page, os.FileMode(0o644)); err != nil { //nolint:gosec // it has no secret
			return err
		}
	}
	return r.verdict()
}

// measure makes all measurements.
func (r *Report) measure(ctx context.Context, o *Options, targets []*target, log io.Writer) error {
	for _, t := range targets {
		if err := t.open(ctx, o); err != nil {
			return err
		}
		if err := t.prepare(ctx); err != nil {
			return err
		}
	}
	p := terminal.NewProgress(log, "rounds", o.Quiet)
	defer p.End()
	work := r.compare
	if o.Sweep {
		work = r.sweep
	}
	for i, load := range o.Loads {
		show := func(done, of int, step string) { p.Show(i*of+done, len(o.Loads)*of, load+": "+step) }
		if err := work(ctx, o, targets, load, show); err != nil {
			return err
		}
	}
	return nil
}

// compare loads the KMSs in turn.
func (r *Report) compare(ctx context.Context, o *Options, targets []*target, load string,
	show func(done, of int, step string)) error {
	s := shape{load: load, connections: o.Connections, rate: o.Rate, connect: o.Connect, duration: o.Duration}
	for _, t := range targets {
		show(0, o.Rounds, "warming up "+t.name)
		if err := warm(ctx, t, s, o.WarmUp); err != nil {
			return err
		}
	}
	rounds := make([][]*Measurement, len(targets))
	for n := range o.Rounds {
		for i, t := range targets {
			show(n, o.Rounds, t.name)
			m, err := measure(ctx, t, s)
			if err != nil {
				return err
			}
			rounds[i] = append(rounds[i], m)
			r.judge(o, m)
		}
	}
	for i := range targets {
		r.Measurements = append(r.Measurements, medianRound(rounds[i]))
		if last := len(targets) - 1; i < last {
			r.Ratios = append(r.Ratios, ratio(rounds[i], rounds[last]))
		}
	}
	show(o.Rounds, o.Rounds, "done")
	return nil
}

// A JVM compiles what it runs often, so it gets faster during up to a minute of load.
const (
	warmRounds = 12   // at most
	faster     = 1.05 // a round with less than this factor of the best is no faster
)

// warm loads a KMS until two rounds in a row are no faster than the best one before. It ignores the rate, because the
// number of requests warms a JVM up, not the time.
func warm(ctx context.Context, t *target, s shape, d time.Duration) error {
	if d == 0 {
		return nil
	}
	s.rate, s.duration = 0, d
	best, same := 0.0, 0
	for range warmRounds {
		m, err := measure(ctx, t, s)
		if err != nil {
			return err
		}
		if m.work() >= faster*best {
			same = 0
		} else if same++; same == 2 {
			return nil
		}
		best = max(best, m.work())
	}
	return nil
}

// judge records the thresholds that a measurement missed.
func (r *Report) judge(o *Options, m *Measurement) {
	p99 := time.Duration(m.Latency.P99 * float64(time.Millisecond))
	switch {
	case o.P99 > 0 && m.Doubtful:
		r.miss("%s, %s: no verdict on --p99, because this process sent its requests late (p99 %.1f ms, of %.1f ms)",
			m.KMS, m.Load, m.Lateness.P99, m.Latency.P99)
	case o.P99 > 0 && p99 > o.P99:
		r.miss("%s, %s: p99 is %v, and --p99 allows %v", m.KMS, m.Load, p99.Round(time.Microsecond*100), o.P99)
	}
	if o.MaxFailures >= 0 && m.Failures > o.MaxFailures {
		r.miss("%s, %s: %d requests failed, and --max-failures allows %d", m.KMS, m.Load, m.Failures, o.MaxFailures)
	}
}

func (r *Report) miss(format string, args ...any) {
	r.Missed = append(r.Missed, claviger.Printable(fmt.Sprintf(format, args...)))
}

// verdict returns an error if a threshold was missed.
func (r *Report) verdict() error {
	if len(r.Missed) == 0 {
		return nil
	}
	return claviger.Refuse("%d of the thresholds of the command line were missed; the first: %s", len(r.Missed),
		r.Missed[0])
}
