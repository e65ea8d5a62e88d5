package keyring

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// changedAtCall returns a testRing whose primary changes once: before it answers the nth call of that name. noMetadata:
// the primary returns versions without metadata.
func changedAtCall(t *testing.T, noMetadata bool, call string, n int32, change func(*testRing)) *testRing {
	t.Helper()
	l := newTestRing(t, func(c *Config) {
		c.CacheEnable = false
		c.Policy = rules(t, "key.acl.alices.ALL", "alice", "key.acl.mallorys.ALL", "mallory")
	})
	l.primary.noMetadata = noMetadata
	var calls atomic.Int32
	l.primary.before = func(_ context.Context, what string) error {
		if what == call && calls.Add(1) == n {
			change(l)
		}
		return nil
	}
	return l
}

// createWithACLName makes key "k" with that ACL name in the primary, as another process does.
func createWithACLName(t *testing.T, l *testRing, aclName string) claviger.KeyVersion {
	t.Helper()
	time.Sleep(2 * time.Millisecond) // two keys of one name differ in their times of creation, as outside tests
	v, err := l.primary.Provider.Create(t.Context(), provider.Spec{
		Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128,
		Attributes: map[string]string{claviger.ACLNameAttribute: aclName},
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// replaceKey returns a change by another process: key "k" is deleted, and a user makes another key of the name, with
// that ACL name.
func replaceKey(t *testing.T, aclName string) func(*testRing) {
	return func(l *testRing) {
		if err := l.primary.Delete(t.Context(), "k"); err != nil {
			t.Error(err)
		}
		createWithACLName(t, l, aclName)
	}
}

// replaceAndRollKey is like replaceKey, but the new key is also rolled.
func replaceAndRollKey(t *testing.T, aclName string) func(*testRing) {
	return func(l *testRing) {
		replaceKey(t, aclName)(l)
		rollKey(t, l)
	}
}

// rollKey rolls key "k" in the primary, as another process does.
func rollKey(t *testing.T, l *testRing) {
	t.Helper()
	if _, err := l.primary.Provider.Roll(t.Context(), "k", nil); err != nil {
		t.Error(err)
	}
}

// TestRightsAndAnswerAreOfOneReading: a request may read a key several times, and the key may be replaced in between.
// The user must never see a key whose rules were not checked. Each request is by mallory, who may read keys with the
// ACL name mallorys.
func TestRightsAndAnswerAreOfOneReading(t *testing.T) {
	mallory := caller("mallory")
	ops := map[string]func(l *testRing) (shown bool, err error){
		"current": func(l *testRing) (bool, error) {
			v, err := l.Current(t.Context(), mallory, "k")
			return v != nil, err
		},
		"versions": func(l *testRing) (bool, error) {
			vs, err := l.Versions(t.Context(), mallory, "k")
			return len(vs) > 0, err
		},
		"version": func(l *testRing) (bool, error) {
			v, err := l.Version(t.Context(), mallory, "k@0")
			return v != nil, err
		},
		"metadata": func(l *testRing) (bool, error) {
			m, err := l.Metadata(t.Context(), mallory, "k")
			return m != nil, err
		},
		"keys metadata": func(l *testRing) (bool, error) {
			ms, err := l.KeysMetadata(t.Context(), mallory, []string{"k"})
			return len(ms) == 1 && ms[0] != nil, err
		},
		"describe": func(l *testRing) (bool, error) {
			ds, err := l.Describe(t.Context(), mallory, "k")
			return len(ds) > 0, err
		},
		"generate": func(l *testRing) (bool, error) {
			es, err := l.Generate(t.Context(), mallory, "k", 1)
			return len(es) > 0, err
		},
	}
	calls := []string{"Metadata", "Current", "Versions", "Version", "EncryptBlocks"}
	for name, op := range ops {
		for _, call := range calls {
			for i := range int32(8) {
				noMetadata, n := i >= 4, i%4+1
				for event, c := range map[string]struct {
					before string // ACL name of the first key; "": none
					change func(*testRing)
					after  string // ACL name of the key after the change
				}{
					"created":             {"", func(l *testRing) { createWithACLName(t, l, "alices") }, "alices"},
					"replaced by alice":   {"mallorys", replaceKey(t, "alices"), "alices"},
					"replaced by mallory": {"alices", replaceKey(t, "mallorys"), "mallorys"},
				} {
					l := changedAtCall(t, noMetadata, call, n, c.change)
					if c.before != "" {
						createWithACLName(t, l, c.before)
					}
					shown, err := op(l)
					if !shown {
						continue // refused, or there was no key yet
					}
					if err != nil {
						t.Errorf("%s: an answer and %v", name, err)
					}
					// Only mallory's own key, before or after the change, may be shown.
					if c.before != "mallorys" && c.after != "mallorys" {
						t.Errorf("%s, the key %s at call %d of %s: mallory got alice's key", name, event, n, call)
					}
				}
			}
		}
	}
}

// TestMaterialIsOfTheCheckedKey: key material is that of the key whose rules were checked, even if the key is replaced
// in between.
func TestMaterialIsOfTheCheckedKey(t *testing.T) {
	for _, call := range []string{"Metadata", "Current", "Versions", "Version"} {
		for i := range int32(8) {
			noMetadata, n := i >= 4, i%4+1
			for _, old := range []string{"alices", "mallorys"} {
				other := map[string]string{"alices": "mallorys", "mallorys": "alices"}[old]
				var second claviger.KeyVersion
				l := changedAtCall(t, noMetadata, call, n, func(l *testRing) {
					replaceKey(t, other)(l)
					second, _ = l.primary.Provider.Current(t.Context(), "k")
				})
				first := createWithACLName(t, l, old)
				check := func(what string, got []byte) {
					hers := first.Material
					if other == "alices" {
						hers = second.Material
					}
					if len(got) > 0 && string(got) == string(hers) {
						t.Errorf("%s, %s then %s at call %d of %s: mallory got alice's material", what, old, other, n,
							call)
					}
				}
				if v, err := l.Current(t.Context(), caller("mallory"), "k"); err == nil && v != nil {
					check("current", v.Material)
				}
				if v, err := l.Version(t.Context(), caller("mallory"), "k@0"); err == nil && v != nil {
					check("version", v.Material)
				}
				if vs, err := l.Versions(t.Context(), caller("mallory"), "k"); err == nil && len(vs) > 0 {
					check("versions", vs[0].Material)
				}
			}
		}
	}
}

// TestUseIsOfTheCheckedKey: a new key of the same name may have the same version names. A user whose rights were
// checked on the old key cannot open, make or re-encrypt EDEKs under the new key.
func TestUseIsOfTheCheckedKey(t *testing.T) {
	t.Run("decryption", func(t *testing.T) {
		for _, cached := range []bool{false, true} {
			decryptionWhileReplaced(t, cached)
		}
	})
	t.Run("re-encryption", reencryptionWhileReplaced)
	t.Run("re-encryption while the DEK is open", reencryptionWhileOpen)
	t.Run("queue", func(t *testing.T) {
		// The rules of the key that made the EDEKs in the queue apply to them.
		l := changedAtCall(t, false, "EncryptBlocks", 1, replaceKey(t, "alices"))
		createWithACLName(t, l, "mallorys")
		es, err := l.Generate(t.Context(), caller("mallory"), "k", 1)
		if err == nil {
			t.Errorf("mallory has an EDEK under alice's key: %v", es)
		}
	})
}

func decryptionWhileReplaced(t *testing.T, cached bool) {
	mallory := caller("mallory")
	var hers claviger.EDEK
	l := changedAtCall(t, false, "EncryptBlocks", 1, func(l *testRing) {
		replaceKey(t, "alices")(l)
		es, _ := newEDEKs(t, l.primary.Provider, "k@0", 1)
		hers = es[0]
	})
	if cached {
		first := l
		l = newTestRing(t, func(c *Config) {
			c.Primary = first.primary
			c.Policy = rules(t, "key.acl.alices.ALL", "alice", "key.acl.mallorys.ALL", "mallory")
		})
		l.primary = first.primary
	}
	createWithACLName(t, l, "mallorys")
	e := claviger.EDEK{Version: "k@0", IV: make([]byte, claviger.IVSize), Material: make([]byte, 16)}
	if _, err := l.Decrypt(t.Context(), mallory, "k", true, e); err == nil {
		t.Error("an EDEK was opened under alice's key")
	}
	// The cache still has the old key. mallory must not open alice's EDEK with it.
	_, err := l.Decrypt(t.Context(), mallory, "k", true, hers)
	wantKind(t, err, claviger.KeyDenied)
	if _, err := l.Decrypt(t.Context(), caller("alice"), "k", true, hers); err != nil {
		t.Errorf("alice: %v", err)
	}
}

// reencryptionWhileReplaced checks that alice's EDEK is not re-encrypted under mallory's key of the same name. k@0 is
// alice's. Then her key is deleted, and mallory makes another key of the name and rolls it.
func reencryptionWhileReplaced(t *testing.T) {
	l := changedAtCall(t, false, "Current", 1, replaceAndRollKey(t, "mallorys"))
	createWithACLName(t, l, "alices")
	es, deks := newEDEKs(t, l.primary.Provider, "k@0", 1)
	out, err := l.Reencrypt(t.Context(), caller("mallory"), "k", true, es[0])
	if err != nil {
		if !claviger.Is(err, claviger.Unavailable) && !claviger.Is(err, claviger.KeyDenied) ||
			errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		return
	}
	notMallorys(t, l, out, deks[0])
}

// reencryptionWhileOpen: alice re-encrypts her own EDEK. Between the decryption and the encryption her key is deleted,
// and mallory makes another key of the name and rolls it.
func reencryptionWhileOpen(t *testing.T) {
	l := changedAtCall(t, false, "EncryptBlocks", 2, replaceAndRollKey(t, "mallorys"))
	createWithACLName(t, l, "alices")
	rollKey(t, l)
	es, deks := newEDEKs(t, l.primary.Provider, "k@0", 1)
	out, err := l.Reencrypt(t.Context(), caller("alice"), "k", true, es[0])
	if err == nil {
		t.Errorf("alice's EDEK was re-encrypted under %s, a version of mallory's key", out.Version)
	}
	notMallorys(t, l, out, deks[0])
}

// notMallorys checks that mallory cannot open an EDEK to alice's DEK.
func notMallorys(t *testing.T, l *testRing, e claviger.EDEK, dek secret.Bytes) {
	t.Helper()
	if got, err := l.Decrypt(t.Context(), caller("mallory"), "k", true, e); err == nil && got.Equal(dek) {
		t.Error("alice's DEK is encrypted under mallory's key")
	}
}

// TestChangesAreOfTheCheckedKey: after mallory's rights were checked, another process replaces the key by alice's key.
// mallory cannot roll or delete alice's key.
func TestChangesAreOfTheCheckedKey(t *testing.T) {
	for what, change := range map[string]func(l *testRing) error{
		"roll": func(l *testRing) error {
			_, err := l.Roll(t.Context(), caller("mallory"), "k", make([]byte, 16))
			return err
		},
		"delete": func(l *testRing) error { return l.Delete(t.Context(), caller("mallory"), "k") },
	} {
		l := changedAtCall(t, false, "Change", 1, replaceKey(t, "alices"))
		createWithACLName(t, l, "mallorys")
		wantKind(t, change(l), claviger.KeyDenied)
		if vs, err := l.primary.Versions(t.Context(), "k"); err != nil || len(vs) != 1 {
			t.Errorf("%s: alice's key has %d versions, %v", what, len(vs), err)
		}
	}
}

// TestVersionWithoutMetadata: a version whose key has no metadata has no ACL name. The rules of the key's own name
// apply to it.
func TestVersionWithoutMetadata(t *testing.T) {
	l := newTestRing(t, func(c *Config) {
		c.CacheEnable = false
		c.Policy = rules(t, "key.acl.k.ALL", "alice", "key.acl.mallorys.ALL", "mallory")
	})
	createWithACLName(t, l, "mallorys")
	l.primary.noMetadata, l.primary.orphaned = true, true
	if v, err := l.Version(t.Context(), caller("mallory"), "k@0"); !claviger.Is(err, claviger.KeyDenied) {
		t.Errorf("mallory got %v, %v", v, err)
	}
	if v, err := l.Version(t.Context(), caller("alice"), "k@0"); err != nil || v == nil {
		t.Errorf("alice: %v, %v", v, err)
	}
}
