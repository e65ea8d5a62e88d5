package hsm_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/pkcs11"
	"claviger/provider"
)

// hiding is a library whose token does not show the objects with these labels for a while.
type hiding struct {
	pkcs11.Boundary
	mu     sync.Mutex
	labels []string
}

func (h *hiding) hide(labels ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.labels = labels
}

func (h *hiding) hidden(s p11.SessionHandle, o p11.ObjectHandle) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.labels) == 0 {
		return false
	}
	got, err := h.GetAttributeValue(s, o, []*p11.Attribute{p11.NewAttribute(p11.CKA_LABEL, nil)})
	return err == nil && len(got) == 1 && slices.Contains(h.labels, string(got[0].Value))
}

func (h *hiding) FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error) {
	list, more, err := h.Boundary.FindObjects(s, limit)
	return slices.DeleteFunc(list, func(o p11.ObjectHandle) bool { return h.hidden(s, o) }), more, err
}

func (h *hiding) Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, data []byte) ([]byte, error) {
	if h.hidden(s, key) {
		return nil, p11.Error(p11.CKR_KEY_HANDLE_INVALID)
	}
	return h.Boundary.Encrypt(s, m, key, data)
}

// TestSingleVersionsLost: single versions are lost on the token while no request uses them, also an older version. A
// running server finds that out. It reports them to users of their keys and to readiness, and serves the others.
// Versions that are brought back are served.
func TestSingleVersionsLost(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	lib := &hiding{}
	b.wrap = func(c pkcs11.Boundary) pkcs11.Boundary { lib.Boundary = c; return lib }
	p := b.mustOpen(t)
	for _, key := range []string{"rolled", "b", "c", "d"} {
		create(t, p, key)
	}
	if _, err := p.Roll(ctx, "rolled", nil); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"rolled@0", "b@0", "c@0"} {
		keystream(t, p, v)
	}
	var lostKeys []string
	p.OnLost(func(key string) { lostKeys = append(lostKeys, key) })
	if err := errors.Join(p.Watch(ctx), p.CheckKeys(ctx)); err != nil {
		t.Fatal(err)
	}
	lib.hide("b@0", "rolled@0")
	for range 2 {
		if err := errors.Join(p.Watch(ctx), p.CheckFit(ctx)); err != nil {
			t.Error(err)
		}
	}
	if slices.Sort(lostKeys); strings.Join(lostKeys, " ") != "b rolled" {
		t.Errorf("OnLost got %q", lostKeys)
	}
	if err := p.CheckKeys(ctx); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "b@0, rolled@0;") {
		t.Errorf("readiness: %v", err)
	}
	if h := p.LastHoldings(); strings.Join(h.Lost, " ") != "b@0 rolled@0" || h.LostCurrent != 1 || h.Versions != 5 {
		t.Errorf("%+v", h)
	}
	for _, v := range []string{"b@0", "rolled@0"} {
		if err := p.EncryptBlocks(ctx, v, make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) ||
			!errors.Is(err, provider.ErrUnusable) {
			t.Errorf("%s: %v", v, err)
		}
	}
	keystream(t, p, "rolled@1")
	keystream(t, p, "c@0")
	create(t, p, "e")
	lib.hide()
	if err := errors.Join(p.Watch(ctx), p.CheckKeys(ctx)); err != nil {
		t.Errorf("once they are back: %v", err)
	}
	keystream(t, p, "b@0")

	// A version that was given up is no longer reported, whether it is used or not.
	b.destroyObjects(t, "b@0")
	if err := p.Watch(ctx); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
	b.rebind(t)
	p = b.mustOpen(t)
	if err := p.EncryptBlocks(ctx, "b@0", make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a key that was given up: %v", err)
	}
	if err := errors.Join(p.Watch(ctx), p.CheckKeys(ctx)); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
}
