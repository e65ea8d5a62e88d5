package hsm_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// TestVersionNames: the name of a version is NAME@N, in the store and as its object's label, and its CKA_ID is random,
// whatever the key's name contains and however long it is. A name never gets the same N twice.
func TestVersionNames(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	b.soft = "true"
	p := b.mustOpen(t)
	ids := map[string]bool{}
	for _, name := range []string{"k", "k@0", "at@in@name", "@", strings.Repeat("long", 200)} {
		create := func(want int) {
			t.Helper()
			v, err := p.Create(ctx, provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128})
			wantVersion(t, p, v, err, name, want)
		}
		roll := func(want int) {
			t.Helper()
			v, err := p.Roll(ctx, name, nil)
			wantVersion(t, p, v, err, name, want)
		}
		do := func(f func(context.Context, string) error) {
			t.Helper()
			if err := f(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		create(0)
		roll(1)
		do(p.Delete) // a soft deletion
		create(2)
		do(p.Delete)
		do(func(ctx context.Context, name string) error { return p.Undelete(ctx, name, name+"@2") })
		roll(3)
		do(p.Delete)
		do(func(ctx context.Context, name string) error { return p.Purge(ctx, name, name+"@0", name+"@3") })
		create(4)
		// The number of an interrupted step is given up only if another step follows.
		b.meter.Fail("GenerateKey", 1, errKilled)
		if _, err := p.Roll(ctx, name, nil); !errors.Is(err, errKilled) {
			t.Errorf("roll: %v", err)
		}
		b.meter.Heal()
		roll(5)
	}
	for _, o := range objects(t, p) {
		if o.Mark != hsm.InUse || len(o.ID) != 16 || ids[o.ID] || !strings.HasSuffix(o.Label, "@4") &&
			!strings.HasSuffix(o.Label, "@5") {
			t.Errorf("object %+v", o)
		}
		ids[o.ID] = true
	}
	mustClose(t, p)
}

// wantVersion demands that v is the current version, has that number, encrypts, and is the version that clients compute
// from the metadata.
func wantVersion(t *testing.T, p *hsm.Provider, v claviger.KeyVersion, err error, key string, n int) {
	t.Helper()
	ms, merr := p.Metadata(t.Context(), key)
	current, cerr := p.Current(t.Context(), key)
	if err := errors.Join(err, merr, cerr); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%s@%d", key, n); v.Name != want || current.Name != want || ms[0].Versions != n+1 {
		t.Errorf("%.40q: version %.60q, current %.60q, versions %d; want number %d", key, v.Name, current.Name,
			ms[0].Versions, n)
	}
	if err := p.EncryptBlocks(t.Context(), v.Name, make([]byte, 16)); err != nil {
		t.Error(err)
	}
}

// withoutNumbers gives a site a key k of an older release, whose versions have the CKA_IDs old in their names, and
// the interrupted creation of a key half.
func (b *testSite) withoutNumbers(t *testing.T, old []string) {
	t.Helper()
	ctx := t.Context()
	key := metastore.Key{Metadata: claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128,
		Created: time.UnixMilli(5)}}
	b.withToken(t, func(tok *pkcs11.Token) {
		for _, id := range append(slices.Clone(old), "00000000000000b1") {
			raw, err := hex.DecodeString(id)
			if err != nil {
				t.Fatal(err)
			}
			name := "k@" + id
			if id == "00000000000000b1" {
				name = "half@" + id
			}
			if err := tok.GenerateKey(ctx, raw, name, 128); err != nil {
				t.Fatal(err)
			}
			check, err := tok.CheckValue(ctx, raw, name)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(name, "k@") {
				key.List = append(key.List, metastore.Version{ID: id, Object: id, Created: time.UnixMilli(5),
					Check: check})
			}
		}
	})
	b.withStore(t, func(s metastore.Store) {
		_, err := s.Begin(ctx, metastore.Intent{Key: "half", Op: "create",
			Refs: []metastore.Ref{{ID: "00000000000000b1",
				Object: "00000000000000b1"}}, Payload: []byte(`{"bits":128}`)})
		// SkipNumbers as the migration of the schema does
		if err := errors.Join(err, s.Insert(ctx, key), s.SkipNumbers(ctx, "k", len(old))); err != nil {
			t.Fatal(err)
		}
	})
}

// TestKeysWithoutNumbers: keys from before there were numbers, with the CKA_ID in the names of their versions, are used
// as before. The next roll gives the number that clients compute. If a creation from that time was interrupted, the key
// is made again, with a number.
func TestKeysWithoutNumbers(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	old := []string{"00000000000000a1", "00000000000000a2", "1234567890123456"}
	b.withoutNumbers(t, old)
	p := b.mustOpen(t)
	for _, o := range objects(t, p) {
		if want := map[bool]hsm.Mark{true: hsm.InUse, false: hsm.Pending}[strings.HasPrefix(o.Label,
			"k@")]; o.Mark != want {
			t.Errorf("object %+v, want %s", o, want)
		}
	}
	ms, err := p.Metadata(ctx, "k")
	if err != nil || ms[0].Versions != 3 {
		t.Errorf("metadata %+v, %v", ms, err)
	}
	seen := map[string]bool{}
	for _, id := range old {
		block := make([]byte, 16)
		if err := p.EncryptBlocks(ctx, "k@"+id, block); err != nil {
			t.Error(err)
		}
		seen[string(block)] = true
	}
	if seen[string(bytes.Repeat([]byte{0}, 16))] || len(seen) != 3 {
		t.Errorf("%d different keys", len(seen))
	}
	v, err := p.Roll(ctx, "k", nil)
	wantVersion(t, p, v, err, "k", 3)
	half := provider.Spec{Name: "half", Cipher: claviger.DefaultCipher, BitLength: 128}
	if _, err := p.Create(ctx, half); !claviger.Is(err, claviger.Invalid) ||
		!strings.Contains(err.Error(), "claviger hsm adopt half") {
		t.Errorf("a key over the objects of an old program's step: %v", err)
	}
	mustClose(t, p)
	b.setAside(t, "half")
	p = b.mustOpen(t)
	v, err = p.Create(ctx, half)
	wantVersion(t, p, v, err, "half", 0)
	for _, o := range objects(t, p) {
		if want := map[bool]hsm.Mark{true: hsm.Aside,
			false: hsm.InUse}[o.Label == "half@00000000000000b1"]; o.Mark != want {
			t.Errorf("object %+v, want %s", o, want)
		}
	}
	if err := p.Delete(ctx, "k"); err != nil {
		t.Error(err)
	}
	if list := objects(t, p); len(list) != 2 {
		t.Errorf("after the deletion: %+v", list)
	}
	mustClose(t, p)
}

// TestImportAbove: an import was interrupted, and the source has used its numbers since. Once its objects were set
// aside, the import is made again with higher numbers.
func TestImportAbove(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	p := b.mustOpen(t)
	m := claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128}
	stop := errors.New("stop")
	if _, err := p.Import(ctx, m, 2, 3, func(step string) error {
		if step == "generated 2 of 2" {
			return stop
		}
		return nil
	}); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	if vs, err := p.Import(ctx, m, 2, 4, nil); !claviger.Is(err, claviger.Invalid) || len(objects(t, p)) != 2 {
		t.Errorf("%v, %v", vs, err)
	}
	mustClose(t, p)
	b.setAside(t, "k")
	p = b.mustOpen(t)
	vs, err := p.Import(ctx, m, 2, 4, nil)
	if err != nil || vs[0].Name != "k@5" || vs[1].Name != "k@6" || len(objects(t, p)) != 4 {
		t.Errorf("%v, %v, %+v", vs, err, objects(t, p))
	}
	if _, err := p.Import(ctx, claviger.Metadata{Name: "last", Cipher: claviger.DefaultCipher, BitLength: 128}, 1,
		claviger.MaxVersion, nil); err != nil {
		t.Error(err)
	}
	if _, err := p.Roll(ctx, "last", nil); !claviger.Is(err, claviger.Unsupported) {
		t.Errorf("a roll beyond the last number: %v", err)
	}
	mustClose(t, p)
}
