package keyring

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/eek"
	"claviger/provider"
)

// TestSameKey: each field in which two keys of one name can differ shows that
// they are two.
func TestSameKey(t *testing.T) {
	at := time.Now()
	key := func(change func(*claviger.Metadata)) *claviger.Metadata {
		m := &claviger.Metadata{Name: "k", Created: at, Cipher: claviger.DefaultCipher, BitLength: 128,
			Attributes: map[string]string{claviger.ACLNameAttribute: "guard"}}
		change(m)
		return m
	}
	one := key(func(*claviger.Metadata) {})
	if !sameKey(one, key(func(*claviger.Metadata) {})) || !sameKey(nil, nil) {
		t.Error("one key counts as two")
	}
	for what, other := range map[string]*claviger.Metadata{
		"none":       nil,
		"name":       key(func(m *claviger.Metadata) { m.Name = "l" }),
		"time":       key(func(m *claviger.Metadata) { m.Created = at.Add(time.Millisecond) }),
		"ACL name":   key(func(m *claviger.Metadata) { m.Attributes[claviger.ACLNameAttribute] = "other" }),
		"cipher":     key(func(m *claviger.Metadata) { m.Cipher = "SM4/CTR/NoPadding" }),
		"bit length": key(func(m *claviger.Metadata) { m.BitLength = 256 }),
	} {
		if sameKey(one, other) || sameKey(other, one) {
			t.Errorf("%s: two keys count as one", what)
		}
	}
}

// newRemotePrimaryRing is a failingRing whose primary returns versions without metadata, as
// another KMS does.
func newRemotePrimaryRing(t *testing.T) *failingRing {
	t.Helper()
	w := newFailingRing(t)
	w.primary.noMetadata = true
	return w
}

// TestEachCallToARemotePrimaryFails: the metadata is read before and after the
// versions. If one of these readings fails, the operation fails with that error.
func TestEachCallToARemotePrimaryFails(t *testing.T) {
	for _, o := range readOperations() {
		if o.name != "current" && o.name != "version" && o.name != "versions" {
			continue
		}
		w := newRemotePrimaryRing(t)
		if err := o.run(context.WithValue(t.Context(), counted{}, true), w); err != nil {
			t.Fatal(err)
		}
		for i, call := range w.c.list {
			w := newRemotePrimaryRing(t)
			w.c.fail, w.c.once = i+1, true
			err := o.run(context.WithValue(t.Context(), counted{}, true), w)
			if call != "NeverUsed" && !errors.Is(err, errInjected) {
				t.Errorf("%s, call %d (%s) fails: the operation returns %v", o.name, i+1, call, err)
			}
		}
	}
}

// TestRemoteVersionsAreGuarded: the ACL name of the key guards its versions, not
// the rules of the key's name, although the primary returns them without metadata.
func TestRemoteVersionsAreGuarded(t *testing.T) {
	l := newTestRing(t, func(c *Config) {
		c.CacheEnable = false
		c.Policy = rules(t, "key.acl.alices.ALL", "alice", "key.acl.k.ALL", "mallory")
	})
	l.primary.noMetadata = true
	createWithACLName(t, l, "alices")
	for user, want := range map[string]bool{"alice": true, "mallory": false} {
		_, current := l.Current(t.Context(), caller(user), "k")
		_, version := l.Version(t.Context(), caller(user), "k@0")
		_, versions := l.Versions(t.Context(), caller(user), "k")
		for what, err := range map[string]error{"current": current, "version": version, "versions": versions} {
			if (err == nil) != want || err != nil && !claviger.Is(err, claviger.KeyDenied) {
				t.Errorf("%s: %s: %v", user, what, err)
			}
		}
	}
}

// TestKeyThatIsReplacedAgainAndAgain: a key that is another one at each reading is
// not shown at all.
func TestKeyThatIsReplacedAgainAndAgain(t *testing.T) {
	l := newTestRing(t, func(c *Config) { c.CacheEnable = false })
	l.primary.noMetadata = true
	createWithACLName(t, l, "alices")
	busy := false
	l.primary.before = func(_ context.Context, call string) error {
		if call == "Version" && !busy {
			busy = true
			replaceKey(t, "alices")(l)
			busy = false
		}
		return nil
	}
	v, err := l.Version(t.Context(), caller("u"), "k@0")
	if v != nil || !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("%v, %v", v, err)
	}
}

// manyKeys is a provider that answers a request for one key with two.
type manyKeys struct{ provider.Reader }

func (manyKeys) Metadata(context.Context, ...string) ([]*claviger.Metadata, error) {
	return []*claviger.Metadata{{Name: "k"}, {Name: "l"}}, nil
}

// TestTwoKeysForOne: a provider that returns two keys for one has a fault, and
// neither of the keys is used.
func TestTwoKeysForOne(t *testing.T) {
	m, err := oneMetadata(t.Context(), manyKeys{}, "k")
	if m != nil || !claviger.Is(err, claviger.Internal) {
		t.Errorf("%v, %v", m, err)
	}
}

// TestReplacedVersionIsReadAgain: if a version was replaced while it was in the
// cache, it is dropped, and the request is tried once more.
func TestReplacedVersionIsReadAgain(t *testing.T) {
	l := newTestRing(t, nil)
	var fails atomic.Int64
	l.primary.before = func(_ context.Context, call string) error {
		if call == "EncryptBlocks" && fails.Add(-1) >= 0 {
			return claviger.E("test", claviger.Unavailable, "k", eek.ErrReplaced)
		}
		return nil
	}
	v := create(t, l.primary, "k")
	es, deks := newEDEKs(t, l.primary.Provider, v.Name, 1)
	fails.Store(1)
	dek, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0])
	if err != nil || !dek.Equal(deks[0]) {
		t.Error(err)
	}
	fails.Store(2)
	if _, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0]); err == nil {
		t.Error("tried more than twice")
	}
}

// TestForgetAll: a notice without a key drops all that is in memory about keys.
func TestForgetAll(t *testing.T) {
	l, far := withSource(t, nil, "k")
	es, _ := newEDEKs(t, far.blocks, "k@0", 1)
	l.aliases.put("K", "k")
	if _, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0]); err != nil {
		t.Fatal(err)
	}
	v, err := l.Current(t.Context(), caller("u"), "k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.ownVersion(t.Context(), v.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := l.metadata(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	known := func() map[string]bool {
		_, key := l.keys.get("k")
		_, current := l.current.get("k")
		_, version := l.versions.get(v.Name)
		_, alias := l.aliases.get("K")
		_, atSource := l.sources.list[0].keys.get("k")
		return map[string]bool{"key": key, "current": current, "version": version, "alias": alias,
			"source": atSource, "journal": l.origins.byKey != nil}
	}
	for what, is := range known() {
		if !is {
			t.Errorf("%s is not in memory", what)
		}
	}
	l.forgetAll()
	for what, is := range known() {
		if is {
			t.Errorf("%s is still in memory", what)
		}
	}
}
