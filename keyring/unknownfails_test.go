package keyring

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/authz"
	"claviger/metastore"
	"claviger/provider"
)

// TestRecordsUses: without one of the two stores it is not known which versions
// were used.
func TestRecordsUses(t *testing.T) {
	store := openStore(t)
	for _, c := range []struct {
		numbers  metastore.Numbers
		lastUses metastore.LastUses
		want     bool
	}{{nil, nil, false}, {store, nil, false}, {nil, store, false}, {store, store, true}} {
		r := &Ring{cfg: Config{Numbers: c.numbers, LastUses: c.lastUses}}
		if got := r.recordsUses(); got != c.want {
			t.Errorf("%v, %v: %t", c.numbers, c.lastUses, got)
		}
	}
}

// TestNeverUsedIsNotGuessed: a key whose versions cannot be read does not count as
// never used, because the cure of its conflict would then be to delete it.
func TestNeverUsedIsNotGuessed(t *testing.T) {
	store := &downUses{Store: openStore(t)}
	l := newTestRing(t, func(c *Config) { c.LastUses, c.Numbers = store, store })
	create(t, l.primary, "k")
	l.primary.before = func(_ context.Context, call string) error {
		if call == "Versions" {
			return errInjected
		}
		return nil
	}
	if never, err := l.neverUsed(t.Context(), "k"); never || !errors.Is(err, errInjected) {
		t.Errorf("%t, %v", never, err)
	}
}

// TestRefuseIfThere: an EDEK that may belong to either of two keys is not refused
// if the source says that it lacks the version, or does not answer.
func TestRefuseIfThere(t *testing.T) {
	l, far := withSource(t, nil, "k")
	errTwice := errors.New("two keys")
	for kind, refused := range map[claviger.Kind]bool{
		claviger.VersionNotFound: false, claviger.Unavailable: false, claviger.Denied: true, claviger.BadIV: true,
	} {
		far.setFail(failing(kind, "injected"))
		err := refuseIfThere(t.Context(), l.sources.list[0], claviger.ParseVersion("k@0"), errTwice)
		if errors.Is(err, errTwice) != refused || err == nil {
			t.Errorf("kind %v: %v", kind, err)
		}
	}
	far.setFail(nil)
	err := refuseIfThere(t.Context(), l.sources.list[0], claviger.ParseVersion("k@0"), errTwice)
	if !errors.Is(err, errTwice) {
		t.Errorf("the source has it: %v", err)
	}
}

// TestConflictCureOfAMissingVersion: the cure depends on whether a migration made
// the version at a former primary.
func TestConflictCureOfAMissingVersion(t *testing.T) {
	l := newFormerPrimaryRing(t, keystoreFirst)
	for version, want := range map[string]string{
		formerVersion: "Copy the files that were made while the server had its keys in " + keystoreURI,
		"pin@9":       "bring key pin back here",
	} {
		if got := l.conflictCure(t.Context(), claviger.ParseVersion(version)); !strings.Contains(got, want) {
			t.Errorf("%s: %s", version, got)
		}
	}
	l.origins.forget()
	l.origins.history = &journal{fail: errInjected}
	twice, err := l.otherKeyRefusal(t.Context(), l.sources.list[0], useDecrypt, claviger.ParseVersion(formerVersion),
		&claviger.Metadata{Name: formerKey}, true)
	if twice != nil || !errors.Is(err, errInjected) {
		t.Errorf("the journal cannot be read: %v, %v", twice, err)
	}
}

// TestMissingCurrentVersionIsRecorded: as in Hadoop, the request for a key that
// does not exist leaves a line in the audit log.
func TestMissingCurrentVersionIsRecorded(t *testing.T) {
	l := newTestRing(t, nil)
	if v, err := l.Current(t.Context(), caller("u"), "none"); v != nil || err != nil {
		t.Errorf("%v, %v", v, err)
	}
	if lines := l.audit.take(); len(lines) != 1 || !strings.HasPrefix(lines[0], "OK[") {
		t.Errorf("audit: %q", lines)
	}
}

// TestNeedKeyRefuses: the rules of a key are checked by its name.
func TestNeedKeyRefuses(t *testing.T) {
	l := newTestRing(t, func(c *Config) { c.Policy = rules(t, "key.acl.k.ALL", "alice") })
	create(t, l.primary, "k")
	for user, want := range map[string]bool{"alice": true, "mallory": false} {
		c := caller(user)
		q, err := l.admit(&c, "GENERATE_EEK", "k")
		if err != nil {
			t.Fatal(err)
		}
		if err := l.needKey(t.Context(), &q, "k", authz.KeyGenerateEEK); (err == nil) != want {
			t.Errorf("%s: %v", user, err)
		}
	}
}

// TestMigrateBesideADeletedKey: a migration does not take the name of a deleted
// key that the user may not manage.
func TestMigrateBesideADeletedKey(t *testing.T) {
	w := newFailingRing(t)
	_, err := w.primary.Provider.Create(t.Context(), provider.Spec{Name: "theirs", Cipher: claviger.DefaultCipher,
		BitLength: 128, Attributes: map[string]string{claviger.ACLNameAttribute: "alices"}})
	if err == nil {
		err = w.primary.Provider.Delete(t.Context(), "theirs")
	}
	if err != nil {
		t.Fatal(err)
	}
	w.setRules(t, "key.acl.theirs.MIGRATE", "u", "key.acl.alices.ALL", "alice")
	_, err = w.Migrate(t.Context(), caller("u"), "theirs")
	if !claviger.Is(err, claviger.KeyDenied) || !strings.Contains(err.Error(), "the name is kept for a deleted key") {
		t.Error(err)
	}
}

// TestCurrentVersionIsLearned: a current version that was read is known as used,
// so it is served while the store cannot be reached.
func TestCurrentVersionIsLearned(t *testing.T) {
	store := &downUses{Store: openStore(t)}
	l := newTestRing(t, func(c *Config) { c.LastUses, c.Numbers = store, store })
	v := create(t, l.primary, "k")
	numbered(t, store.Store, "k", 0)
	err := store.Store.RecordUses(t.Context(), []metastore.LastUse{{Version: v.Name, Last: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Current(t.Context(), caller("u"), "k"); err != nil {
		t.Fatal(err)
	}
	store.down.Store(true)
	defer store.down.Store(false)
	if err := l.used.begin(t.Context(), v.Name); err != nil {
		t.Error(err)
	}
}

// TestReencryptForeignFails: if the primary does not wrap a source's DEK, or has
// lost a version of the batch, the batch fails. A lost version drains the queue.
func TestReencryptForeignFails(t *testing.T) {
	l, far := withSource(t, nil, "k")
	var lost atomic.Bool
	l.primary.before = lostWhile(&lost)
	own, _ := l.edeks(t, "k", 1)
	foreign, _ := newEDEKs(t, far.blocks, "k@0", 1)
	if _, err := l.Roll(t.Context(), caller("u"), "k", nil); err != nil {
		t.Fatal(err)
	}
	for name, batch := range map[string][]claviger.EDEK{"foreign": foreign, "own too": {own[0], foreign[0]}} {
		lost.Store(false)
		l.edeks(t, "k", 1) // which fills the queue
		lost.Store(true)
		_, err := l.ReencryptBatch(t.Context(), caller("nn"), "k", batch)
		if !errors.Is(err, provider.ErrUnusable) {
			t.Errorf("%s: %v", name, err)
		}
		if n := l.Queued(); name == "own too" && n > 0 {
			t.Errorf("%s: %d EDEKs are still ready", name, n)
		}
	}
}
