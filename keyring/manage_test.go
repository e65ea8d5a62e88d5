package keyring

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/secret"
)

// TestCreateRefused: the error of each kind of wrong specification of a key.
func TestCreateRefused(t *testing.T) {
	material := secret.Bytes(bytes.Repeat([]byte{7}, 16))
	for _, c := range []struct {
		name string
		spec provider.Spec
		kind claviger.Kind
		text string
	}{
		{"bit length", provider.Spec{Name: "n", BitLength: 100}, claviger.InvalidKeySize, ""},
		{"negative bit length", provider.Spec{Name: "n", BitLength: -1}, claviger.InvalidKeySize, ""},
		{"bit length of given material", provider.Spec{Name: "n", BitLength: 64, Material: material[:8]},
			claviger.InvalidKeySize, ""},
		{"cipher", provider.Spec{Name: "n", Cipher: "FOO/CTR/NoPadding"}, claviger.UnknownCipher, ""},
		{"no name", provider.Spec{}, claviger.Invalid, ""},
		{"exists", provider.Spec{Name: "k"}, claviger.KeyExists, ""},
		{"exists, short material", provider.Spec{Name: "k", Material: material[:3]}, claviger.KeyExists, ""},
		{"short material", provider.Spec{Name: "n", Material: material[:15]}, claviger.MaterialLength,
			"Wrong key length. Required 128, but got 120"},
		{"empty material", provider.Spec{Name: "n", Material: secret.Bytes{}}, claviger.MaterialLength,
			"Wrong key length. Required 128, but got 0"},
		{"material of another length", provider.Spec{Name: "n", BitLength: 256, Material: material},
			claviger.MaterialLength, "Wrong key length. Required 256, but got 128"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newTestRing(t, nil)
			create(t, l.primary, "k")
			_, err := l.Create(t.Context(), caller("u"), c.spec)
			wantKind(t, err, c.kind)
			if c.text != "" && text(t, err) != c.text {
				t.Errorf("%q", text(t, err))
			}
			if got := l.audit.take(); len(got) != 0 {
				t.Errorf("audit %q: only kmsapi writes ERROR lines", got)
			}
			if names, err := l.Names(t.Context(), caller("u")); err != nil || !slices.Equal(names, []string{"k"}) {
				t.Errorf("keys %q, %v", names, err)
			}
		})
	}
}

// TestCreate checks which values a new key gets, and that its material is shown only to a caller who may read it.
func TestCreate(t *testing.T) {
	material := secret.Bytes(bytes.Repeat([]byte{7}, 16))
	description := "für die Finanz"
	t.Run("defaults", func(t *testing.T) {
		l := newTestRing(t, func(c *Config) { c.DefaultCipher, c.DefaultBitLength = "AES/CBC/NoPadding", 256 })
		if _, err := l.Create(t.Context(), caller("u"), provider.Spec{Name: "k",
			Description: &description}); err != nil {
			t.Fatal(err)
		}
		m, err := l.Metadata(t.Context(), caller("u"), "k")
		if err != nil || m.Cipher != "AES/CBC/NoPadding" || m.BitLength != 256 || *m.Description != description ||
			m.Attributes[claviger.ACLNameAttribute] != "k" {
			t.Errorf("%+v, %v", m, err)
		}
		if got := l.audit.take()[0]; got != "OK[op=CREATE_KEY, key=k, user=u] UserProvidedMaterial:false "+
			"Description:"+description {
			t.Errorf("audit %q", got)
		}
		if es, _ := l.edeks(t, "k", 1); len(es[0].Material) != 32 {
			t.Errorf("a DEK of %d bytes under a key of 32", len(es[0].Material))
		}
	})
	t.Run("ACL name", func(t *testing.T) {
		for given, want := range map[string]string{"other": "other", "": "k"} {
			l := newTestRing(t, nil)
			attributes := map[string]string{claviger.ACLNameAttribute: given, "x": "y"}
			if _, err := l.Create(t.Context(), caller("u"), provider.Spec{Name: "k",
				Attributes: attributes}); err != nil {
				t.Fatal(err)
			}
			m, err := l.Metadata(t.Context(), caller("u"), "k")
			if err != nil || m.Attributes[claviger.ACLNameAttribute] != want || m.Attributes["x"] != "y" {
				t.Errorf("%v, %v; want ACL name %s", m, err, want)
			}
			if attributes[claviger.ACLNameAttribute] != given {
				t.Error("the caller's map was changed")
			}
		}
	})
	t.Run("without key authorization", func(t *testing.T) {
		l := newTestRing(t, func(c *Config) { c.KeyAuthorization, c.Policy = false, rules(t) })
		if _, err := l.Create(t.Context(), caller("u"), provider.Spec{Name: "k"}); err != nil {
			t.Fatal(err)
		}
		if m, err := l.Metadata(t.Context(), caller("u"), "k"); err != nil || len(m.Attributes) != 0 {
			t.Errorf("attributes %v, %v", m.Attributes, err)
		}
	})
	t.Run("sealed provider", func(t *testing.T) {
		p := memory.New(memory.Config{Sealed: true})
		t.Cleanup(func() { _ = p.Close() })
		l := newTestRing(t, func(c *Config) { c.Primary = p })
		_, err := l.Create(t.Context(), caller("u"), provider.Spec{Name: "k", Material: material})
		wantKind(t, err, claviger.Unsupported)
	})
}

// TestRollRefused: a roll of a missing key, or with material of a wrong length, makes no version.
func TestRollRefused(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	_, err := l.Roll(t.Context(), caller("u"), "nokey", nil)
	wantKind(t, err, claviger.KeyNotFound)
	_, err = l.Roll(t.Context(), caller("u"), "nokey", secret.Bytes{1})
	wantKind(t, err, claviger.KeyNotFound)
	_, err = l.Roll(t.Context(), caller("u"), "k", secret.Bytes{1})
	wantKind(t, err, claviger.MaterialLength)
	if got := text(t, err); got != "Wrong key length. Required 128, but got 8" {
		t.Errorf("%q", got)
	}
	if v, err := l.Current(t.Context(), caller("u"), "k"); err != nil || v.Name != "k@0" {
		t.Errorf("%v, %v", v, err)
	}
}

// TestMaterialIsWithheld: material is shown only with the right GET, and is a copy.
func TestMaterialIsWithheld(t *testing.T) {
	l := newTestRing(t, func(c *Config) {
		c.Policy = rules(t, append([]string{"hadoop.kms.acl.GET", "reader"}, everything...)...)
	})
	for _, user := range []string{"reader", "maker"} {
		key := "k" + user
		created, err := l.Create(t.Context(), caller(user), provider.Spec{Name: key})
		if err != nil {
			t.Fatal(err)
		}
		rolled, err := l.Roll(t.Context(), caller(user), key, bytes.Repeat([]byte{9}, 16))
		if err != nil {
			t.Fatal(err)
		}
		if shown := created.Material != nil && rolled.Material != nil; shown != (user == "reader") {
			t.Errorf("%s: material shown: %t", user, shown)
		}
		if lines := l.audit.take(); len(lines) != 2 || !strings.HasPrefix(lines[1], "OK[op=ROLL_NEW_VERSION") ||
			!strings.Contains(lines[1], "UserProvidedMaterial:true NewVersion:"+key+"@1") {
			t.Errorf("audit %q", lines)
		}
	}
	read := func() secret.Bytes {
		v, err := l.Version(t.Context(), caller("reader"), "kreader@1")
		if err != nil {
			t.Fatal(err)
		}
		return v.Material
	}
	read().Wipe() // as the API does after its answer
	if got := read(); !got.Equal(bytes.Repeat([]byte{9}, 16)) {
		t.Error("a caller wiped the cached material")
	}
	if m, err := l.Metadata(t.Context(), caller("u"), "kreader"); err != nil {
		t.Fatal(err)
	} else {
		m.Attributes[claviger.ACLNameAttribute] = "stolen"
	}
	if m, err := l.Metadata(t.Context(), caller("u"), "kreader"); err != nil || m.ACLName() != "kreader" {
		t.Error("a caller changed the cached metadata")
	}
}

// TestSlowCreateBlocksNoOthers: while an HSM makes one key slowly, other keys can be made and all keys can be read.
func TestSlowCreateBlocksNoOthers(t *testing.T) {
	l := newTestRing(t, nil)
	begun, release := make(chan struct{}), make(chan struct{})
	var creating atomic.Int64
	l.primary.before = func(_ context.Context, call string) error {
		if call == "Create slow" && creating.Add(1) == 1 {
			close(begun)
			<-release
		}
		return nil
	}
	create(t, l.primary, "k")
	es, _ := l.edeks(t, "k", 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := l.Create(t.Context(), caller("u"), provider.Spec{Name: "slow"}); err != nil {
			t.Error(err)
		}
	})
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for i := range 200 {
		if _, err := l.Create(ctx, caller("u"), provider.Spec{Name: fmt.Sprint("quick", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Roll(ctx, caller("u"), "k", nil); err != nil {
		t.Error(err)
	}
	if _, err := l.Decrypt(ctx, caller("u"), "k", true, es[0]); err != nil {
		t.Error(err)
	}
	if m, err := l.Metadata(ctx, caller("u"), "slow"); err != nil || m != nil {
		t.Errorf("%v, %v", m, err)
	}
	// A request for the same key waits until the first has ended, or until its context ends.
	short, cancelShort := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancelShort()
	_, err := l.Create(short, caller("u"), provider.Spec{Name: "slow"})
	wantKind(t, err, claviger.Unavailable)
	if creating.Load() != 1 {
		t.Error("two creations of one key at a time")
	}
	close(release)
	wg.Wait()
	if _, err := l.Create(t.Context(), caller("u"), provider.Spec{Name: "slow"}); true {
		wantKind(t, err, claviger.KeyExists)
	}
	if n := len(l.manage.held); n != 0 {
		t.Errorf("%d locks are still held", n)
	}
}

// TestFailedRollDropsCache: a roll that returned an error may have been done, so the cached version is dropped.
func TestFailedRollDropsCache(t *testing.T) {
	primary := &counting{Provider: memory.New(memory.Config{SequentialIDs: true})}
	t.Cleanup(func() { _ = primary.Provider.Close() })
	l := newTestRing(t, func(c *Config) { c.Primary = &lostAnswer{primary} })
	l.primary = primary
	create(t, l.primary, "k")
	l.edeks(t, "k", 1)
	_, err := l.Roll(t.Context(), caller("u"), "k", nil)
	wantKind(t, err, claviger.Unavailable)
	if es, _ := l.edeks(t, "k", 1); es[0].Version != "k@1" {
		t.Errorf("EDEK of %s after a roll whose answer was lost", es[0].Version)
	}
}

// lostAnswer is a provider that rolls a key and then returns an error.
type lostAnswer struct{ *counting }

func (p *lostAnswer) RollIf(ctx context.Context, key string, material secret.Bytes,
	may func(*claviger.Metadata) error) (claviger.KeyVersion, error) {
	if _, err := p.counting.RollIf(ctx, key, material, may); err != nil {
		return claviger.KeyVersion{}, err
	}
	return claviger.KeyVersion{}, claviger.E("test", claviger.Unavailable, key, nil)
}
