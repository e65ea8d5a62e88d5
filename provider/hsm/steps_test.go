package hsm_test

import (
	"errors"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// TestUnusableObject: a process that is killed within C_GenerateKey of SoftHSM leaves an object that looks right and
// cannot encrypt. The same step makes it again. It does not touch an object that cannot be used for another reason.
func TestUnusableObject(t *testing.T) {
	b := newSite(t)
	ctx := t.Context()
	m := claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 256}
	p := b.mustOpen(t)
	killed := errors.New("killed here")
	_, err := p.Import(ctx, m, 2, 0, func(step string) error {
		if step == "generated 1 of 2" {
			return killed
		}
		return nil
	})
	if !errors.Is(err, killed) {
		t.Fatal(err)
	}
	before := objects(t, p)
	if len(before) != 1 {
		t.Fatalf("%+v", before)
	}

	// The token answers that it is busy. That says nothing about the object.
	b.meter.Fail("Encrypt", 4, p11.Error(p11.CKR_DEVICE_ERROR))
	if _, err := p.Import(ctx, m, 2, 0, nil); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("with a token that does not answer: %v", err)
	}
	b.meter.Heal()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = b.mustOpen(t)
	b.meter.Reset()
	b.meter.Fail("Encrypt", 1, p11.Error(p11.CKR_ACTION_PROHIBITED))
	vs, err := p.Import(ctx, m, 2, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	after := objects(t, p)
	if len(vs) != 2 || len(after) != 2 || b.meter.Count("DestroyObject") != 1 || b.meter.Count("GenerateKey") != 2 {
		t.Errorf("%d versions, %+v, calls %v", len(vs), after, b.meter.Counts())
	}
	for _, v := range vs {
		if err := p.EncryptBlocks(ctx, v.Name, make([]byte, 16)); err != nil {
			t.Error(err)
		}
	}
	if vs[0].Name != before[0].Label {
		t.Errorf("the first version is %s, and was begun as %s", vs[0].Name, before[0].Label)
	}
}

// TestUnusableObjectWithoutData: if the token keeps no data objects, an object that it refuses to use is not destroyed,
// neither by the same step nor by another one. The store may be an old copy, and the version in use.
func TestUnusableObjectWithoutData(t *testing.T) {
	b := newSite(t)
	ctx := t.Context()
	keepsNone := func() { b.meter.Fail("CreateObject", 1000, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED)) }
	m := claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 256}
	keepsNone()
	p := b.mustOpen(t)
	create(t, p, "other")
	killed := errors.New("killed here")
	if _, err := p.Import(ctx, m, 1, 0, func(step string) error {
		if step == "generated 1 of 1" {
			return killed
		}
		return nil
	}); !errors.Is(err, killed) {
		t.Fatal(err)
	}
	mustClose(t, p)
	keepsNone()
	p = b.mustOpen(t)
	steps := map[string]func() error{
		"the same step": func() error { _, err := p.Import(ctx, m, 1, 0, nil); return err },
		"another step":  func() error { return tryCreate(t, p, "k") },
	}
	for name, step := range steps {
		b.meter.Heal()
		b.meter.Fail("Encrypt", 1, p11.Error(p11.CKR_ACTION_PROHIBITED))
		destroyed := b.meter.Count("DestroyObject")
		if err := step(); !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "refuses to use") ||
			!strings.Contains(err.Error(), "k@0") {
			t.Errorf("%s: %v", name, err)
		}
		if list := objects(t, p); len(list) != 2 || b.meter.Count("DestroyObject") != destroyed {
			t.Errorf("%s: %+v", name, list)
		}
	}
	if _, err := p.Import(ctx, m, 1, 0, nil); err != nil { // the token uses the object again
		t.Error(err)
	}
	keystream(t, p, "k@0")
}
