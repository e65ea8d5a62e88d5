package metastore

import (
	"context"
	"math"
	"slices"
	"strconv"

	"claviger"
)

// eachChunk is the number of keys that Each reads with one Get.
const eachChunk = 256

type incompleteKey struct{}

// AllowIncomplete returns a context for reads that succeed even if the store is known to lack acknowledged changes,
// when other reads fail. It is for comparing a store with a token, and never for an answer to a client.
func AllowIncomplete(ctx context.Context) context.Context {
	return context.WithValue(ctx, incompleteKey{}, true)
}

// AllowsIncomplete reports whether ctx is from AllowIncomplete. Stores call it.
func AllowsIncomplete(ctx context.Context) bool { return ctx.Value(incompleteKey{}) != nil }

// ParsePage returns the number of a row from the place where a page begins; see Keys.
func ParsePage(op, from string) (after int64, err error) {
	if from == "" {
		return math.MinInt64, nil
	}
	if after, err = strconv.ParseInt(from, 10, 64); err != nil {
		return 0, claviger.Errorf(op, claviger.Invalid, "", "a page that begins at %q: %w", from, err)
	}
	return after, nil
}

// NextPage returns the place where the page after that row begins, or "" if there is none.
func NextPage(more bool, last int64) string {
	if !more {
		return ""
	}
	return strconv.FormatInt(last, 10)
}

// Each calls fn with every key of a store, sorted by name; see AllowIncomplete. It may omit keys that are created or
// deleted during the call.
func Each(ctx context.Context, s Keys, fn func(*Key)) error {
	ctx = AllowIncomplete(ctx)
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
