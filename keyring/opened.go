package keyring

import (
	"sync/atomic"
	"time"

	"claviger"
)

const (
	// A node counts as unable to open EDEKs if unopenedInARow decrypts in a row failed because the store cannot be
	// reached, and none succeeded for openedHolds. So a node that still serves other users stays in service, even if
	// one user requests only versions that are not in memory.
	unopenedInARow = 3
	openedHolds    = 10 * time.Second
)

// openings records whether decrypts of own versions succeeded, as far as that depends on the store.
type openings struct {
	inARow     atomic.Int64 // failures since the last success
	lastServed atomic.Int64 // time of the last success, in milliseconds since 1970; 0: none
}

// record records the result of reading a version, or of recording its use.
func (o *openings) record(err error) {
	switch {
	case err == nil:
		if o.inARow.Load() != 0 {
			o.inARow.Store(0)
		}
		// At most once a second, so that processors do not compete for its cache line.
		if now := time.Now().UnixMilli(); now-o.lastServed.Load() >= 1000 {
			o.lastServed.Store(now)
		}
	case claviger.Is(err, claviger.Unavailable):
		o.inARow.Add(1)
	}
}

// OpensFromMemory returns nil if EDEKs of own versions can be opened while the store cannot be reached, as far as this
// node knows: its cache holds versions, the lease is not over, and not all recent decrypts failed. The error has no
// text about the store.
func (r *Ring) OpensFromMemory() error {
	if err := r.Leased(); err != nil {
		return err
	}
	if r.versions.empty() {
		return claviger.Errorf("keyring.OpensFromMemory", claviger.Unavailable, "",
			"this node has no key version in memory that it could serve")
	}
	failed, last := r.opened.inARow.Load(), time.UnixMilli(r.opened.lastServed.Load())
	if failed < unopenedInARow || time.Since(last) < openedHolds {
		return nil
	}
	when := "none was served since the start"
	if last.UnixMilli() != 0 {
		when = "the last one was served " + stamp(last)
	}
	return claviger.Errorf("keyring.OpensFromMemory", claviger.Unavailable, "",
		"the last %d decrypts needed the metastore and failed; %s", failed, when)
}
