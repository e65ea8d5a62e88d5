package hsm_test

import (
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"claviger"
	"claviger/provider/hsm"
)

// TestAdoptedKeys: a key counts as adopted while an adoption's record is its record. A key whose record existed before,
// a key that a user made, and a key that a user made later under the name of an adopted key do not count.
func TestAdoptedKeys(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	b.create(t, "known")
	b.closeStores(t)
	copied, err := os.ReadFile(b.db)
	if err != nil {
		t.Fatal(err)
	}
	p := b.mustOpen(t)
	if _, err := p.Roll(ctx, "known", nil); err != nil {
		t.Fatal(err)
	}
	create(t, p, "k")
	create(t, p, "recreated")
	mustClose(t, p)
	b.closeStores(t)
	b.putUnnoticed(t, copied)
	b.adoptAll(t, hsm.Adoption{})
	p = b.mustOpen(t)
	want := func(names ...string) {
		t.Helper()
		got, err := p.Adopted(ctx, "k", "recreated", "known", "mine", "none")
		if err != nil || !slices.Equal(got, names) {
			t.Errorf("adopted: %v, %v; want %v", got, err, names)
		}
	}
	want("k", "recreated")
	was, err := p.Metadata(ctx, "recreated")
	if err != nil {
		t.Fatal(err)
	}
	create(t, p, "mine")
	if err := p.Delete(ctx, "recreated"); err != nil {
		t.Fatal(err)
	}
	create(t, p, "recreated")
	if _, err := p.Roll(ctx, "k", nil); err != nil {
		t.Fatal(err)
	}
	want("k")
	// On a token that keeps dates, two keys may have the same creation time.
	if err := b.stores[len(b.stores)-1].Amend(ctx, *was[0]); err != nil {
		t.Fatal(err)
	}
	want("k")
	if _, err := p.Version(ctx, "k@0"); err != nil { // puts the version into the cache
		t.Fatal(err)
	}
	text := "as at the source"
	m := claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128, Description: &text,
		Created: time.UnixMilli(1234567890123), Attributes: map[string]string{claviger.ACLNameAttribute: "finance"}}
	if err := p.Retake(ctx, m); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("with another length: %v", err)
	}
	m.BitLength = 256
	if err := p.Retake(ctx, m); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"k@0", "k@1"} {
		v, err := p.Version(ctx, version)
		if err != nil || v.Of == nil || !v.Of.Created.Equal(m.Created) || *v.Of.Description != text ||
			!maps.Equal(v.Of.Attributes, m.Attributes) || v.Of.Versions != 2 {
			t.Errorf("%s is of %+v, %v", version, v.Of, err)
		}
	}
	want()
	for _, name := range []string{"k", "recreated", "known", "mine"} {
		m.Name = name
		if err := p.Retake(ctx, m); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	m.Name = "none"
	if err := p.Retake(ctx, m); !claviger.Is(err, claviger.KeyNotFound) {
		t.Errorf("a key that is not here: %v", err)
	}
	mustClose(t, p)
}
