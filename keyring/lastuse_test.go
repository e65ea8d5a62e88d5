package keyring

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/sqlite"
)

// downUses is a store of last uses that may be down, and counts the calls of NeverUsed.
type downUses struct {
	*sqlite.Store
	down  atomic.Bool
	calls atomic.Int64
}

func (a *downUses) NeverUsed(ctx context.Context, version string) (bool, error) {
	a.calls.Add(1)
	if a.down.Load() {
		return false, claviger.Errorf("test", claviger.Unavailable, version, "no answer")
	}
	return a.Store.NeverUsed(ctx, version)
}

func (a *downUses) RecordUses(ctx context.Context, uses []metastore.LastUse) error {
	if a.down.Load() {
		return claviger.Errorf("test", claviger.Unavailable, "", "no answer")
	}
	return a.Store.RecordUses(ctx, uses)
}

// TestUsedVersionWithoutTheStore: while the store is down, a version in memory is served if any node may have used it
// before, even if this process has not. A version that was certainly never used is not served, because its first use
// must be recorded first.
func TestUsedVersionWithoutTheStore(t *testing.T) {
	ctx := t.Context()
	store := &downUses{Store: openStore(t)}
	l := newTestRing(t, func(c *Config) { c.LastUses, c.Numbers = store, store })
	edeks := map[string]claviger.EDEK{}
	for _, key := range []string{"used", "old", "new"} {
		create(t, l.primary, key)
		version := versionOf(t, l, key)
		es, _ := newEDEKs(t, l.primary.Provider, version, 1)
		edeks[key] = es[0]
		if key != "old" { // "old" is older than the record of uses
			numbered(t, store.Store, key, 0)
		}
		if key == "used" { // another node has used it
			err := store.Store.RecordUses(ctx, []metastore.LastUse{{Version: version, Last: time.Now()}})
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
	store.down.Store(true)
	before := store.calls.Load()
	for _, key := range []string{"used", "old"} {
		for range 3 {
			if _, err := l.Decrypt(ctx, caller("u"), key, true, edeks[key]); err != nil {
				t.Errorf("%s: %v", key, err)
			}
		}
	}
	if n := store.calls.Load() - before; n > 0 {
		t.Errorf("the store was read %d times for what cannot change", n)
	}
	if _, err := l.Decrypt(ctx, caller("u"), "new", true, edeks["new"]); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a first use that cannot be written: %v", err)
	}
	if err := l.OpensFromMemory(); err != nil {
		t.Error(err)
	}
	store.down.Store(false)
	if _, err := l.Decrypt(ctx, caller("u"), "new", true, edeks["new"]); err != nil {
		t.Errorf("the store is up again: %v", err)
	}
	if never, err := store.Store.NeverUsed(ctx, edeks["new"].Version); never || err != nil {
		t.Errorf("after its first use: never used = %t, %v", never, err)
	}
}

// otherMethods has the methods of a store of last uses that the tests of recordedUses do not call.
type otherMethods interface {
	LastUses(ctx context.Context, versions ...string) (last []time.Time, since time.Time, err error)
	NeverUsed(ctx context.Context, version string) (bool, error)
	ForgetUnused(ctx context.Context) error
}

// recordedUses is a store of last uses that counts what is written.
type recordedUses struct {
	otherMethods
	written []metastore.LastUse
	fail    error
}

func (s *recordedUses) RecordUses(_ context.Context, uses []metastore.LastUse) error {
	if s.fail == nil {
		s.written = append(s.written, uses...)
	}
	return s.fail
}

// TestLastUsesAreWritten: a use is written once, within a minute. A use that could not be written is logged, and
// written later, at the latest by close.
func TestLastUsesAreWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged strings.Builder
		store := &recordedUses{}
		u := newLastUses(store, slog.New(slog.NewTextHandler(&logged, nil)))
		u.record("k@0")
		time.Sleep(3*writeUsesEvery + time.Second)
		synctest.Wait()
		if len(store.written) != 1 || logged.Len() > 0 {
			t.Errorf("written: %v; logged %q", store.written, logged.String())
		}
		store.fail = errInjected
		u.record("k@0")
		time.Sleep(writeUsesEvery)
		synctest.Wait()
		if n := strings.Count(logged.String(), errInjected.Error()); n != 1 {
			t.Errorf("logged %d times: %s", n, logged.String())
		}
		store.fail = nil
		if err := u.close(); err != nil || len(store.written) != 2 {
			t.Errorf("written: %v; %v", store.written, err)
		}
		u = newLastUses(&recordedUses{fail: errInjected}, slog.New(slog.DiscardHandler))
		u.record("k@0")
		if err := u.close(); !errors.Is(err, errInjected) {
			t.Errorf("close: %v", err)
		}
	})
}
