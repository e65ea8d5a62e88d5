package keyring

import (
	"sync/atomic"
	"time"

	"claviger"
)

const (
	// unopenedInARow decrypts must have failed for want of the store, and none gone well
	// for openedHolds, before a node counts as one that opens nothing. So a user who asks for
	// versions that are not in memory puts no node out of service that opens others.
	unopenedInARow = 3
	openedHolds    = 10 * time.Second
)

// openings remembers whether decrypts of own versions were served, as far as that is the
// store's doing.
type openings struct {
	row  atomic.Int64 // failed since one went well
	well atomic.Int64 // the last one that went well, in milliseconds since 1970; 0: none
}

// saw takes what reading a version, or noting its use, came to.
func (o *openings) saw(err error) {
	switch {
	case err == nil:
		if o.row.Load() != 0 {
			o.row.Store(0)
		}
		// To the second, so that processors don't fight over it.
		if now := time.Now().UnixMilli(); now-o.well.Load() >= 1000 {
			o.well.Store(now)
		}
	case claviger.Is(err, claviger.Unavailable):
		o.row.Add(1)
	}
}

// OpensFromMemory returns nil where EDEKs of own versions can be opened while the store is
// away, as far as this node knows: it remembers versions, within the lease, and decrypts were
// not all refused lately. Its error does not say that the store is away.
func (r *Ring) OpensFromMemory() error {
	if err := r.Leased(); err != nil {
		return err
	}
	if r.versions.empty() {
		return claviger.Errorf("keyring.OpensFromMemory", claviger.Unavailable, "",
			"this node has used no key version since its start that it could serve from memory")
	}
	row, well := r.opened.row.Load(), time.UnixMilli(r.opened.well.Load())
	if row < unopenedInARow || time.Since(well) < openedHolds {
		return nil
	}
	last := "none was served since the start"
	if well.UnixMilli() != 0 {
		last = "the last one was served " + stamp(well)
	}
	return claviger.Errorf("keyring.OpensFromMemory", claviger.Unavailable, "",
		"the last %d decrypts needed the metastore and failed; %s", row, last)
}
