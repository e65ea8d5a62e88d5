package metastore

import (
	"context"
	"slices"
)

// eachAtOnce is how many keys Each reads by one Get.
const eachAtOnce = 256

// Each calls fn with every key of a store, by name. A key that is deleted meanwhile
// may be left out, and so may one that is made meanwhile.
func Each(ctx context.Context, s Keys, fn func(*Key)) error {
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
