package hsm_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// bound returns the data objects on the token that bind it to stores.
func bound(t *testing.T, b *testSite) (list []pkcs11.Data) {
	t.Helper()
	b.withToken(t, func(tok *pkcs11.Token) {
		var err error
		if list, err = tok.ListData(t.Context(), "claviger"); err != nil {
			t.Fatal(err)
		}
	})
	return list
}

// setting returns a setting of the store, and replaces it unless value is "".
func (b *testSite) setting(t *testing.T, name, value string) (was string) {
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

// TestBinding: a token and a store are bound at their first use, by an id that both keep. A second store is refused at
// that token, and the error names both stores.
func TestBinding(t *testing.T) {
	b := newSite(t)
	b.access = hsm.Inspect
	mustClose(t, b.mustOpen(t))
	if list := bound(t, b); len(list) != 0 {
		t.Errorf("an access that only reads bound the token: %+v", list)
	}
	b.access = hsm.Serve
	for range 2 {
		mustClose(t, b.mustOpen(t))
	}
	id := b.setting(t, "store.id", "")
	list := bound(t, b)
	if len(list) != 1 || len(id) != 32 || list[0].Label != "metastore "+id ||
		!strings.Contains(string(list[0].Value), b.db) {
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
		for _, want := range []string{first, b.db, id, b.token.Label,
			"another token in the keystore file, and restart the server",
			"--rebind"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not in %v", want, err)
			}
		}
	}
	// If an operator decides so, the second store gets the token, and the first is refused.
	b.access = hsm.Repair
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
		t.Error("the first store is accepted")
	}
}

// TestBindingOfOldStores: stores and tokens from before there were bindings are bound by the keys that they hold, also
// two stores on one token. Nothing on a shared token is an orphan. A clone without the object is bound again.
func TestBindingOfOldStores(t *testing.T) {
	b := newSite(t)
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
	removeID := func() { // makes the store like one from before stores had ids
		b.withStore(t, func(s metastore.Store) {
			err := errors.Join(s.SetSetting(t.Context(), "store.id", ""),
				s.SetSetting(t.Context(), "store.incarnations", ""))
			if err != nil {
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
	// The second store is created while the token looks empty to it.
	first := b.db
	b.db += ".second"
	b.access = hsm.Repair
	p := b.mustOpen(t)
	create(t, p, "b")
	create(t, p, "gone")
	mustClose(t, p)
	b.forget(t, "gone")
	b.access = hsm.Serve
	b.db = first
	removeID()
	mustClose(t, b.mustOpen(t))
	b.db += ".second"
	removeID()
	p = b.mustOpen(t)
	wantMarks(t, p, map[string]hsm.Mark{"a@0": hsm.Unknown, "b@0": hsm.InUse, "gone@0": hsm.Unknown})
	mustClose(t, p)
	if list := bound(t, b); len(list) != 2 {
		t.Errorf("two old stores: %+v", list)
	}
	b.db = first
	mustClose(t, b.mustOpen(t))
}

// TestNoDataObjects: a token that keeps no data objects is served, and nothing on it is an orphan.
func TestNoDataObjects(t *testing.T) {
	b := newSite(t)
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

// TestLostObject: the object that binds the token is gone. A copy of the store was made before the last key, and so is
// not bound to the token, neither at a start nor later. A server with this copy serves the keys that the copy has. The
// store that has all keys is bound again. An operator can decide that the copy is bound instead.
func TestLostObject(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	b.create(t, "k")
	other := b.beside(t, b.copyStore(t))
	serving := other.mustOpen(t)
	b.closeStores(t)
	// The token is bound to the copy until an operator decides that the first store stays in use.
	acceptCopy(t, b)
	b.create(t, "z")
	b.unbind(t)
	wantStopped(t, serving, "k", "is gone", "z@0", "claviger metastore accept", "claviger hsm adopt")
	if err := serving.Watch(ctx); !hsm.IsStale(err) {
		t.Errorf("the periodic check: %v", err)
	}
	keystream(t, serving, "k@0")
	mustClose(t, serving)
	refused := func() {
		t.Helper()
		for _, access := range []hsm.Access{hsm.Read, hsm.Journal, hsm.Destroy, hsm.Make} {
			other.access = access
			p, err := other.open(ctx)
			if err == nil {
				mustClose(t, p)
			}
			if !hsm.IsStale(err) || !strings.Contains(err.Error(), "z@0") {
				t.Errorf("access %d: %v", access, err)
			}
		}
		other.access = hsm.Serve
		p := other.mustOpen(t)
		keystream(t, p, "k@0")
		wantStopped(t, p, "k", "is gone", "z@0", "claviger metastore accept", "claviger hsm adopt")
		mustClose(t, p)
		if list := bound(t, other); len(list) != 0 {
			t.Errorf("bound: %s", list)
		}
	}
	refused()
	mustClose(t, b.mustOpen(t))
	if list := bound(t, b); len(list) != 1 {
		t.Errorf("the store that knows all keys: %s", list)
	}
	wantStale(t, other, b)

	b.unbind(t)
	refused()
	other.access = hsm.Repair
	p := other.mustOpen(t)
	if err := p.CheckNotStale(ctx); !hsm.IsStale(err) {
		t.Errorf("before: %v", err)
	}
	if from, written, err := p.AcceptCopy(ctx); err != nil || from == "" || written {
		t.Errorf("%q, %v", from, err)
	}
	if err := p.CheckNotStale(ctx); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	mustClose(t, p)
	other.access = hsm.Serve
	p = other.mustOpen(t)
	create(t, p, "new")
	mustClose(t, p)
	wantStale(t, b, other)
}

// TestStartWithoutTheObject: the token has lost the object that binds it, and holds a key that nobody has adopted. A
// server starts at the place where its store was last used. It serves the keys that are there, refuses and names a lost
// key, names the unknown key, and makes and destroys nothing. A copy of the store at another place, which was never
// used there, does not start.
func TestStartWithoutTheObject(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	for _, key := range []string{"k", "lost", "unadopted"} {
		b.create(t, key)
	}
	b.withStore(t, func(s metastore.Store) { // deletes the records only, so that the object stays and is not noted
		_, err := s.Remove(ctx, "unadopted")
		if err = errors.Join(err, s.Drop(ctx, "unadopted")); err != nil {
			t.Fatal(err)
		}
	})
	b.unbind(t)
	b.destroyObjects(t, "lost@0")
	other := b.beside(t, b.copyStore(t))
	if p, err := other.open(ctx); !hsm.IsStale(err) {
		if err == nil {
			mustClose(t, p)
		}
		t.Errorf("at another place: %v", err)
	}
	for range 2 {
		p := b.mustOpen(t)
		keystream(t, p, "k@0")
		if err := p.EncryptBlocks(ctx, "lost@0", make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("the lost key: %v", err)
		}
		if err := p.CheckKeys(ctx); err == nil || !strings.Contains(err.Error(), "lost@0") {
			t.Errorf("readiness: %v", err)
		}
		if err := p.CheckUnknown(ctx); err == nil || !strings.Contains(err.Error(), "unadopted@0") {
			t.Errorf("unknown keys: %v", err)
		}
		wantStopped(t, p, "k", "is gone", "unadopted@0", "claviger metastore accept")
		if err := p.Delete(ctx, "k"); !hsm.IsStale(err) {
			t.Errorf("delete: %v", err)
		}
		wantMarks(t, p, map[string]hsm.Mark{"k@0": hsm.InUse, "unadopted@0": hsm.Unknown})
		mustClose(t, p)
	}
	if list := bound(t, b); len(list) != 0 {
		t.Errorf("bound: %s", list)
	}
	// At the other place, the operator decides one thing after the other.
	b = other
	b.access = hsm.Repair
	p := b.mustOpen(t)
	if _, _, err := p.AcceptCopy(ctx); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.access = hsm.Serve
	p = b.mustOpen(t)
	keystream(t, p, "k@0")
	wantStopped(t, p, "k", "lost@0", "claviger hsm adopt --rebind")
	mustClose(t, p)
	b.rebind(t)
	p = b.mustOpen(t)
	create(t, p, "new")
	wantMarks(t, p, map[string]hsm.Mark{"k@0": hsm.InUse, "new@0": hsm.InUse, "unadopted@0": hsm.Unknown})
}

// TestRestartOnAFullDisk: the disk under SoftHSM is full at a start. The token stays bound as it was, and is served.
// Keys are made once there is room again.
func TestRestartOnAFullDisk(t *testing.T) {
	token, fill, free := softhsmtest.Small(t)
	b := newSiteAt(t, token)
	b.create(t, "k")
	before := bound(t, b)
	fill()
	p := b.mustOpen(t)
	keystream(t, p, "k@0")
	if _, err := p.Create(t.Context(), provider.Spec{Name: "new", Cipher: claviger.DefaultCipher,
		BitLength: 256}); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("%v", err)
	}
	mustClose(t, p)
	if now := bound(t, b); len(now) != 1 || !bytes.Equal(now[0].Value, before[0].Value) {
		t.Errorf("%s, before %s", now, before)
	}
	p = b.mustOpen(t)
	free()
	if err := p.SurveyNow(t.Context()); err != nil { // the server's own check comes 30 seconds later
		t.Error(err)
	}
	create(t, p, "new")
	mustClose(t, p)
	if now := bound(t, b); len(now) != 1 || bytes.Equal(now[0].Value, before[0].Value) {
		t.Errorf("%s, before %s", now, before)
	}
}
