package keyring

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"claviger"
	"claviger/provider"
)

// TestMayReencryptBatch: the check before a long body is read has the same result as the
// check of the request.
func TestMayReencryptBatch(t *testing.T) {
	l := newTestRing(t, func(c *Config) { c.Policy = rules(t, "hadoop.kms.acl.GENERATE_EEK", "nn") })
	if err := l.MayReencryptBatch(t.Context(), caller("nn"), "k"); err != nil {
		t.Error(err)
	}
	wantKind(t, l.MayReencryptBatch(t.Context(), caller("u"), "k"), claviger.Denied)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wantKind(t, l.MayReencryptBatch(t.Context(), caller("nn"), "k"), claviger.Closed)
}

// TestReencryptRecordsFirst: EDEKs are re-encrypted only after the use of each
// version is recorded: of those that open them, and of the current version.
func TestReencryptRecordsFirst(t *testing.T) {
	for _, c := range []struct {
		name string
		used int // the version that was used before
	}{{"the current version is new", 0}, {"the version of the EDEK is new", 1}} {
		store := &downUses{Store: openStore(t)}
		l := newTestRing(t, func(c *Config) { c.LastUses, c.Numbers = store, store })
		first := create(t, l.primary, "k")
		current, err := l.primary.Provider.Roll(t.Context(), "k", nil)
		if err != nil {
			t.Fatal(err)
		}
		numbered(t, store.Store, "k", 0)
		numbered(t, store.Store, "k", 1)
		es, _ := newEDEKs(t, l.primary.Provider, first.Name, 1)
		names := []string{first.Name, current.Name}
		if err := l.used.begin(t.Context(), names[c.used]); err != nil {
			t.Fatal(err)
		}
		store.down.Store(true)
		if _, err := l.Reencrypt(t.Context(), caller("nn"), "k", true, es[0]); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("%s: %v", c.name, err)
		}
		store.down.Store(false)
	}
}

// TestReencryptOfAnotherKey: an EDEK of a key that had the name before does not
// get the rules of the key that has it now. What is in memory is read again.
func TestReencryptOfAnotherKey(t *testing.T) {
	l := newTestRing(t, nil)
	createWithACLName(t, l, "alices")
	es, _ := newEDEKs(t, l.primary.Provider, "k@0", 1)
	v, err := l.ownVersion(t.Context(), "k@0") // in memory from now on
	if err != nil {
		t.Fatal(err)
	}
	replaceKey(t, "mallorys")(l)
	now, err := l.primary.Provider.Current(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	err = l.needReencryptable(t.Context(), []claviger.KeyVersion{v}, &now)
	if !errors.Is(err, errTwoKeys) || !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("two keys: %v", err)
	}
	if _, err := l.Reencrypt(t.Context(), caller("nn"), "k", true, es[0]); err != nil {
		t.Errorf("read again: %v", err)
	}
}

// lostWhile makes the primary fail as if it had lost its versions, while lost is set.
func lostWhile(lost *atomic.Bool) func(context.Context, string) error {
	return func(_ context.Context, call string) error {
		if call == "EncryptBlocks" && lost.Load() {
			return claviger.E("test", claviger.Unavailable, "k", provider.ErrUnusable)
		}
		return nil
	}
}

// TestLostVersionDrainsTheQueue: if a re-encryption finds a version lost, no EDEK of the key that was made before is
// returned.
func TestLostVersionDrainsTheQueue(t *testing.T) {
	l := newTestRing(t, nil)
	var lost atomic.Bool
	l.primary.before = lostWhile(&lost)
	old := create(t, l.primary, "k")
	es, _ := newEDEKs(t, l.primary.Provider, old.Name, 1)
	if _, err := l.Roll(t.Context(), caller("u"), "k", nil); err != nil {
		t.Fatal(err)
	}
	fillQueue(t, l, "k")
	lost.Store(true)
	if _, err := l.Reencrypt(t.Context(), caller("nn"), "k", true, es[0]); !errors.Is(err, provider.ErrUnusable) {
		t.Error(err)
	}
	if n := l.Queued(); n > 0 {
		t.Errorf("%d EDEKs are still ready", n)
	}
}

// TestNeedSameOriginFails: EDEKs of a source are not re-encrypted if a fact about the keys cannot be read, or if a
// right to the source's key is missing.
func TestNeedSameOriginFails(t *testing.T) {
	w := newFailingRing(t)
	w.setRules(t, "key.acl.payroll.ALL", "alice")
	ms, err := w.far.Provider.Metadata(t.Context(), "payroll")
	if err != nil {
		t.Fatal(err)
	}
	mallory := caller("mallory")
	q, err := w.admit(&mallory, "REENCRYPT_EEK", "payroll")
	if err != nil {
		t.Fatal(err)
	}
	current := &claviger.KeyVersion{Key: "payroll", Name: w.migrated.Version}
	wantKind(t, w.needSameOrigin(t.Context(), &q, current, ms[0]), claviger.KeyDenied)
	ctx := context.WithValue(t.Context(), counted{}, true)
	for _, call := range []string{"Metadata", "Origins"} {
		w.origins.forget()
		w.c.list, w.c.fail = nil, 0
		_ = w.needSameOrigin(ctx, &q, current, ms[0])
		for i, name := range w.c.list {
			if name == call {
				w.c.fail = i + 1
			}
		}
		w.c.list = nil
		w.origins.forget()
		if err := w.needSameOrigin(ctx, &q, current, ms[0]); w.c.fail == 0 || !errors.Is(err, errInjected) {
			t.Errorf("%s fails: %v", call, err)
		}
	}
}

// TestLostVersionInABatchWithForeignOnes: a batch that has EDEKs of a source too, and that finds a version here lost,
// drops the ready-made EDEKs of the key.
func TestLostVersionInABatchWithForeignOnes(t *testing.T) {
	w := newFailingRing(t)
	if _, err := w.Roll(t.Context(), caller("u"), "payroll", nil); err != nil {
		t.Fatal(err)
	}
	fillQueue(t, w.testRing, "payroll")
	var lost atomic.Bool
	lost.Store(true)
	w.primary.before = lostWhile(&lost)
	_, err := w.ReencryptBatch(t.Context(), caller("u"), "payroll", []claviger.EDEK{w.migrated, w.older})
	if !errors.Is(err, provider.ErrUnusable) {
		t.Error(err)
	}
	if n := w.Queued(); n > 0 {
		t.Errorf("%d EDEKs are still ready", n)
	}
}
