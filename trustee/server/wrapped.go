package server

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
)

// wrappedFor is how long Wrapped.Check returns the same result.
const wrappedFor = time.Minute

// Wrapped checks whether a Keeper can open the wrapped deposits of a store.
type Wrapped struct {
	store  Store
	keeper Keeper // nil without a Key HSM

	mu      sync.Mutex
	checked time.Time
	err     error
}

// NewWrapped makes a check of the wrapped deposits in store. keeper is nil if the server has no Key HSM.
func NewWrapped(store Store, keeper Keeper) *Wrapped { return &Wrapped{store: store, keeper: keeper} }

// Count counts live wrapped deposits by the id of the HSM key.
func (w *Wrapped) Count(ctx context.Context) (map[string]int, error) {
	counts, _, err := w.count(ctx)
	return counts, err
}

// count is like Count. samples also has the uuid of one deposit of each key.
func (w *Wrapped) count(ctx context.Context) (counts map[string]int, samples map[string]string, err error) {
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

// Check opens one deposit of each HSM key. A Key HSM that does not answer is not an error here, because
// another check reports it. For a minute, Check returns the same result.
func (w *Wrapped) Check(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.checked.IsZero() && time.Since(w.checked) < wrappedFor {
		return w.err
	}
	errs := slices.DeleteFunc(w.Unopened(ctx), func(err error) bool { return claviger.Is(err, claviger.Unavailable) })
	w.checked, w.err = time.Now(), errors.Join(errs...)
	return w.err
}

// Unopened returns an error for each HSM key whose deposits were not opened.
func (w *Wrapped) Unopened(ctx context.Context) []error {
	counts, samples, err := w.count(ctx)
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(counts)) {
		if w.keeper == nil {
			errs = append(errs, fmt.Errorf("%d deposits are wrapped by key %s of a Key HSM, and this trustee was "+
				"started without --keyhsm: it opens none of them", counts[id], id))
			continue
		}
		if err := w.open(ctx, samples[id]); err != nil {
			errs = append(errs, fmt.Errorf("%d deposits are wrapped by key %s, which this Key HSM does not open "+
				"(%w): give it that key of the HSM, or name the Key HSM that has it by --keyhsm", counts[id], id, err))
		}
	}
	return errs
}

// open opens one deposit, and wipes its content. A deposit that was deleted meanwhile is not an error.
func (w *Wrapped) open(ctx context.Context, uuid string) error {
	row, err := w.store.Get(ctx, uuid)
	if claviger.Is(err, claviger.KeyNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	content, err := w.keeper.Unwrap(ctx, row.UUID, row.Sealed.Content)
	clear(content)
	return err
}

// MayServe refuses a start without a Key HSM if a Key HSM has wrapped deposits, unless without is true:
// new deposits would be stored unwrapped.
func (w *Wrapped) MayServe(ctx context.Context, without bool) error {
	if w.keeper != nil || without {
		return nil
	}
	counts, err := w.Count(ctx)
	if err != nil || len(counts) == 0 {
		return err
	}
	n := 0
	for _, c := range counts {
		n += c
	}
	return claviger.Refuse("%d deposits are wrapped by a Key HSM, and --keyhsm is not given: none of them could be "+
		"opened, and new ones would be stored unwrapped. Name the Key HSM by --keyhsm and --keyhsm-cert. If you gave "+
		"up the Key HSM: --without-keyhsm", n)
}
