package keyring

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
)

// downKeys is sharedKeys whose store may be down: then no version can be read.
type downKeys struct {
	*sharedKeys
	down atomic.Bool
}

func (k *downKeys) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	if k.down.Load() {
		return claviger.KeyVersion{}, claviger.Errorf("test", claviger.Unavailable, version, "the store is down")
	}
	return k.sharedKeys.Version(ctx, version)
}

// TestOpensFromMemory: OpensFromMemory returns an error if the node has no version in memory, or if it has refused each
// decrypt lately. If it has served some lately, there is no error, however many it has refused.
func TestOpensFromMemory(t *testing.T) {
	ctx := t.Context()
	s := &downKeys{sharedKeys: newShared(t)}
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
	wantError := func(what, want string) {
		t.Helper()
		err := r.OpensFromMemory()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	decrypt := func(version string, opens bool) {
		t.Helper()
		e := es[0]
		e.Version = version
		dek, err := r.Decrypt(ctx, caller("u"), "k", true, e)
		if (err == nil) != opens {
			t.Fatalf("%s: %v", version, err)
		}
		dek.Wipe()
	}
	r.versions.dropAll(func(string) bool { return true })
	wantError("after the start", "no key version")
	s.down.Store(true)
	for range 3 {
		decrypt(es[0].Version, false)
	}
	s.down.Store(false)
	decrypt(es[0].Version, true)
	wantError("a version in memory", "")
	s.down.Store(true)
	decrypt(es[0].Version, true)
	for range 5 {
		decrypt("k@77", false)
	}
	wantError("others are refused, one was served a moment ago", "")
	r.opened.lastServed.Store(time.Now().Add(-openedHolds).UnixMilli())
	wantError("all were refused lately",
		"the last 5 decrypts needed the metastore and failed; the last one was served ")
	decrypt(es[0].Version, true)
	r.opened.lastServed.Store(time.Now().Add(-openedHolds).UnixMilli())
	decrypt("k@77", false)
	wantError("one was refused lately", "")
	decrypt("k@77", false)
	decrypt("k@77", false)
	wantError("three were", "the last 3 decrypts")
	r.opened.lastServed.Store(0)
	wantError("none was ever served", "none was served since the start")
}
