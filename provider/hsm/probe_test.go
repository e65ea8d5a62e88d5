package hsm_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
)

// deletedElsewhere is a store in which another process has deleted a version.
type deletedElsewhere struct {
	metastore.Store
	version string
	deleted atomic.Bool
}

func (s *deletedElsewhere) ByVersion(ctx context.Context, version string) (*claviger.Metadata, metastore.Version,
	error) {
	if version == s.version && s.deleted.Load() {
		return nil, metastore.Version{}, claviger.E("test", claviger.VersionNotFound, version, nil)
	}
	return s.Store.ByVersion(ctx, version)
}

// TestProbe: when the token is back, the checks of encryptions and leases find that by themselves. No request uses the
// version. Afterwards there are no more probes.
func TestProbe(t *testing.T) {
	const length = 100 * time.Millisecond
	b := newSite(t)
	leased, used, gone := b.create(t, "leased"), b.create(t, "used"), b.create(t, "gone")
	store := &deletedElsewhere{version: gone}
	b.around = func(s metastore.Store) metastore.Store { store.Store = s; return store }
	p := b.mustOpen(t)
	b.firstFails()
	if err := p.Lease(t.Context(), leased, length); err == nil {
		t.Error("a lease without the token")
	}
	for _, version := range []string{used, gone} {
		if err := encryptBlock(t, p, version); err == nil {
			t.Errorf("%s encrypts without the token", version)
		}
	}
	if p.CheckEncryptions(t.Context()) == nil || p.CheckLeases(length) == nil {
		t.Error("the checks report nothing")
	}
	store.deleted.Store(true)
	b.meter.Heal()
	waitUntil(t, "the check of encryptions is well again", func() error { return p.CheckEncryptions(t.Context()) })
	waitUntil(t, "the check of leases is well again", func() error { return p.CheckLeases(length) })
	if n := p.Failing(); n != 0 {
		t.Errorf("%d versions are still probed", n)
	}
	mustClose(t, p)
}
