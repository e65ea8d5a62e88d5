package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"claviger"
	"claviger/eek"
	"claviger/metastore"
	"claviger/provider"
	"claviger/secret"
)

// TestGenerateAtAnotherKMS: a primary that is another KMS makes the EDEKs, after a check of the rules here and of the
// key's epoch.
func TestGenerateAtAnotherKMS(t *testing.T) {
	shared := newShared(t)
	l := newTestRing(t, func(c *Config) {
		c.Primary, c.Shared = newFarKMS(t, farURI, "k"), shared
		c.Policy = rules(t, "key.acl.k.GENERATE_EEK", "alice")
	})
	if es, err := l.Generate(t.Context(), caller("alice"), "k", 2); err != nil || len(es) != 2 {
		t.Fatalf("%d EDEKs, %v", len(es), err)
	}
	_, err := l.Generate(t.Context(), caller("bob"), "k", 2)
	wantKind(t, err, claviger.KeyDenied)
	shared.fail.Store(&errInjected)
	if _, err := l.Generate(t.Context(), caller("alice"), "k", 2); !errors.Is(err, errInjected) {
		t.Errorf("the epoch is not known: %v", err)
	}
}

// TestQueueOfAnotherKey: between the request's reading of key k and the filling of the queue, k is replaced by another
// key of that name. The EDEKs are of the new key, so the rules of the new key decide, even if the primary cannot pin
// versions.
func TestQueueOfAnotherKey(t *testing.T) {
	for _, lost := range []bool{false, true} {
		var currents atomic.Int32
		l := newTestRing(t, func(c *Config) {
			c.CacheEnable = false
			c.Primary = struct{ withoutSoftDelete }{c.Primary.(withoutSoftDelete)}
			c.Policy = rules(t, "key.acl.alices.ALL", "alice", "key.acl.mallorys.ALL", "mallory")
		})
		l.primary.before = func(_ context.Context, call string) error {
			switch {
			case call == "Current" && currents.Add(1) == 2: // the first was of the request, this is of the queue
				replaceAndRollKey(t, "mallorys")(l)
			case call == "Version" && lost:
				return errInjected
			}
			return nil
		}
		createWithACLName(t, l, "alices")
		es, err := l.Generate(t.Context(), caller("alice"), "k", 1)
		switch {
		case lost && !errors.Is(err, errInjected):
			t.Errorf("the version cannot be read: %v, %v", es, err)
		case !lost:
			wantKind(t, err, claviger.KeyDenied)
		}
	}
}

// TestReplacedAgain: a version that was replaced while it was used is read once more, and not for ever.
func TestReplacedAgain(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	es, _ := newEDEKs(t, l.primary.Provider, "k@0", 1)
	var calls atomic.Int32
	l.primary.before = func(_ context.Context, call string) error {
		if call != "EncryptBlocks" {
			return nil
		}
		if calls.Add(1) > 100 {
			return errInjected
		}
		return claviger.E("test", claviger.VersionNotFound, "k@0", eek.ErrReplaced)
	}
	if _, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0]); !errors.Is(err, eek.ErrReplaced) {
		t.Errorf("decrypt: %v", err)
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("%d calls for one decrypt", n)
	}
	if _, err := l.makeEDEKs(t.Context(), "k", 1); !errors.Is(err, eek.ErrReplaced) {
		t.Errorf("fill of the queue: %v", err)
	}
	if n := calls.Load(); n != 4 {
		t.Errorf("%d calls for one fill of the queue", n-2)
	}
}

// TestFillFindsLostVersion: a fill of the queue that finds the version lost drops the EDEKs that are ready, and does
// not try again.
func TestFillFindsLostVersion(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	fillQueue(t, l, "k")
	calls := 0
	l.primary.before = func(_ context.Context, call string) error {
		if call == "EncryptBlocks" {
			calls++
			return claviger.E("test", claviger.Unavailable, "k@0", fmt.Errorf("gone: %w", provider.ErrUnusable))
		}
		return nil
	}
	_, err := l.makeEDEKs(t.Context(), "k", 1)
	wantKind(t, err, claviger.Unavailable)
	if n := l.Queued(); n != 0 || calls != 1 {
		t.Errorf("%d EDEKs of a lost version are ready after %d calls", n, calls)
	}
}

// TestDecryptFindsLostVersion: a decryption that finds the version lost drops the EDEKs that are ready.
func TestDecryptFindsLostVersion(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	es := fillQueue(t, l, "k")
	var lost atomic.Bool
	lost.Store(true)
	l.primary.before = lostWhile(&lost)
	if _, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0]); !errors.Is(err, provider.ErrUnusable) {
		t.Error(err)
	}
	if n := l.Queued(); n != 0 {
		t.Errorf("%d EDEKs of a lost version are ready", n)
	}
}

// keepingCrypter keeps the DEKs that it opened, and cuts them to a length.
type keepingCrypter struct {
	crypter
	length int
	given  []secret.Bytes
}

func (k *keepingCrypter) Unwrap(ctx context.Context, v claviger.KeyVersion, as string,
	edeks []claviger.EDEK) ([]secret.Bytes, error) {
	deks, err := k.crypter.Unwrap(ctx, v, as, edeks)
	for i := range deks {
		deks[i] = deks[i][:k.length]
	}
	k.given = deks
	return slices.Clone(deks), err
}

// TestDEKsAreWipedAfterFaults: a DEK that is not returned is wiped.
func TestDEKsAreWipedAfterFaults(t *testing.T) {
	store := &downUses{Store: openStore(t)}
	l := newTestRing(t, func(c *Config) { c.LastUses, c.Numbers = store, store })
	create(t, l.primary, "k")
	numbered(t, store.Store, "k", 0)
	es, _ := newEDEKs(t, l.primary.Provider, "k@0", 1)
	keep := &keepingCrypter{crypter: l.Ring.primary.crypter}
	l.Ring.primary.crypter = keep
	for _, tt := range []struct {
		name   string
		length int
		down   bool
		kind   claviger.Kind
	}{
		{"a DEK of another length", 7, false, claviger.Internal},
		{"a use that cannot be written", 16, true, claviger.Unavailable},
	} {
		keep.length = tt.length
		store.down.Store(tt.down)
		_, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0])
		wantKind(t, err, tt.kind)
		if len(keep.given) != 1 || !keep.given[0].Equal(make([]byte, tt.length)) {
			t.Errorf("%s: %d DEKs were opened, and not wiped", tt.name, len(keep.given))
		}
	}
	store.down.Store(false)
}

// TestForeignDEKIsWipedAfterFaults: a DEK that a source has opened is wiped if the request gets no slot again.
func TestForeignDEKIsWipedAfterFaults(t *testing.T) {
	w := newFailingRing(t)
	s := w.sources.list[0]
	keep := &keepingCrypter{crypter: s.crypter, length: len(w.foreign.Material)}
	s.crypter = keep
	slot := &recordedSlot{err: errInjected}
	_, err := w.Decrypt(WithSlot(t.Context(), slot), caller("u"), "theirs", true, w.foreign)
	if !errors.Is(err, errInjected) {
		t.Error(err)
	}
	if len(keep.given) != 1 || !keep.given[0].Equal(make([]byte, keep.length)) {
		t.Errorf("%d DEKs were opened, and not wiped", len(keep.given))
	}
}

// TestSpellingNotKnown: if the journal cannot say which key has a name in another spelling, no EDEK is opened for it.
func TestSpellingNotKnown(t *testing.T) {
	for fail, want := range []error{nil, errInjected, errInjected} { // of the key in the request, and of the EDEK's key
		c := &calls{fail: fail, once: true}
		l := newTestRing(t, func(cfg *Config) {
			cfg.History = &callsHistory{&journal{aliases: map[string]string{"k": "k"}}, c}
		})
		create(t, l.primary, "k")
		es, _ := newEDEKs(t, l.primary.Provider, "k@0", 1)
		_, err := l.Decrypt(context.WithValue(t.Context(), counted{}, true), caller("u"), "K", true, es[0])
		if !errors.Is(err, want) || len(c.list) < fail {
			t.Errorf("call %d of the journal fails: %v after %q", fail, err, c.list)
		}
	}
}

// keyedEpochs cannot read the epoch of one key.
type keyedEpochs struct {
	*sharedKeys
	failing string
}

func (k keyedEpochs) Epoch(ctx context.Context, key string) (int64, error) {
	if key == k.failing {
		return 0, errInjected
	}
	return k.sharedKeys.Epoch(ctx, key)
}

var _ metastore.Epochs = keyedEpochs{}

// TestEpochOfAnotherSpelling: the epoch is read also for a key that is requested by another spelling of its name.
func TestEpochOfAnotherSpelling(t *testing.T) {
	past := &journal{aliases: map[string]string{"k": "k"}}
	l := newTestRing(t, func(c *Config) { c.History, c.Shared = past, keyedEpochs{newShared(t), "k"} })
	create(t, l.primary, "k")
	if es, err := l.Generate(t.Context(), caller("u"), "K", 1); !errors.Is(err, errInjected) {
		t.Errorf("the epoch of k is not known: %v, %v", es, err)
	}
}
