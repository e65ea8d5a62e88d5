package main

import (
	"context"
	"time"

	"claviger/keyring"
	"claviger/provider/hsm"
)

// watchPause lies between two attempts to hear of other nodes' changes.
const watchPause = 5 * time.Second

// sharedKeys is the store by which other nodes change the primary's keys, too; nil
// where nobody else does. Only the HSM provider keeps its keys in the metastore.
func (s *service) sharedKeys() keyring.Shared {
	if _, ok := s.Primary.(*hsm.Provider); !ok {
		return nil
	}
	shared, _ := s.Store.(keyring.Shared)
	return shared
}

// heedOthers makes the ring forget what other nodes change, until ctx ends.
func (s *kmsServer) heedOthers(ctx context.Context) {
	shared := s.svc.sharedKeys()
	for shared != nil {
		err := shared.Watch(ctx, s.ring.Heed)
		if ctx.Err() != nil {
			return
		}
		// No more than speed is lost: what is current is asked for at each use.
		s.log.Error("other nodes' changes are not heard of", "metastore", s.svc.Store.URI(), "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchPause):
		}
	}
}
