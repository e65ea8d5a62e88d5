package hsm_test

import (
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider/hsm"
)

func bound(t *testing.T, b *backing) (list []pkcs11.Data) {
	t.Helper()
	b.withToken(t, func(tok *pkcs11.Token) {
		var err error
		if list, err = tok.ListData(t.Context(), "claviger"); err != nil {
			t.Fatal(err)
		}
	})
	return list
}

func (b *backing) setting(t *testing.T, name, value string) (was string) {
	t.Helper()
	b.withStore(t, func(s metastore.Store) {
		var err error
		if was, _, err = s.Setting(t.Context(), name); err == nil && value != "" {
			err = s.SetSetting(t.Context(), name, value)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	return was
}

// TestBinding: a token and a store are bound at their first use, by an id that both
// keep; a second store is refused there, and both are named.
func TestBinding(t *testing.T) {
	b := newBacking(t)
	b.access = hsm.Look
	mustClose(t, b.mustOpen(t))
	if list := bound(t, b); len(list) != 0 {
		t.Errorf("a look bound the token: %+v", list)
	}
	b.access = hsm.Serve
	for range 2 {
		mustClose(t, b.mustOpen(t))
	}
	id := b.setting(t, "store.id", "")
	list := bound(t, b)
	if len(list) != 1 || len(id) != 32 || list[0].Label != "metastore "+id || !strings.Contains(string(list[0].Value), b.db) {
		t.Fatalf("store %q, token %+v", id, list)
	}
	first := b.db
	b.db += ".second"
	for _, access := range []hsm.Access{hsm.Serve, hsm.Read, hsm.Destroy} {
		b.access = access
		p, err := b.open(t.Context())
		if err == nil {
			mustClose(t, p)
		}
		if !claviger.Is(err, claviger.Invalid) {
			t.Fatalf("access %d: a second store was taken: %v", access, err)
		}
		for _, want := range []string{first, b.db, id, b.token.Label, "another token in the keystore file", "--rebind"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not in %v", want, err)
			}
		}
	}
	// The second may have it, if an operator says so; then the first is refused.
	b.access = hsm.Mend
	p := b.mustOpen(t)
	if err := p.Rebind(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	if list := bound(t, b); len(list) != 1 || list[0].Label == "metastore "+id {
		t.Errorf("%+v", list)
	}
	b.access = hsm.Serve
	mustClose(t, b.mustOpen(t))
	b.db = first
	if p, err := b.open(t.Context()); err == nil {
		mustClose(t, p)
		t.Error("the first store is taken all the same")
	}
}

// TestBindingOfOldStores: stores and tokens from before the binding are bound by what
// they hold, two on one token as well; nothing on a shared token is an orphan. A clone
// without the object is bound anew.
func TestBindingOfOldStores(t *testing.T) {
	b := newBacking(t)
	unbind := func() {
		b.withToken(t, func(tok *pkcs11.Token) {
			list, err := tok.ListData(t.Context(), "claviger")
			for _, d := range list {
				if err == nil {
					err = tok.DestroyData(t.Context(), d.Application, d.Label)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	older := func() { // as a store was before it had an id
		b.withStore(t, func(s metastore.Store) {
			if err := s.SetSetting(t.Context(), "store.id", ""); err != nil {
				t.Fatal(err)
			}
		})
	}
	b.create(t, "a")
	unbind()
	mustClose(t, b.mustOpen(t))
	if list := bound(t, b); len(list) != 1 {
		t.Fatalf("a clone: %+v", list)
	}
	unbind()
	// The second store comes into being while the token looks empty to it.
	first := b.db
	b.db += ".second"
	b.access = hsm.Mend
	p := b.mustOpen(t)
	create(t, p, "b")
	create(t, p, "gone")
	mustClose(t, p)
	b.forget(t, "gone")
	b.access = hsm.Serve
	b.db = first
	mustClose(t, b.mustOpen(t))
	b.db += ".second"
	older()
	p = b.mustOpen(t)
	wantMarks(t, p, map[string]hsm.Mark{"a@0": hsm.Unknown, "b@0": hsm.InUse, "gone@0": hsm.Unknown})
	mustClose(t, p)
	if list := bound(t, b); len(list) != 2 {
		t.Errorf("two old stores: %+v", list)
	}
	b.db = first
	mustClose(t, b.mustOpen(t))
}

// TestNoDataObjects: a token that keeps no data objects is served, and nothing on it
// is an orphan.
func TestNoDataObjects(t *testing.T) {
	b := newBacking(t)
	b.meter.Fail("CreateObject", 100, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED))
	p := b.mustOpen(t)
	create(t, p, "k")
	create(t, p, "gone")
	mustClose(t, p)
	b.forget(t, "gone")
	p = b.mustOpen(t)
	wantMarks(t, p, map[string]hsm.Mark{"k@0": hsm.InUse, "gone@0": hsm.Unknown})
	mustClose(t, p)
	if list := bound(t, b); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}
