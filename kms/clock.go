package kms

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"claviger/console"
	"claviger/metastore"
	"claviger/zookeeper"
)

const (
	// clocksEvery lies between two comparisons of the clocks, and clocksHold is how long one
	// holds that readiness asks for. At ZooKeeper each is a change.
	clocksEvery = 30 * time.Second
	clocksHold  = 5 * time.Second
)

// clockWatch compares this host's clock with those that nodes share.
type clockWatch struct {
	log *slog.Logger
	of  map[string]metastore.Clock // by whose they are, as the metric says it

	mu    sync.Mutex
	ahead map[string]float64 // seconds, as last compared
	wrong bool               // as the log was told
}

// clocksOf are the clocks that this node shares with others.
func clocksOf(svc *Service, shared *cluster) map[string]metastore.Clock {
	of := map[string]metastore.Clock{}
	switch {
	case svc.Store != nil:
		of["metastore"] = svc.Store
	case shared.store != nil:
		of["metastore"] = shared.store
	}
	if tokens, ok := shared.tokens.(*zookeeper.Tokens); ok {
		of["zookeeper"] = tokens
	}
	return of
}

// check compares the clocks, and returns an error that names those that are apart. A clock
// that does not answer is no error here: other checks report its store.
func (w *clockWatch) check(ctx context.Context) error {
	ahead := map[string]float64{}
	var apart []error
	for _, whose := range slices.Sorted(maps.Keys(w.of)) {
		c, err := w.of[whose].Clocks(ctx)
		if err != nil {
			continue
		}
		ahead[whose] = c.Ahead.Seconds()
		apart = append(apart, c.Apart())
	}
	err := errors.Join(apart...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ahead = ahead
	switch wrong := err != nil; {
	case wrong && !w.wrong:
		w.log.Error("a clock is wrong: no key is purged, and delegation tokens may be refused with 503", "err", err)
		w.wrong = true
	case !wrong && w.wrong && len(ahead) == len(w.of):
		w.log.Info("the clocks agree again")
		w.wrong = false
	}
	return err
}

// run compares the clocks until ctx ends, also where nobody asks for readiness.
func (w *clockWatch) run(ctx context.Context) {
	for len(w.of) > 0 {
		_ = w.check(ctx) // it is in the log
		select {
		case <-ctx.Done():
			return
		case <-time.After(clocksEvery):
		}
	}
}

// checks is none where no clock is shared.
func (w *clockWatch) checks() []console.Check {
	if len(w.of) == 0 {
		return nil
	}
	// Whose clock is wrong is not known, and all but tokens and purges is served as before.
	return []console.Check{{Name: "clock", Informational: true, Run: w.check, Holds: clocksHold}}
}

// metrics shows by how much this host's clock is off.
func (w *clockWatch) metrics(m *console.Metrics) {
	if len(w.of) == 0 {
		return
	}
	m.Gauges("claviger_clock_ahead_seconds", "How far this host's clock is ahead of the metastore's and ZooKeeper's, "+
		"as last compared; negative: behind.",
		"clock", func() map[string]float64 {
			w.mu.Lock()
			defer w.mu.Unlock()
			return maps.Clone(w.ahead)
		})
}
