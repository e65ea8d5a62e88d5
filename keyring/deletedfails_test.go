package keyring

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
)

// TestMemoryAfterUndeleteAndPurge: after an undeletion and a purge, a key of the name that was read earlier, and that
// another node has deleted since, is no longer served from memory.
func TestMemoryAfterUndeleteAndPurge(t *testing.T) {
	for name, change := range map[string]func(l *testRing) error{
		"undelete": func(l *testRing) error { return l.Undelete(t.Context(), caller("reaper"), "k", "") },
		"purge":    func(l *testRing) error { return l.PurgeAll(t.Context(), caller("reaper"), "k") },
	} {
		l := newSoftDeleteRing(t, func(c *Config) { c.CacheEnable = true })
		ctx := t.Context()
		create(t, l.primary, "k")
		if _, err := l.Current(ctx, caller("u"), "k"); err != nil {
			t.Fatal(err)
		}
		// Another node deletes the key, makes another one, and deletes it too.
		if err := l.primary.Provider.Delete(ctx, "k"); err != nil {
			t.Fatal(err)
		}
		create(t, l.primary, "k")
		if err := l.primary.Provider.Delete(ctx, "k"); err != nil {
			t.Fatal(err)
		}
		if err := change(l); err != nil {
			t.Fatal(err)
		}
		want, _ := l.primary.Provider.Current(ctx, "k")
		got, err := l.Current(ctx, caller("u"), "k")
		if err != nil {
			t.Fatal(err)
		}
		if got == nil && want.Name != "" || got != nil && got.Name != want.Name {
			t.Errorf("after %s: the current version is %v, want %q", name, got, want.Name)
		}
	}
}

// TestOtherDeleted: an undeletion or purge by a version that no deleted key has names the versions of those deleted
// keys that the caller may manage.
func TestOtherDeleted(t *testing.T) {
	l := newSoftDeleteRing(t, func(c *Config) { c.Policy = rules(t, deletedNamesRules...) })
	deleted := deletedNameTest{deleted: "hers,his"}.makeKeys(t, l)
	for name, change := range map[string]func(user, key, version string) error{
		"undelete": func(user, key, version string) error {
			return l.Undelete(t.Context(), caller(user), key, version)
		},
		"purge": func(user, key, version string) error { return l.Purge(t.Context(), caller(user), key, version) },
	} {
		err := change("root", "reports", "reports@none")
		wantKind(t, err, claviger.KeyNotFound)
		if text := err.Error(); !strings.Contains(text, deleted[0]) || !strings.Contains(text, deleted[1]) {
			t.Errorf("%s: not all versions are named: %v", name, err)
		}
		err = change("root", "other", "other@none")
		wantKind(t, err, claviger.KeyNotFound)
		if strings.Contains(err.Error(), "newest versions") {
			t.Errorf("%s of a name without deleted keys: %v", name, err)
		}
	}
	err := l.Undelete(t.Context(), caller("alice"), "reports", "reports@none")
	wantKind(t, err, claviger.KeyNotFound)
	if text := err.Error(); !strings.Contains(text, deleted[0]) || strings.Contains(text, deleted[1]) {
		t.Errorf("not only the caller's own key is named: %v", err)
	}
	err = l.Undelete(t.Context(), caller("root"), "other", "")
	wantKind(t, err, claviger.KeyNotFound)
	if strings.Contains(err.Error(), "newest versions") {
		t.Errorf("without a version: %v", err)
	}
}

// TestDeletedKeysNotKnown: if the deleted keys of a name cannot be read, or not purged, the error is not "not found".
func TestDeletedKeysNotKnown(t *testing.T) {
	for name, change := range map[string]func(context.Context, *testRing) error{
		"undelete": func(ctx context.Context, l *testRing) error {
			return l.Undelete(ctx, caller("reaper"), "none", "none@0")
		},
		"purge": func(ctx context.Context, l *testRing) error {
			return l.Purge(ctx, caller("reaper"), "none", "none@0")
		},
	} {
		c := &calls{}
		l := newSoftDeleteRing(t, func(cfg *Config) { cfg.Primary = &callsPrimary{cfg.Primary.(*counting), c} })
		ctx := context.WithValue(t.Context(), counted{}, true)
		wantKind(t, change(ctx, l), claviger.KeyNotFound)
		for i, call := range slices.Clone(c.list) {
			c.list, c.fail, c.once = nil, i+1, true
			if err := change(ctx, l); !claviger.Is(err, claviger.Unavailable) {
				t.Errorf("%s: call %d (%s) fails: %v", name, i+1, call, err)
			}
		}
	}
}

// TestRefusedNameIsAudited: a user who may not create a key, because the name is kept for another user's deleted key,
// gets an audit line with the ACL name of that key.
func TestRefusedNameIsAudited(t *testing.T) {
	l := newSoftDeleteRing(t, func(c *Config) { c.Policy = rules(t, deletedNamesRules...) })
	deletedNameTest{deleted: "hers"}.makeKeys(t, l)
	_, err := l.Create(t.Context(), caller("bob"), reportsSpec("his"))
	wantKind(t, err, claviger.KeyDenied)
	if got, want := l.audit.take(), "UNAUTHORIZED[op=MANAGEMENT, key=hers, user=bob] "; !slices.Contains(got, want) {
		t.Errorf("audit %q, want %q in it", got, want)
	}
}

// TestDeletedKeysWithoutRules: if key authorization is off, each user may use the name of a deleted key.
func TestDeletedKeysWithoutRules(t *testing.T) {
	l := newSoftDeleteRing(t, func(c *Config) { c.KeyAuthorization = false })
	deletedNameTest{deleted: "hers"}.makeKeys(t, l)
	if _, err := l.Create(t.Context(), caller("bob"), reportsSpec("his")); err != nil {
		t.Error(err)
	}
}

// TestLastUseOfDeletedKey: the last use of a key is the latest of what the store has and of what this node has not
// written yet. A key that is older than the record of uses counts as used when the record began.
func TestLastUseOfDeletedKey(t *testing.T) {
	day := 24 * time.Hour
	at := func(days int) time.Time { return time.Now().Add(time.Duration(days) * day).Truncate(time.Millisecond) }
	for _, c := range []struct {
		name                   string
		created, since, stored time.Time
		want                   time.Time
	}{
		{"newer than the record", at(-5), at(-9), at(-3), at(-3)},
		{"newer and never used", at(-5), at(-9), time.Time{}, time.Time{}},
		{"older than the record", at(-9), at(-5), at(-7), at(-5)},
		{"older, and used later", at(-9), at(-5), at(-3), at(-3)},
	} {
		l := newSoftDeleteRing(t, func(cfg *Config) { cfg.LastUses = &fixedUses{since: c.since, last: c.stored} })
		key := claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128, Created: c.created}
		if _, err := l.primary.Import(t.Context(), key, 1, 0, nil); err != nil {
			t.Fatal(err)
		}
		if err := l.primary.Provider.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		list, err := l.Deleted(t.Context(), caller("reaper"))
		if err != nil || len(list) != 1 || list[0].LastUse.Sub(c.want).Abs() > time.Minute {
			t.Errorf("%s: %+v, %v; want %v", c.name, list, err, c.want)
		}
		l.used.record(list[0].List[0])
		list, err = l.Deleted(t.Context(), caller("reaper"))
		if err != nil || len(list) != 1 || time.Since(list[0].LastUse) > time.Minute {
			t.Errorf("%s: used now: %+v, %v", c.name, list, err)
		}
	}
}

// TestDescribeDeletedForPurger: a user who may purge, but not undelete, sees deleted keys too.
func TestDescribeDeletedForPurger(t *testing.T) {
	l := newSoftDeleteRing(t, func(c *Config) {
		c.Policy = rules(t, append(slices.Clone(everything), "keytrustee.kms.acl.PURGE", "purger")...)
	})
	deletedNameTest{deleted: "hers"}.makeKeys(t, l)
	if got, err := l.Describe(t.Context(), caller("purger"), "reports"); err != nil || len(got) != 1 {
		t.Errorf("purger: %+v, %v", got, err)
	}
	_, err := l.Describe(t.Context(), caller("u"), "reports")
	wantKind(t, err, claviger.KeyNotFound)
	_, err = l.Describe(t.Context(), caller("purger"), "none")
	wantKind(t, err, claviger.KeyNotFound)
}

// TestDescribeWithoutHiddenDeletedKey: a deleted key that the caller may not read does not hide the key that has the
// name now.
func TestDescribeWithoutHiddenDeletedKey(t *testing.T) {
	l := newSoftDeleteRing(t, func(c *Config) { c.Policy = rules(t, trusteeRules("key.acl.hers.READ", "alice")...) })
	deletedNameTest{deleted: "hers", live: "his"}.makeKeys(t, l)
	got, err := l.Describe(t.Context(), caller("restorer"), "reports")
	if err != nil || len(got) != 1 || got[0].ACLName() != "his" {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestDescribeUses: a description has the last use of each version: the later of what the store has and of what this
// node has not written yet.
func TestDescribeUses(t *testing.T) {
	stored := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	uses := &fixedUses{since: stored.Add(-time.Hour), last: stored}
	l := newSoftDeleteRing(t, func(c *Config) { c.LastUses = uses })
	create(t, l.primary, "k")
	last := func() time.Time {
		t.Helper()
		list, err := l.Describe(t.Context(), caller("u"), "k")
		if err != nil || len(list) != 1 || len(list[0].List) != 1 || !list[0].UsesSince.Equal(uses.since) {
			t.Fatalf("%+v, %v", list, err)
		}
		return list[0].List[0].LastUse
	}
	if got := last(); !got.Equal(stored) {
		t.Errorf("as stored: %v, want %v", got, stored)
	}
	l.used.record(versionOf(t, l, "k"))
	if got := last(); time.Since(got) > time.Minute {
		t.Errorf("used here since: %v", got)
	}
	uses.last = time.Now().Add(time.Hour).Truncate(time.Millisecond)
	if got := last(); !got.Equal(uses.last) {
		t.Errorf("used at another node since: %v, want %v", got, uses.last)
	}
}

// TestDescribeKeyThatChanges: if the key is made again while it is described, it is read again, and not for ever.
func TestDescribeKeyThatChanges(t *testing.T) {
	for name, changes := range map[string]int{"once": 1, "each time": 100} {
		l := newSoftDeleteRing(t, nil)
		create(t, l.primary, "k")
		left := changes
		l.primary.before = func(ctx context.Context, call string) error {
			if call != "Versions" || left == 0 {
				return nil
			}
			left--
			if err := l.primary.Provider.Delete(ctx, "k"); err != nil {
				return err
			}
			time.Sleep(2 * time.Millisecond) // the keys differ in their time of creation
			create(t, l.primary.Provider, "k")
			return nil
		}
		_, err := l.Describe(t.Context(), caller("u"), "k")
		if changes == 1 && err != nil || changes > 1 && !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
