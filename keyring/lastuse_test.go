package keyring

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/sqlite"
)

// awayUses is a store of last uses that may be away, and counts its questions.
type awayUses struct {
	*sqlite.Store
	away  atomic.Bool
	asked atomic.Int64
}

func (a *awayUses) NeverUsed(ctx context.Context, version string) (bool, error) {
	a.asked.Add(1)
	if a.away.Load() {
		return false, claviger.Errorf("test", claviger.Unavailable, version, "away")
	}
	return a.Store.NeverUsed(ctx, version)
}

func (a *awayUses) Touch(ctx context.Context, uses []metastore.LastUse) error {
	if a.away.Load() {
		return claviger.Errorf("test", claviger.Unavailable, "", "away")
	}
	return a.Store.Touch(ctx, uses)
}

// TestUsedVersionWithoutTheStore: a version that is in memory, and that may have been used by whichever node, is served
// while the store cannot be reached, even if this process has not used it yet. One that was certainly never used is
// not: its use could not be written first.
func TestUsedVersionWithoutTheStore(t *testing.T) {
	ctx := t.Context()
	store := &awayUses{Store: openStore(t)}
	l := newLab(t, func(c *Config) { c.LastUses, c.Numbers = store, store })
	edeks := map[string]claviger.EDEK{}
	for _, key := range []string{"used", "old", "new"} {
		create(t, l.primary, key)
		version := versionOf(t, l, key)
		es, _ := made(t, l.primary.Provider, version, 1)
		edeks[key] = es[0]
		if key != "old" { // which is older than the record
			numbered(t, store.Store, key, 0)
		}
		if key == "used" { // at another node
			err := store.Store.Touch(ctx, []metastore.LastUse{{Version: version, Last: time.Now()}})
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Version(ctx, caller("u"), version); err != nil { // now it is in memory
			t.Fatal(err)
		}
		if at := l.used.at(version); !at.IsZero() {
			t.Errorf("%s was read, and counts as used here at %v", version, at)
		}
	}
	store.away.Store(true)
	asked := store.asked.Load()
	for _, key := range []string{"used", "old"} {
		for range 3 {
			if _, err := l.Decrypt(ctx, caller("u"), key, true, edeks[key]); err != nil {
				t.Errorf("%s: %v", key, err)
			}
		}
	}
	if n := store.asked.Load() - asked; n > 0 {
		t.Errorf("the store was asked %d times for what cannot change", n)
	}
	if _, err := l.Decrypt(ctx, caller("u"), "new", true, edeks["new"]); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a first use that cannot be written: %v", err)
	}
	if err := l.OpensFromMemory(); err != nil {
		t.Error(err)
	}
	store.away.Store(false)
	if _, err := l.Decrypt(ctx, caller("u"), "new", true, edeks["new"]); err != nil {
		t.Errorf("the store is back: %v", err)
	}
	if never, err := store.Store.NeverUsed(ctx, edeks["new"].Version); never || err != nil {
		t.Errorf("after its first use: never used = %t, %v", never, err)
	}
}
