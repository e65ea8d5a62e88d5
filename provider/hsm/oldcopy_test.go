package hsm_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/hsm"
)

// copyStore returns the content of the store's file. No provider may have it open.
func (b *testSite) copyStore(t *testing.T) []byte {
	t.Helper()
	b.closeStores(t)
	data, err := os.ReadFile(b.db)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// putStore puts a copy back, as cp does.
func (b *testSite) putStore(t *testing.T, data []byte) {
	t.Helper()
	b.closeStores(t)
	if err := os.WriteFile(b.db, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// putUnnoticed puts a copy back and adds the newer incarnations to it. Then nothing shows that it is a copy, as on a
// token that keeps no data objects.
func (b *testSite) putUnnoticed(t *testing.T, data []byte) {
	t.Helper()
	known := b.setting(t, "store.incarnations", "")
	b.putStore(t, data)
	b.setting(t, "store.incarnations", known)
}

// TestOldCopyWithSteps: a copy of the store is from before a creation and a roll ended. In the copy they are pending,
// although their objects are in use. No step of a user destroys these objects, and adopt brings them back.
func TestOldCopyWithSteps(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	b.soft = "true"
	b.create(t, "kk")
	p := b.mustOpen(t)
	b.meter.Fail("Encrypt", 2, errKilled) // the objects are made, and their check values are not read
	spec := provider.Spec{Name: "x", Cipher: claviger.DefaultCipher, BitLength: 256}
	if _, err := p.Create(ctx, spec); err == nil {
		t.Fatal("created")
	}
	b.meter.Heal()
	mustClose(t, p)
	b.withStore(t, func(s metastore.Store) { // a roll that ends after its intent
		if _, err := s.Begin(ctx, metastore.Intent{Key: "kk", Op: "roll",
			Refs: []metastore.Ref{{Object: "00112233aabbccdd"}}, Payload: []byte(`{"bits":256}`)}); err != nil {
			t.Fatal(err)
		}
	})
	old := b.copyStore(t)

	// Both steps end, and their objects are used.
	p = b.mustOpen(t)
	want := map[string][]byte{}
	v, err := p.Create(ctx, spec)
	if err != nil || v.Name != "x@0" {
		t.Fatal(v, err)
	}
	if v, err = p.Roll(ctx, "kk", nil); err != nil || v.Name != "kk@1" {
		t.Fatal(v, err)
	}
	for _, v := range []string{"x@0", "kk@0", "kk@1"} {
		want[v] = keystream(t, p, v)
	}
	mustClose(t, p)

	// The copy is put back.
	b.putUnnoticed(t, old)
	p = b.mustOpen(t)
	if _, err := p.Create(ctx, provider.Spec{Name: "x", Cipher: claviger.DefaultCipher,
		BitLength: 128}); !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "x@0") {
		t.Errorf("another key of the name: %v", err)
	}
	bobs := provider.Spec{Name: "x", Cipher: claviger.DefaultCipher, BitLength: 256,
		Attributes: map[string]string{claviger.ACLNameAttribute: "scratch"}}
	if _, err := p.Create(ctx, bobs); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("the same key under other rules: %v", err)
	}
	if err := p.EncryptBlocks(ctx, "x@0", make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a version that a step has made: %v", err)
	}
	if err := p.Delete(ctx, "kk"); err != nil {
		t.Error(err)
	}
	if err := p.Purge(ctx, "x", "x@0"); err == nil {
		t.Error("purged")
	}
	if err := p.Undelete(ctx, "kk", "kk@0"); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
	b.access = hsm.Repair
	p = b.mustOpen(t)
	list, err := p.Candidates(ctx)
	if err != nil || len(list) != 1 || list[0].Key != "x" {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := p.Adopt(ctx, list[0], hsm.Adoption{}); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.access = hsm.Serve
	p = b.mustOpen(t)
	for v, stream := range want {
		if got := keystream(t, p, v); !bytes.Equal(got, stream) {
			t.Errorf("%s is another key", v)
		}
	}
}

// TestNumberGivenByACopy: a copy of the store gives a number again that the store gave to a key that was deleted. In
// the store, the copy's key is unknown and no orphan.
func TestNumberGivenByACopy(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	b.create(t, "other")
	copied := b.copyStore(t)
	b.create(t, "x")
	p := b.mustOpen(t)
	if err := p.Delete(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	lost := b.copyStore(t)
	b.putUnnoticed(t, copied)
	b.create(t, "x")
	b.putUnnoticed(t, lost)
	b.access = hsm.Destroy
	p = b.mustOpen(t)
	wantMarks(t, p, map[string]hsm.Mark{"other@0": hsm.InUse, "x@0": hsm.Unknown})
	if r, err := p.Prunable(ctx, 0); err != nil || len(r.Orphans) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	mustClose(t, p)
	b.access = hsm.Repair
	p = b.mustOpen(t)
	if list, err := p.Candidates(ctx); err != nil || len(list) != 1 || list[0].Key != "x" || list[0].Why != "" {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestEndSteps: in a restored copy no step is pending. Objects of a creation are unknown. Objects that a deletion was
// about to destroy are orphans, unless the store that the copy replaces uses them.
func TestEndSteps(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	b.create(t, "kept")
	for _, key := range []string{"gone", "revived"} {
		b.create(t, key)
	}
	p := b.mustOpen(t)
	b.meter.Fail("Encrypt", 20, errKilled)
	if _, err := p.Create(ctx, provider.Spec{Name: "made", Cipher: claviger.DefaultCipher,
		BitLength: 256}); err == nil {
		t.Fatal("created")
	}
	b.meter.Heal()
	b.meter.Fail("DestroyObject", 2, errKilled)
	for _, key := range []string{"gone", "revived"} {
		if err := p.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	b.meter.Heal()
	mustClose(t, p)
	b.withStore(t, func(s metastore.Store) {
		pending, err := s.Pending(ctx)
		if err != nil || len(pending) != 3 {
			t.Fatalf("%+v, %v", pending, err)
		}
		unused := func(want bool) {
			t.Helper()
			if never, err := s.NeverUsed(ctx, "kept@0"); err != nil || never != want {
				t.Errorf("kept@0 never used: %v (%v), want %v", never, err, want)
			}
		}
		unused(true)
		if err := hsm.EndSteps(ctx, s); err != nil {
			t.Fatal(err)
		}
		unused(false)
		for _, i := range pending {
			if i.Key == "revived" {
				if err := hsm.Forget(ctx, s, i.Refs[0].Object); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	p = b.mustOpen(t)
	wantMarks(t, p, map[string]hsm.Mark{"kept@0": hsm.InUse, "made@0": hsm.Unknown, "gone@0": hsm.Orphan,
		"revived@0": hsm.Unknown})
}

// TestLostEndOfAStep: a store lost the end of a creation while a server ran that had surveyed the token before. The
// server gives the name to no new key.
func TestLostEndOfAStep(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	p := b.mustOpen(t)
	create(t, p, "other")
	create(t, p, "x")
	b.withStore(t, func(s metastore.Store) { // as if Insert had not reached the store
		_, err := s.Remove(ctx, "x")
		if err = errors.Join(err, s.Drop(ctx, "x")); err != nil {
			t.Fatal(err)
		}
	})
	spec := provider.Spec{Name: "x", Cipher: claviger.DefaultCipher, BitLength: 256}
	if v, err := p.Create(ctx, spec); !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "x@0") {
		t.Errorf("%+v, %v", v, err)
	}
}
