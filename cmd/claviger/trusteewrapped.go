package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"claviger"
	"claviger/keyhsm"
	"claviger/trustee/server"
)

// wrappedFor is how long the answer about the wrapped deposits holds.
const wrappedFor = time.Minute

// wrappedDeposits asks whether the Key HSM of a trustee opens what its store holds.
type wrappedDeposits struct {
	store  server.Store
	keeper server.Keeper // nil: none

	mu    sync.Mutex
	asked time.Time
	why   error
}

// count counts live wrapped deposits by the id of the HSM key, and names one of each.
func (w *wrappedDeposits) count(ctx context.Context) (counts map[string]int, samples map[string]string, err error) {
	counts, samples = map[string]int{}, map[string]string{}
	store, ok := w.store.(interface {
		Wrapped(ctx context.Context, bytes int, f func(uuid string, head []byte)) error
	})
	if !ok {
		return counts, samples, nil
	}
	err = store.Wrapped(ctx, keyhsm.MaxHead, func(uuid string, head []byte) {
		id := keyhsm.KeyIDOfHead(head)
		counts[id]++
		samples[id] = uuid
	})
	return counts, samples, err
}

// check opens a deposit of each HSM key. Where the Key HSM does not answer, another
// check says so.
func (w *wrappedDeposits) check(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.asked.IsZero() && time.Since(w.asked) < wrappedFor {
		return w.why
	}
	errs := slices.DeleteFunc(w.unopened(ctx), func(err error) bool { return claviger.Is(err, claviger.Unavailable) })
	w.asked, w.why = time.Now(), errors.Join(errs...)
	return w.why
}

// unopened has an error for each HSM key whose deposits were not opened.
func (w *wrappedDeposits) unopened(ctx context.Context) []error {
	counts, samples, err := w.count(ctx)
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(counts)) {
		if w.keeper == nil {
			errs = append(errs, fmt.Errorf("%d deposits are wrapped by key %s of a Key HSM, and this trustee was started without --keyhsm: it opens none of them", counts[id], id))
			continue
		}
		row, err := w.store.Get(ctx, samples[id])
		if claviger.Is(err, claviger.KeyNotFound) {
			continue // deleted meanwhile
		}
		var content []byte
		if err == nil {
			content, err = w.keeper.Unwrap(ctx, row.UUID, row.Sealed.Content)
			clear(content)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%d deposits are wrapped by key %s, which this Key HSM does not open (%w): give it that key of the HSM, or name the Key HSM that has it by --keyhsm", counts[id], id, err))
		}
	}
	return errs
}

// mayServe refuses to start without a Key HSM where deposits are wrapped by one: new
// ones would be stored as they come.
func (w *wrappedDeposits) mayServe(ctx context.Context, without bool) error {
	if w.keeper != nil || without {
		return nil
	}
	counts, _, err := w.count(ctx)
	if err != nil || len(counts) == 0 {
		return err
	}
	n := 0
	for _, c := range counts {
		n += c
	}
	return &exitError{exitRefused, fmt.Errorf("%d deposits are wrapped by a Key HSM, and --keyhsm is not given: none of them could be opened, and new ones would be stored without it. Name the Key HSM by --keyhsm and --keyhsm-cert; where it is given up: --without-keyhsm", n)}
}
