package keyring

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
)

// awayKeys is sharedKeys whose store can be away: no version can be read then.
type awayKeys struct {
	*sharedKeys
	away atomic.Bool
}

func (k *awayKeys) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	if k.away.Load() {
		return claviger.KeyVersion{}, claviger.Errorf("test", claviger.Unavailable, version, "the store is away")
	}
	return k.sharedKeys.Version(ctx, version)
}

// TestOpensFromMemory: a node that remembers nothing opens nothing without the store, nor one
// that has refused each decrypt lately. One that goes on opening some does, whatever else is
// asked of it.
func TestOpensFromMemory(t *testing.T) {
	ctx := t.Context()
	s := &awayKeys{sharedKeys: newShared(t)}
	create(t, s.sharedKeys, "k")
	cfg := config(t, s)
	cfg.Shared = s
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	es, err := r.Generate(ctx, caller("u"), "k", 1)
	if err != nil {
		t.Fatal(err)
	}
	cannot := func(what, want string) {
		t.Helper()
		err := r.OpensFromMemory()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	decrypt := func(version string, well bool) {
		t.Helper()
		e := es[0]
		e.Version = version
		dek, err := r.Decrypt(ctx, caller("u"), "k", true, e)
		if (err == nil) != well {
			t.Fatalf("%s: %v", version, err)
		}
		dek.Wipe()
	}
	r.versions.dropAll(func(string) bool { return true })
	cannot("after the start", "no key version")
	s.away.Store(true)
	for range 3 {
		decrypt(es[0].Version, false)
	}
	s.away.Store(false)
	decrypt(es[0].Version, true)
	cannot("a version in memory", "")
	s.away.Store(true)
	decrypt(es[0].Version, true)
	for range 5 {
		decrypt("k@77", false)
	}
	cannot("others are refused, one was served a moment ago", "")
	r.opened.well.Store(time.Now().Add(-openedHolds).UnixMilli())
	cannot("all were refused lately", "the last 5 decrypts needed the metastore and failed; the last one was served ")
	decrypt(es[0].Version, true)
	r.opened.well.Store(time.Now().Add(-openedHolds).UnixMilli())
	decrypt("k@77", false)
	cannot("one was refused lately", "")
	decrypt("k@77", false)
	decrypt("k@77", false)
	cannot("three were", "the last 3 decrypts")
	r.opened.well.Store(0)
	cannot("none was ever served", "none was served since the start")
}
