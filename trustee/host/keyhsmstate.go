package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"claviger/keyhsm"
	"claviger/trustee/location"
	"claviger/trustee/server"
)

// KeyHSMState is the state of the Key HSM of a trustee, and of the deposits that Key HSMs have wrapped.
type KeyHSMState struct {
	Status keyhsm.Status // of a Key HSM that is ready
	Took   time.Duration // of the connection and the request
	// Wrapped counts the live deposits that a Key HSM has wrapped, by the ID of the pair of keys. Unopened has an error
	// for each pair whose deposits this Key HSM does not open; one deposit of each was tried.
	Wrapped  map[string]int
	Unopened []error
}

// InspectKeyHSM asks the Key HSM of a configuration as a start does, and opens one deposit of each pair. It changes
// nothing. store is nil if its deposits are not to be read.
func InspectKeyHSM(ctx context.Context, c Config, store server.Store) (state KeyHSMState, err error) {
	own, err := serverTLS(c.Folder, true, c.Log)
	if err != nil {
		return state, err
	}
	defer own.Close()
	began := time.Now()
	keeper, err := openKeeper(ctx, c, own.Config)
	if err != nil {
		return state, err
	}
	defer func() { err = errors.Join(err, keeper.Close()) }()
	state.Took = time.Since(began)
	if state.Status, err = keeper.Status(ctx); err != nil {
		return state, err
	}
	if store == nil {
		return state, nil
	}
	wrapped := server.NewWrapped(store, keeper)
	if state.Wrapped, err = wrapped.Count(ctx); err != nil {
		return state, fmt.Errorf("reading the deposits: %w", err)
	}
	state.Unopened = wrapped.Unopened(ctx)
	return state, nil
}

// Deposits returns a function that opens one deposit of each pair of keys that has wrapped deposits of the trustee in
// dir, for the Key HSM's own checks. Its text is for an operator. Without a folder it returns nil.
func Deposits(dir string) func(ctx context.Context, keeper *keyhsm.Keeper) (text string, err error) {
	if dir == "" {
		return nil
	}
	return func(ctx context.Context, keeper *keyhsm.Keeper) (text string, err error) {
		folder, err := location.Load(dir)
		if err != nil {
			return "", err
		}
		store, release, err := location.OpenReadOnly(ctx, folder)
		if err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, release()) }()
		w := server.NewWrapped(store, keeper)
		counts, err := w.Count(ctx)
		if err != nil {
			return "", err
		}
		if len(counts) == 0 {
			return "no deposit in " + dir + " is wrapped", nil
		}
		for _, id := range slices.Sorted(maps.Keys(counts)) {
			text += fmt.Sprintf("%d wrapped by %s, ", counts[id], id)
		}
		return text + "one of each was opened", errors.Join(w.Unopened(ctx)...)
	}
}
