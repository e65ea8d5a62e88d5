package hsm_test

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/pkcs11"
)

// refusedKeys is a library that refuses to encrypt with the keys of one label, a number of times.
type refusedKeys struct {
	pkcs11.Boundary
	label     string
	times     *atomic.Int64
	destroyed *atomic.Int64
	found     *sync.Map // their handles
}

// refuseKey makes the site's token refuse a key, as often as times says, until the key is destroyed.
func (b *testSite) refuseKey(label string) (times, destroyed *atomic.Int64) {
	times, destroyed = new(atomic.Int64), new(atomic.Int64)
	b.wrap = func(c pkcs11.Boundary) pkcs11.Boundary { return refusedKeys{c, label, times, destroyed, new(sync.Map)} }
	return times, destroyed
}

func (r refusedKeys) FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error) {
	found, more, err := r.Boundary.FindObjects(s, limit)
	for _, o := range found {
		a, err := r.Boundary.GetAttributeValue(s, o, []*p11.Attribute{p11.NewAttribute(p11.CKA_LABEL, nil)})
		if err == nil && string(a[0].Value) == r.label {
			r.found.Store(o, true)
		}
	}
	return found, more, err
}

func (r refusedKeys) Encrypt(s p11.SessionHandle, m *p11.Mechanism, o p11.ObjectHandle, in []byte) ([]byte, error) {
	if _, is := r.found.Load(o); is && r.times.Add(-1) >= 0 {
		return nil, p11.Error(p11.CKR_ACTION_PROHIBITED)
	}
	return r.Boundary.Encrypt(s, m, o, in)
}

func (r refusedKeys) DestroyObject(s p11.SessionHandle, o p11.ObjectHandle) error {
	if _, is := r.found.LoadAndDelete(o); is {
		r.times.Store(0)
		r.destroyed.Add(1)
	}
	return r.Boundary.DestroyObject(s, o)
}

// TestUnusableObject: a process that is killed within C_GenerateKey of SoftHSM leaves an object that looks right and
// cannot encrypt. The same step makes it again. It does not touch an object that cannot be used for another reason, or
// that the token has refused once.
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

	// The token answers with a fault of the device. That says nothing about the object.
	b.meter.Fail("Encrypt", 4, p11.Error(p11.CKR_DEVICE_ERROR))
	if _, err := p.Import(ctx, m, 2, 0, nil); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("with a token that does not answer: %v", err)
	}
	b.meter.Heal()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	refused, destroyed := b.refuseKey(before[0].Label)
	p = b.mustOpen(t)
	refused.Store(1)
	if _, err := p.Import(ctx, m, 2, 0, func(step string) error {
		if step == "generated 1 of 2" {
			return killed
		}
		return nil
	}); !errors.Is(err, killed) || destroyed.Load() != 0 || refused.Load() > 0 {
		t.Errorf("the object was refused once: %v, %d were destroyed", err, destroyed.Load())
	}
	refused.Store(1)
	if err := tryCreate(t, p, "k"); !claviger.Is(err, claviger.Invalid) || destroyed.Load() != 0 || refused.Load() > 0 {
		t.Errorf("the object was refused once, in another step: %v, %d were destroyed", err, destroyed.Load())
	}
	refused.Store(100)
	vs, err := p.Import(ctx, m, 2, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	after := objects(t, p)
	if len(vs) != 2 || len(after) != 2 || destroyed.Load() != 1 {
		t.Errorf("%d versions, %+v, %d objects were destroyed", len(vs), after, destroyed.Load())
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
	refused, destroyed := b.refuseKey("k@0")
	p = b.mustOpen(t)
	steps := map[string]func() error{
		"the same step": func() error { _, err := p.Import(ctx, m, 1, 0, nil); return err },
		"another step":  func() error { return tryCreate(t, p, "k") },
	}
	for name, step := range steps {
		b.meter.Heal()
		refused.Store(100)
		if err := step(); !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "refuses to use") ||
			!strings.Contains(err.Error(), "k@0") {
			t.Errorf("%s: %v", name, err)
		}
		if list := objects(t, p); len(list) != 2 || destroyed.Load() != 0 {
			t.Errorf("%s: %+v", name, list)
		}
	}
	refused.Store(0)
	if _, err := p.Import(ctx, m, 1, 0, nil); err != nil { // the token uses the object again
		t.Error(err)
	}
	keystream(t, p, "k@0")
}
