package migrate

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"claviger"
	"claviger/provider"
)

const (
	maxConcurrentTries = 8  // versions that are tried at the same time
	maxFailedTries     = 32 // after this number of failures the other versions are not tried
)

// unusable encrypts a block with each version at the target, and returns the reason for each version that
// fails. The metastore may have versions that the HSM does not have, or does not show to this user. After
// maxFailedTries failures, unusable does not try the other versions; their reason says so.
func (e *Engine) unusable(ctx context.Context, versions []string) (map[string]string, error) {
	target, ok := e.cfg.Target.(provider.BlockEncrypter)
	if !ok {
		return nil, fmt.Errorf("the target %s cannot encrypt, so its versions cannot be tried", e.cfg.Target.URI())
	}
	why := make(map[string]string)
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(maxConcurrentTries)
	for _, version := range versions {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			mu.Lock()
			tooMany := len(why) >= maxFailedTries
			mu.Unlock()
			var reason string
			if tooMany {
				reason = fmt.Sprintf("not tried, after %d others failed", maxFailedTries)
			} else if err := target.EncryptBlocks(ctx, version, make([]byte, claviger.IVSize)); err != nil {
				reason = claviger.Reason(err)
			}
			if reason != "" {
				mu.Lock()
				defer mu.Unlock()
				why[version] = reason
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return no errors
	return why, ctx.Err()
}

// tryKeys returns the target's versions of each key. why has the reason for each version with which the target cannot
// encrypt.
func (e *Engine) tryKeys(ctx context.Context, keys []string) (have map[string][]string, why map[string]string,
	err error) {
	have = make(map[string][]string, len(keys))
	var all []string
	for _, key := range keys {
		list, err := e.cfg.Target.Versions(ctx, key)
		if err != nil {
			return nil, nil, err
		}
		have[key] = namesOf(list)
		all = append(all, have[key]...)
	}
	why, err = e.unusable(ctx, all)
	return have, why, err
}
