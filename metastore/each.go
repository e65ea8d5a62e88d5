package metastore

import (
	"context"
	"slices"
)

// eachChunk is the number of keys that Each reads with one Get.
const eachChunk = 256

type asItIs struct{}

// AsItIs returns a context for reads that succeed even if the store is known to lack acknowledged changes, when other
// reads fail. It is for comparing a store with a token, and never for an answer to a client.
func AsItIs(ctx context.Context) context.Context { return context.WithValue(ctx, asItIs{}, true) }

// IsAsItIs reports whether ctx is from AsItIs. Stores call it.
func IsAsItIs(ctx context.Context) bool { return ctx.Value(asItIs{}) != nil }

// Each calls fn with every key of a store, sorted by name; see AsItIs. It may omit keys that are created or deleted
// during the call.
func Each(ctx context.Context, s Keys, fn func(*Key)) error {
	ctx = AsItIs(ctx)
	names, err := s.Names(ctx)
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(names, eachChunk) {
		keys, err := s.Get(ctx, chunk...)
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
