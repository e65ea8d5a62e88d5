package keyring

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"claviger"
	"claviger/authz"
	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/secret"
)

// plainKeys is a primary without optional abilities: it keeps no deleted keys, and
// checks no rules in the step that changes a key. Delete and Check return err if it is
// not nil.
type plainKeys struct {
	provider.Provider
	provider.BlockEncrypter
	err error
}

func newPlain(t *testing.T) *plainKeys {
	t.Helper()
	p := memory.New(memory.Config{SequentialIDs: true})
	t.Cleanup(func() { _ = p.Close() })
	return &plainKeys{Provider: p, BlockEncrypter: p}
}

func (p *plainKeys) Delete(ctx context.Context, key string) error {
	if p.err != nil {
		return p.err
	}
	return p.Provider.Delete(ctx, key)
}

func (p *plainKeys) Check(context.Context) error { return p.err }

// TestPlainPrimary: the errors of a primary without optional abilities are those
// of the Ring.
func TestPlainPrimary(t *testing.T) {
	p := newPlain(t)
	create(t, p, "k")
	l := newTestRing(t, func(c *Config) { c.Primary = p })
	_, err := l.Create(t.Context(), caller("u"), provider.Spec{Name: "k", Material: secret.Bytes("short")})
	wantKind(t, err, claviger.KeyExists) // the key is looked for before the material is checked
	p.err = claviger.E("test", claviger.Unavailable, "k", errInjected)
	if err := l.Delete(t.Context(), caller("u"), "k"); !errors.Is(err, errInjected) {
		t.Errorf("delete: %v", err)
	}
	if err := l.Health(t.Context()); !errors.Is(err, errInjected) {
		t.Errorf("health: %v", err)
	}
	p.err = nil
	if err := l.Health(t.Context()); err != nil {
		t.Errorf("health: %v", err)
	}
}

// TestCreateInHadoopsOrder: of two reasons against a new key the first is given,
// in the order of Hadoop's checks.
func TestCreateInHadoopsOrder(t *testing.T) {
	l, _ := withSource(t, nil, "k", "theirs")
	long, short := secret.Bytes(bytes.Repeat([]byte{7}, 16)), secret.Bytes("short")
	_, err := l.Create(t.Context(), caller("u"), provider.Spec{Name: "k", Cipher: "FOO/CTR/NoPadding", Material: long})
	wantKind(t, err, claviger.UnknownCipher) // and the key exists
	_, err = l.Create(t.Context(), caller("u"), provider.Spec{Name: "theirs", Material: short})
	wantKind(t, err, claviger.MaterialLength) // and the source has the name
}

// TestRollChecksMaterialFirst: the primary gets no material of a wrong length.
func TestRollChecksMaterialFirst(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	l.primary.before = func(_ context.Context, call string) error {
		if call == "Change" {
			t.Error("the primary got the material")
		}
		return nil
	}
	_, err := l.Roll(t.Context(), caller("u"), "k", secret.Bytes("short"))
	wantKind(t, err, claviger.MaterialLength)
}

// TestCreateForgetsTheKeyBefore: another process deleted a key that is in memory.
// After a new key of that name is made here, the new key is shown.
func TestCreateForgetsTheKeyBefore(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	if _, err := l.Current(t.Context(), caller("u"), "k"); err != nil {
		t.Fatal(err)
	}
	if err := l.primary.Provider.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	v, err := l.Create(t.Context(), caller("u"), provider.Spec{Name: "k"})
	if err != nil {
		t.Fatal(err)
	}
	now, err := l.Current(t.Context(), caller("u"), "k")
	if err != nil || !bytes.Equal(now.Material, v.Material) {
		t.Errorf("the older key is shown; %v", err)
	}
}

// TestUnreadAliases: while it is not known which key has a name in another spelling, an
// operation on it fails, and does not say that there is no such key.
func TestUnreadAliases(t *testing.T) {
	l := newTestRing(t, func(c *Config) { c.History = &journal{fail: errInjected} })
	_, rolled := l.Roll(t.Context(), caller("u"), "none", nil)
	_, versions := l.Versions(t.Context(), caller("u"), "none")
	for what, err := range map[string]error{
		"roll": rolled, "versions": versions, "invalidate": l.Invalidate(t.Context(), caller("u"), "none"),
		"a name in the journal": l.needUnlisted(t.Context(), "test", "none"),
	} {
		if !errors.Is(err, errInjected) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// mutedKeys is sharedKeys that cannot send notices to other nodes.
type mutedKeys struct{ *sharedKeys }

func (mutedKeys) Announce(context.Context, metastore.Notice) error { return errInjected }

// TestInvalidateReachesAllNodes: an invalidation that the other nodes do not get
// is an error.
func TestInvalidateReachesAllNodes(t *testing.T) {
	s := mutedKeys{newShared(t)}
	l := newTestRing(t, func(c *Config) { c.Primary, c.Shared = s, s })
	if err := l.Invalidate(t.Context(), caller("u"), "k"); !errors.Is(err, errInjected) {
		t.Error(err)
	}
}

// TestNothingFromMemoryAfterTheLease: versions that are in memory do not count
// after the end of the lease. After Close, no change of another node is looked up.
func TestNothingFromMemoryAfterTheLease(t *testing.T) {
	s := newShared(t)
	create(t, s, "k")
	l := newTestRing(t, func(c *Config) { c.Primary, c.Shared, c.Lease = s, s, time.Minute })
	if _, err := l.Version(t.Context(), caller("u"), "k@0"); err != nil {
		t.Fatal(err)
	}
	if err := l.OpensFromMemory(); err != nil {
		t.Error(err)
	}
	long := time.Now().Add(-time.Hour)
	s.heard.Store(&long)
	wantKind(t, l.OpensFromMemory(), claviger.Unavailable)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wantKind(t, l.epochs.catchUp(t.Context(), "k"), claviger.Closed)
}

// TestCloseReturnsTheErrorOfItsWrites: uses that are lost at the end are an error.
func TestCloseReturnsTheErrorOfItsWrites(t *testing.T) {
	cfg := config(t, newPlain(t))
	cfg.Usage = &closedStore{err: claviger.E("test", claviger.Unavailable, "", errInjected)}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.usage.pendingUse("k@0", 1, time.Now())
	if err := r.Close(); !errors.Is(err, errInjected) {
		t.Error(err)
	}
}

// TestGroupsOfTheConfig: the rules of groups use the groups that the Config gives.
func TestGroupsOfTheConfig(t *testing.T) {
	l := newTestRing(t, func(c *Config) {
		c.Groups = func(user string) []string { return map[string][]string{"u": {"ops"}}[user] }
		c.Policy = rules(t, "hadoop.kms.acl.GET_KEYS", " ops")
	})
	if _, err := l.Names(t.Context(), caller("u")); err != nil {
		t.Error(err)
	}
	_, err := l.Names(t.Context(), caller("v"))
	wantKind(t, err, claviger.Denied)
}

// keptMaterial is a primary that remembers the material that it has returned.
type keptMaterial struct {
	*plainKeys
	returned []secret.Bytes
}

func (k *keptMaterial) Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error) {
	vs, err := k.plainKeys.Versions(ctx, key)
	for _, v := range vs {
		k.returned = append(k.returned, v.Material)
	}
	return vs, err
}

// TestMaterialIsWiped: material that was read only for names, or for a caller who
// may not see it, is wiped.
func TestMaterialIsWiped(t *testing.T) {
	k := &keptMaterial{plainKeys: newPlain(t)}
	create(t, k, "k")
	l := newTestRing(t, func(c *Config) { c.Primary = k; c.Policy = rules(t, "key.acl.k.ALL", "alice") })
	_, err := l.Versions(t.Context(), caller("mallory"), "k")
	wantKind(t, err, claviger.KeyDenied)
	if _, err := l.Ring.primary.versionNames(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	for i, m := range k.returned {
		if len(m) != 16 || !bytes.Equal(m, make([]byte, 16)) {
			t.Errorf("reading %d: %d bytes, not wiped", i, len(m))
		}
	}
	if len(k.returned) != 2 {
		t.Errorf("%d readings", len(k.returned))
	}
}

// TestRulesBeforeAnEDEKIsMade: for a user without the right no EDEK is made.
// Without key authorization no metadata is read.
func TestRulesBeforeAnEDEKIsMade(t *testing.T) {
	l := newTestRing(t, func(c *Config) { c.Policy = rules(t, "key.acl.k.ALL", "alice") })
	create(t, l.primary, "k")
	_, err := l.Generate(t.Context(), caller("mallory"), "k", 1)
	wantKind(t, err, claviger.KeyDenied)
	if n := l.primary.encrypts.Load(); n > 0 {
		t.Errorf("%d calls made EDEKs", n)
	}
	l.primary.before = func(_ context.Context, call string) error {
		if call == "Metadata" {
			return claviger.E("test", claviger.Unavailable, "", errInjected)
		}
		return nil
	}
	q := &request{ring: l.Ring}
	if err := l.needKey(t.Context(), q, "k", authz.KeyGenerateEEK); !errors.Is(err, errInjected) {
		t.Error(err)
	}
	l.cfg.KeyAuthorization = false
	if err := l.needKey(t.Context(), q, "k", authz.KeyGenerateEEK); err != nil {
		t.Error(err)
	}
}
