package metastore

import (
	"context"
	"slices"
)

// eachAtOnce is the number of keys that Each reads by one Get.
const eachAtOnce = 256

type asItIs struct{}

// AsItIs returns a context for reads that return the store's content as it is, even where the store is known to
// lack acknowledged changes and other reads fail. It is for comparing a store with a token, and never for an
// answer to a client.
func AsItIs(ctx context.Context) context.Context { return context.WithValue(ctx, asItIs{}, true) }

// IsAsItIs reports whether ctx comes from AsItIs. Stores call it.
func IsAsItIs(ctx context.Context) bool { return ctx.Value(asItIs{}) != nil }

// Each calls fn with every key of a store, by name; see AsItIs. Keys that are made or deleted during the call may
// be left out.
func Each(ctx context.Context, s Keys, fn func(*Key)) error {
	ctx = AsItIs(ctx)
	names, err := s.Names(ctx)
	if err != nil {
		return err
	}
	for part := range slices.Chunk(names, eachAtOnce) {
		keys, err := s.Get(ctx, part...)
		if err != nil {
			return err
		}
		for _, k := range keys {
			if k != nil {
				fn(k)
			}
		}
	}
	return nil
}
