package keyring

import (
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/memory"
)

// trusteeRules opens undelete to restorers and purge to the reaper.
func trusteeRules(more ...string) []string {
	return append(append(slices.Clone(everything), "keytrustee.kms.acl.UNDELETE", "restorer,reaper", "keytrustee.kms.acl.PURGE", "reaper"), more...)
}

// softLab is a lab whose primary keeps deleted keys.
func softLab(t *testing.T, change func(*Config)) *lab {
	t.Helper()
	primary := &counting{Provider: memory.New(memory.Config{SoftDelete: true})}
	t.Cleanup(func() { _ = primary.Provider.Close() })
	l := newLab(t, func(c *Config) {
		c.Primary, c.Policy = primary, rules(t, trusteeRules()...)
		if change != nil {
			change(c)
		}
	})
	l.primary = primary
	return l
}

func TestUndelete(t *testing.T) {
	l := softLab(t, nil)
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
		"UNAUTHORIZED[op=UNDELETE_KEY, key=k, user=u] ", "UNAUTHORIZED[op=PURGE_KEY, key=k, user=restorer] ", "UNAUTHORIZED[op=GET_DELETED_KEYS, user=u] ",
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

// TestUndeleteKeyRules: beside the operation the key's own rules are asked, by the
// ACL name that it had.
func TestUndeleteKeyRules(t *testing.T) {
	l := softLab(t, func(c *Config) {
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

// hard is all of a provider but what makes it a SoftDeleter.
type hard interface {
	provider.Provider
	provider.BlockEncrypter
}

func TestUndeleteUnsupported(t *testing.T) {
	l, _ := withSource(t, func(c *Config) {
		c.Primary = struct{ hard }{c.Primary.(hard)}
		c.Policy = rules(t, trusteeRules()...)
	})
	wantKind(t, l.Undelete(t.Context(), caller("reaper"), "k", ""), claviger.Unsupported)
	wantKind(t, l.Purge(t.Context(), caller("reaper"), "k", ""), claviger.Unsupported)
	_, err := l.Deleted(t.Context(), caller("reaper"))
	wantKind(t, err, claviger.Unsupported)
}

// TestPurgeUnused: a key that may have been used of late is not purged, whatever
// kind of use it was, also after a restart; one that never was used is.
func TestPurgeUnused(t *testing.T) {
	store := openStore(t)
	const limit = time.Hour
	change := func(c *Config) { c.LastUses, c.PurgeMinUnused = store, limit }
	l := softLab(t, change)
	ctx := t.Context()
	time.Sleep(time.Second) // the record of uses is dated to the second before
	gone := func(key string) {
		t.Helper()
		if err := l.Delete(ctx, caller("u"), key); err != nil {
			t.Fatal(err)
		}
	}
	uses := map[string]func(key string){
		"generated": func(key string) { l.edeks(t, key, 1) },
		"decrypted": func(key string) {
			es, _ := made(t, l.primary, versionOf(t, l, key), 1)
			if _, err := l.Decrypt(ctx, caller("u"), key, true, es[0]); err != nil {
				t.Fatal(err)
			}
		},
		"reencrypted": func(key string) {
			es, _ := made(t, l.primary, versionOf(t, l, key), 2)
			if _, err := l.ReencryptBatch(ctx, caller("u"), key, es); err != nil {
				t.Fatal(err)
			}
		},
	}
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
	if err := l.Purge(ctx, caller("reaper"), "unused", ""); err != nil {
		t.Errorf("a key that was never used: %v", err)
	}
	if got := l.audit.take(); got[len(got)-1] != "OK[op=PURGE_KEY, key=unused, user=reaper] " {
		t.Errorf("audit %q", got)
	}

	// Another node, or this one after a restart, knows as much.
	if err := l.used.flush(); err != nil {
		t.Fatal(err)
	}
	again := newLab(t, func(c *Config) {
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
	short := newLab(t, func(c *Config) {
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

// TestPurgeUnknownUse: a key that is older than the record of uses may have been
// used until that began; without a record, until it was deleted.
func TestPurgeUnknownUse(t *testing.T) {
	for name, store := range map[string]metastore.LastUses{"old key": openStore(t), "no record": nil} {
		l := softLab(t, func(c *Config) { c.PurgeMinUnused, c.LastUses = time.Hour, store })
		key := claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128, Created: time.Now().Add(-10 * time.Hour)}
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

func versionOf(t *testing.T, l *lab, key string) string {
	t.Helper()
	v, err := l.primary.Provider.Current(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return v.Name
}
