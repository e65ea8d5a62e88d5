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
	// clocksEvery is the time between two comparisons of the clocks. clocksHold is how long
	// readiness reuses a successful comparison. Each comparison is a write in ZooKeeper.
	clocksEvery = 30 * time.Second
	clocksHold  = 5 * time.Second
)

// clockWatch compares this host's clock with the clocks that all nodes use.
type clockWatch struct {
	log    *slog.Logger
	clocks map[string]metastore.Clock // by the value of the metric's label

	mu    sync.Mutex
	ahead map[string]float64 // seconds, at the last comparison
	wrong bool               // the last state that was logged
}

// clocksOf returns the clocks that this node shares with others.
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

// check compares the clocks, and returns an error that names the clocks that differ too much. A clock that does not
// answer is not an error here: another check reports its store.
func (w *clockWatch) check(ctx context.Context) error {
	ahead := map[string]float64{}
	var differences []error
	for _, name := range slices.Sorted(maps.Keys(w.clocks)) {
		c, err := w.clocks[name].Clocks(ctx)
		if err != nil {
			continue
		}
		ahead[name] = c.Ahead.Seconds()
		differences = append(differences, c.Check())
	}
	err := errors.Join(differences...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ahead = ahead
	switch wrong := err != nil; {
	case wrong && !w.wrong:
		w.log.Error("a clock is wrong: no key is purged, and delegation tokens may be refused with 503", "err", err)
		w.wrong = true
	case !wrong && w.wrong && len(ahead) == len(w.clocks):
		w.log.Info("the clocks agree again")
		w.wrong = false
	}
	return err
}

// run compares the clocks until ctx ends, so that the log has the result even if
// nobody reads readiness.
func (w *clockWatch) run(ctx context.Context) {
	for len(w.clocks) > 0 {
		_ = w.check(ctx) // it logs the result
		select {
		case <-ctx.Done():
			return
		case <-time.After(clocksEvery):
		}
	}
}

// checks returns no check if this node shares no clock.
func (w *clockWatch) checks() []console.Check {
	if len(w.clocks) == 0 {
		return nil
	}
	// Informational: nobody knows which clock is wrong, and only tokens and purges are affected.
	return []console.Check{{Name: "clock", Informational: true, Run: w.check, Holds: clocksHold}}
}

// metrics adds the difference of this host's clock.
func (w *clockWatch) metrics(m *console.Metrics) {
	if len(w.clocks) == 0 {
		return
	}
	m.Gauges("claviger_clock_ahead_seconds", "How far this host's clock is ahead of the metastore's and ZooKeeper's, "+
		"as last compared; negative: behind.", "clock", func() map[string]float64 {
		w.mu.Lock()
		defer w.mu.Unlock()
		return maps.Clone(w.ahead)
	})
}
