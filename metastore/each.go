package metastore

import (
	"context"
	"slices"
)

// eachAtOnce is how many keys Each reads by one Get.
const eachAtOnce = 256

type asItIs struct{}

// AsItIs has reads with ctx tell what a store has, also where it is known to lack
// changes that were acknowledged, and is in doubt of all that it does not have. It is
// for comparing a store with a token, never for an answer to a client.
func AsItIs(ctx context.Context) context.Context { return context.WithValue(ctx, asItIs{}, true) }

// IsAsItIs is for stores.
func IsAsItIs(ctx context.Context) bool { return ctx.Value(asItIs{}) != nil }

// Each calls fn with every key that a store has, see AsItIs, by name. A key that is
// deleted meanwhile may be left out, and so may one that is made meanwhile.
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
