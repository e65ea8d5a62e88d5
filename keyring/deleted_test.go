package keyring

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/memory"
)

// trusteeRules returns rules by which "restorer" may undelete, and "reaper" may undelete and purge.
func trusteeRules(more ...string) []string {
	return append(append(slices.Clone(everything), "keytrustee.kms.acl.UNDELETE", "restorer,reaper",
		"keytrustee.kms.acl.PURGE", "reaper"), more...)
}

// newSoftDeleteRing is a testRing whose primary keeps deleted keys.
func newSoftDeleteRing(t *testing.T, change func(*Config)) *testRing {
	t.Helper()
	primary := &counting{Provider: memory.New(memory.Config{SoftDelete: true})}
	t.Cleanup(func() { _ = primary.Provider.Close() })
	l := newTestRing(t, func(c *Config) {
		c.Primary, c.Policy = primary, rules(t, trusteeRules()...)
		if change != nil {
			change(c)
		}
	})
	l.primary = primary
	return l
}

// TestUndelete: an EDEK of a deleted key does not open until a user with the right UNDELETE brings the key back, and
// each attempt has a line in the audit log.
func TestUndelete(t *testing.T) {
	l := newSoftDeleteRing(t, nil)
	ctx := t.Context()
	create(t, l.primary, "k")
	es, deks := l.edeks(t, "k", 1)
	if err := l.Delete(ctx, caller("u"), "k"); err != nil {
		t.Fatal(err)
	}
	_, err := l.Decrypt(ctx, caller("u"), "k", true, es[0])
	wantKind(t, err, claviger.VersionNotFound)
	_, err = l.Generate(ctx, caller("u"), "k", 1)
	wantKind(t, err, claviger.KeyNotFound)
	l.audit.take()

	wantKind(t, l.Undelete(ctx, caller("u"), "k", ""), claviger.Denied)
	wantKind(t, l.Purge(ctx, caller("restorer"), "k", ""), claviger.Denied)
	_, err = l.Deleted(ctx, caller("u"))
	wantKind(t, err, claviger.Denied)
	wantKind(t, l.Undelete(ctx, caller("restorer"), "none", ""), claviger.KeyNotFound)
	list, err := l.Deleted(ctx, caller("restorer"))
	if err != nil || len(list) != 1 || list[0].Name != "k" || !slices.Equal(list[0].List, []string{es[0].Version}) {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := l.Undelete(ctx, caller("restorer"), "k", ""); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"UNAUTHORIZED[op=UNDELETE_KEY, key=k, user=u] ", "UNAUTHORIZED[op=PURGE_KEY, key=k, " +
			"user=restorer] ", "UNAUTHORIZED[op=GET_DELETED_KEYS, user=u] ",
		"OK[op=GET_DELETED_KEYS, user=restorer] ", "OK[op=UNDELETE_KEY, key=k, user=restorer] ",
	}
	if got := l.audit.take(); !slices.Equal(got, want) {
		t.Errorf("audit\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	dek, err := l.Decrypt(ctx, caller("u"), "k", true, es[0])
	if err != nil || !dek.Equal(deks[0]) {
		t.Errorf("after Undelete: %v", err)
	}
	wantKind(t, l.Undelete(ctx, caller("restorer"), "k", ""), claviger.KeyNotFound)
}

// TestUndeleteKeyRules: undelete and purge also need rights on the key, by the ACL name that it had.
func TestUndeleteKeyRules(t *testing.T) {
	l := newSoftDeleteRing(t, func(c *Config) {
		c.Policy = rules(t, trusteeRules("key.acl.k.MANAGEMENT", "owner")...)
	})
	create(t, l.primary, "k")
	if err := l.Delete(t.Context(), caller("owner"), "k"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, l.Undelete(t.Context(), caller("reaper"), "k", ""), claviger.KeyDenied)
	wantKind(t, l.Purge(t.Context(), caller("reaper"), "k", ""), claviger.KeyDenied)
	if n := l.primary.Objects(); n != 1 {
		t.Errorf("%d versions are left", n)
	}
}

// withoutSoftDelete has the methods of a provider that is not a SoftDeleter.
type withoutSoftDelete interface {
	provider.Provider
	provider.BlockEncrypter
}

// TestUndeleteUnsupported: with a primary that cannot bring deleted keys back, the calls for deleted keys fail with
// kind Unsupported.
func TestUndeleteUnsupported(t *testing.T) {
	l, _ := withSource(t, func(c *Config) {
		c.Primary = struct{ withoutSoftDelete }{c.Primary.(withoutSoftDelete)}
		c.Policy = rules(t, trusteeRules()...)
	})
	wantKind(t, l.Undelete(t.Context(), caller("reaper"), "k", ""), claviger.Unsupported)
	wantKind(t, l.Purge(t.Context(), caller("reaper"), "k", ""), claviger.Unsupported)
	_, err := l.Deleted(t.Context(), caller("reaper"))
	wantKind(t, err, claviger.Unsupported)
}

// clocks is a metastore.Clock that a test sets.
type clocks struct {
	there time.Duration // how far the store's clock is ahead of the true time
	here  time.Duration // how far this process's clock is ahead
	bound bool          // metastore.Clocks.LowerBound
	err   error
}

func (c *clocks) Clocks(context.Context) (metastore.Clocks, error) {
	now := time.Now()
	both := metastore.Compare(now.Add(c.here), now.Add(c.there), now.Add(c.here), "the metastore's")
	both.LowerBound = c.bound
	return both, c.err
}

// later sets both clocks ahead.
func (c *clocks) later(d time.Duration) { c.here, c.there = d, d }

// usesOf returns functions that use a key, by the kind of use.
func usesOf(t *testing.T, l *testRing) map[string]func(key string) {
	t.Helper()
	return map[string]func(key string){
		"generated": func(key string) { l.edeks(t, key, 1) },
		"decrypted": func(key string) {
			es, _ := newEDEKs(t, l.primary, versionOf(t, l, key), 1)
			if _, err := l.Decrypt(t.Context(), caller("u"), key, true, es[0]); err != nil {
				t.Fatal(err)
			}
		},
		"reencrypted": func(key string) {
			es, _ := newEDEKs(t, l.primary, versionOf(t, l, key), 2)
			if _, err := l.ReencryptBatch(t.Context(), caller("u"), key, es); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// TestPurgeUnused: a key is not purged for some time after its deletion, after any kind of use, recorded or not, and
// also after a restart.
func TestPurgeUnused(t *testing.T) {
	store := openStore(t)
	const limit = time.Hour
	at := &clocks{}
	change := func(c *Config) { c.LastUses, c.PurgeMinUnused, c.Clock = store, limit, at }
	l := newSoftDeleteRing(t, change)
	ctx := t.Context()
	time.Sleep(time.Second) // the record of uses begins one second before its stored time
	gone := func(key string) {
		t.Helper()
		if err := l.Delete(ctx, caller("u"), key); err != nil {
			t.Fatal(err)
		}
	}
	uses := usesOf(t, l)
	for name, use := range uses {
		create(t, l.primary, name)
		use(name)
		gone(name)
		err := l.Purge(ctx, caller("reaper"), name, "")
		wantKind(t, err, claviger.Invalid)
		if !strings.Contains(err.Error(), "claviger.purge.min.unused") {
			t.Errorf("%s: %v", name, err)
		}
	}
	create(t, l.primary, "unused")
	gone("unused")
	wantKind(t, l.Purge(ctx, caller("reaper"), "unused", ""), claviger.Invalid) // perhaps another node used it
	at.later(limit + time.Minute)
	if err := l.Purge(ctx, caller("reaper"), "unused", ""); err != nil {
		t.Errorf("a key that was deleted long ago: %v", err)
	}
	at.later(0)
	if got := l.audit.take(); got[len(got)-1] != "OK[op=PURGE_KEY, key=unused, user=reaper] " {
		t.Errorf("audit %q", got)
	}

	// Another node, and this node after a restart, decide in the same way.
	if err := l.used.flush(); err != nil {
		t.Fatal(err)
	}
	again := newTestRing(t, func(c *Config) {
		change(c)
		c.Primary, c.Policy = l.primary, rules(t, trusteeRules()...)
	})
	wantKind(t, again.Purge(ctx, caller("reaper"), "generated", ""), claviger.Invalid)
	list, err := again.Deleted(ctx, caller("reaper"))
	if err != nil || len(list) != len(uses) {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, k := range list {
		if ago := time.Since(k.LastUse); ago < -time.Second || ago > time.Minute {
			t.Errorf("%s was last used %v ago", k.Name, ago)
		}
	}
	short := newTestRing(t, func(c *Config) {
		c.Primary, c.Policy, c.LastUses = l.primary, rules(t, trusteeRules()...), store // PurgeMinUnused is 0
	})
	for name := range uses {
		if err := short.Purge(ctx, caller("reaper"), name, ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := l.primary.Objects(); n != 0 {
		t.Errorf("%d versions are left", n)
	}
}

// TestPurgeUnknownUse: a key that is older than the record of uses may have been used until the record began. Without
// a record, a key may have been used until it was deleted.
func TestPurgeUnknownUse(t *testing.T) {
	for name, store := range map[string]metastore.LastUses{"old key": openStore(t), "no record": nil} {
		l := newSoftDeleteRing(t, func(c *Config) { c.PurgeMinUnused, c.LastUses = time.Hour, store })
		key := claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128,
			Created: time.Now().Add(-10 * time.Hour)}
		if _, err := l.primary.Import(t.Context(), key, 1, 0, nil); err != nil {
			t.Fatal(err)
		}
		if err := l.Delete(t.Context(), caller("u"), "k"); err != nil {
			t.Fatal(err)
		}
		err := l.Purge(t.Context(), caller("reaper"), "k", "")
		if !claviger.Is(err, claviger.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPurgeWithWrongClock: a purge is refused if a clock is known to be wrong. A recorded time that another recorded
// time proves too early does not count.
func TestPurgeWithWrongClock(t *testing.T) {
	const limit, day = time.Hour, 24 * time.Hour
	ctx := t.Context()
	at := &clocks{}
	uses := &fixedUses{since: time.Now().Add(-30 * day)}
	l := newSoftDeleteRing(t, func(c *Config) { c.PurgeMinUnused, c.Clock, c.LastUses = limit, at, uses })
	purge := func() error { return l.Purge(ctx, caller("reaper"), "k", "") }
	create(t, l.primary, "k")
	if err := l.Delete(ctx, caller("u"), "k"); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, kind claviger.Kind, say string) {
		t.Helper()
		err := purge()
		wantKind(t, err, kind)
		if err != nil && !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v, want %q in it", what, err, say)
		}
	}
	at.here = 8 * day
	refused("a node that is ahead", claviger.Unavailable, "192h0m0s ahead of the metastore's")
	at.here, at.there = 0, 8*day
	refused("a store that is ahead", claviger.Unavailable, "192h0m0s behind the metastore's")
	at.bound = true // no other node, and no retry, can purge it
	refused("a store without a clock", claviger.Invalid, "claviger metastore clock")
	at.bound = false
	at.here, at.there = limit+30*time.Second, limit-30*time.Second
	refused("clocks that agree nearly, by the earlier", claviger.Invalid, "claviger.purge.min.unused")
	at.err = claviger.E("x", claviger.Unavailable, "", nil)
	refused("a store that returns no time", claviger.Unavailable, "")
	at.err = nil
	at.later(2 * limit)
	uses.last = time.Now().Add(2 * limit)
	refused("a use after the deletion", claviger.Invalid, "claviger.purge.min.unused")
	uses.last = time.Now().Add(10 * day)
	refused("a use that lies in the future", claviger.Invalid, "that time has not come yet")
	uses.last = time.Time{}
	if err := purge(); err != nil {
		t.Error(err)
	}

	recent := claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128,
		Created: time.Now().Add(2 * limit)}
	if _, err := l.primary.Import(ctx, recent, 1, 0, nil); err != nil {
		t.Fatal(err)
	}
	at.later(0)
	if err := l.Delete(ctx, caller("u"), "k"); err != nil {
		t.Fatal(err)
	}
	at.later(2 * limit)
	refused("a key that was deleted before its creation", claviger.Invalid, "claviger.purge.min.unused")

	// If a clock was a year ahead when a key was made, the key can be purged before that time.
	recent.Name, recent.Created = "ahead", time.Now().AddDate(1, 0, 0)
	if _, err := l.primary.Import(ctx, recent, 1, 0, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.Delete(ctx, caller("u"), "ahead"); err != nil {
		t.Fatal(err)
	}
	at.later(limit - time.Minute)
	if err := l.Purge(ctx, caller("reaper"), "ahead", ""); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("a key whose creation time is in the future, too early: %v", err)
	}
	at.later(limit + time.Minute)
	if err := l.Purge(ctx, caller("reaper"), "ahead", ""); err != nil {
		t.Errorf("a key whose creation time is in the future: %v", err)
	}
}

// fixedUses is a metastore.LastUses that has the same last use for all versions.
type fixedUses struct {
	last, since time.Time
	never       map[string]bool
}

func (f *fixedUses) RecordUses(context.Context, []metastore.LastUse) error { return nil }

func (f *fixedUses) LastUses(_ context.Context, versions ...string) (last []time.Time, since time.Time, err error) {
	return slices.Repeat([]time.Time{f.last}, len(versions)), f.since, nil
}

func (f *fixedUses) NeverUsed(_ context.Context, version string) (bool, error) {
	return f.never[version], nil
}

func (f *fixedUses) ForgetUnused(context.Context) error { return nil }

// TestPurgeNeverUsed: if it is certain that no version of a key was ever used, the key can be purged as soon as no use
// can be in progress.
func TestPurgeNeverUsed(t *testing.T) {
	ctx := t.Context()
	uses := &fixedUses{since: time.Now().Add(-time.Hour), never: map[string]bool{}}
	at := &clocks{}
	l := newSoftDeleteRing(t, func(c *Config) {
		c.PurgeMinUnused, c.LastUses, c.Numbers, c.Clock = time.Hour, uses, openStore(t), at
	})
	create(t, l.primary, "k")
	if _, err := l.primary.Provider.Roll(ctx, "k", nil); err != nil {
		t.Fatal(err)
	}
	if err := l.Delete(ctx, caller("u"), "k"); err != nil {
		t.Fatal(err)
	}
	list, err := l.Deleted(ctx, caller("reaper"))
	if err != nil || len(list) != 1 || len(list[0].List) != 2 {
		t.Fatal(list, err)
	}
	at.later(underWay + time.Minute)
	wantKind(t, l.Purge(ctx, caller("reaper"), "k", ""), claviger.Invalid)
	uses.never[list[0].List[0]] = true
	wantKind(t, l.Purge(ctx, caller("reaper"), "k", ""), claviger.Invalid)
	uses.never[list[0].List[1]] = true
	at.later(0)
	err = l.Purge(ctx, caller("reaper"), "k", "")
	wantKind(t, err, claviger.Invalid)
	if err == nil || !strings.Contains(err.Error(), "a request that uses it may still run") {
		t.Error(err)
	}
	at.later(underWay + time.Minute)
	at.here += 5 * time.Hour
	wantKind(t, l.Purge(ctx, caller("reaper"), "k", ""), claviger.Unavailable)
	at.here = at.there
	if err := l.Purge(ctx, caller("reaper"), "k", ""); err != nil {
		t.Error(err)
	}
}

// TestPurgeWhileOthersServe: if nodes share keys, another node may serve a deleted key until its lease ends. So a purge
// is refused for that time.
func TestPurgeWhileOthersServe(t *testing.T) {
	const limit, lease = time.Hour, 10 * time.Minute
	ctx := t.Context()
	at := &clocks{}
	l := newSoftDeleteRing(t, func(c *Config) {
		c.PurgeMinUnused, c.Clock, c.Lease, c.Shared = limit, at, lease, newShared(t)
	})
	create(t, l.primary, "k")
	if err := l.Delete(ctx, caller("u"), "k"); err != nil {
		t.Fatal(err)
	}
	at.later(limit + lease)
	wantKind(t, l.Purge(ctx, caller("reaper"), "k", ""), claviger.Invalid)
	at.later(limit + lease + 2*time.Minute)
	if err := l.Purge(ctx, caller("reaper"), "k", ""); err != nil {
		t.Error(err)
	}
}

func versionOf(t *testing.T, l *testRing, key string) string {
	t.Helper()
	v, err := l.primary.Provider.Current(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return v.Name
}
