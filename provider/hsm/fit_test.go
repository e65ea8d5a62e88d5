package hsm_test

import (
	"os"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// unbind destroys the object that binds the token, and nothing else.
func (b *testSite) unbind(t *testing.T) {
	t.Helper()
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

// destroyObjects destroys the objects of versions on the token.
func (b *testSite) destroyObjects(t *testing.T, versions ...string) {
	t.Helper()
	for _, v := range versions {
		id, label := b.object(t, v)
		b.withToken(t, func(tok *pkcs11.Token) {
			if err := tok.Destroy(t.Context(), id, label); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// wantStopped demands that creations and rolls are refused, with an answer for the client, and with all of texts in the
// error for the log.
func wantStopped(t *testing.T, p *hsm.Provider, key string, texts ...string) {
	t.Helper()
	_, create := p.Create(t.Context(), provider.Spec{Name: "young", Cipher: claviger.DefaultCipher, BitLength: 256})
	_, roll := p.Roll(t.Context(), key, nil)
	for what, err := range map[string]error{"create": create, "roll": roll, "readiness": p.CheckFit(t.Context())} {
		if !claviger.Is(err, claviger.Unavailable) || !hsm.IsMisfit(err) {
			t.Errorf("%s: %v", what, err)
			continue
		}
		cure := "claviger hsm adopt --rebind"
		if hsm.IsStale(err) {
			cure = "claviger metastore accept"
		}
		answer := claviger.AnswerOf(err)
		if !strings.Contains(answer, "no key is made or rolled") || !strings.Contains(answer, cure) ||
			hsm.IsStale(err) && strings.Contains(answer, "adopt") || strings.Contains(answer, key+"@") {
			t.Errorf("%s is answered with %q", what, answer)
		}
		for _, text := range texts {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q is not in %v", what, text, err)
			}
		}
	}
}

// TestWipedToken: a token is initialised again under a running server. The server makes no key on it and is not ready.
// The token is not bound again until an operator gives the keys up.
func TestWipedToken(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	p := b.mustOpen(t)
	for _, key := range []string{"a", "b"} {
		create(t, p, key)
	}
	keystream(t, p, "a@0")
	if err := p.CheckFit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.token.Wipe(); err != nil {
		t.Fatal(err)
	}
	wantStopped(t, p, "a", "lacks these key versions", "a@0, b@0", "claviger hsm adopt --rebind")
	if next, err := b.open(ctx); err == nil {
		mustClose(t, next)
		t.Error("the provider started although no key is there")
	}
	for name, check := range map[string]error{"generate": p.CheckCurrent(ctx), "decrypt": p.CheckAny(ctx),
		"keys": p.CheckKeys(ctx)} {
		if err := check; !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantMarks(t, p, map[string]hsm.Mark{})
	mustClose(t, p)

	// A key that was made after the loss proves nothing, whether the serial number is the same or another.
	b.access = hsm.Repair
	p = b.mustOpen(t)
	if err := p.Misfit(); err == nil || !strings.Contains(err.Error(), "a@0") {
		t.Errorf("the misfit is not reported: %v", err)
	}
	create(t, p, "young")
	mustClose(t, p)
	for _, access := range []hsm.Access{hsm.Read, hsm.Destroy, hsm.Make} {
		b.access = access
		if p, err := b.open(ctx); err == nil {
			mustClose(t, p)
			t.Errorf("access %d: bound again because of a key that was made after the loss", access)
		} else if !hsm.IsMisfit(err) || !strings.Contains(err.Error(), "a@0, b@0") ||
			!strings.Contains(err.Error(), "claviger hsm adopt --rebind") ||
			strings.Contains(err.Error(), "young@0,") {
			t.Errorf("access %d: %v", access, err)
		}
	}
	b.access = hsm.Serve
	p = b.mustOpen(t)
	keystream(t, p, "young@0")
	if _, err := p.Roll(ctx, "young", nil); !hsm.IsMisfit(err) || !strings.Contains(err.Error(), "a@0, b@0") {
		t.Errorf("rolled: %v", err)
	}
	mustClose(t, p)
	if list := bound(t, b); len(list) != 0 {
		t.Errorf("the token was bound: %+v", list)
	}

	// The operator gives the lost keys up.
	b.access = hsm.Repair
	p = b.mustOpen(t)
	if h, err := p.Holdings(ctx); err != nil || strings.Join(h.Lost, " ") != "a@0 b@0" || h.Versions != 3 {
		t.Errorf("%+v, %v", h, err)
	}
	if err := p.Rebind(ctx); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.access = hsm.Serve
	p = b.mustOpen(t)
	create(t, p, "c")
	if _, err := p.Roll(ctx, "young", nil); err != nil {
		t.Error(err)
	}
	if err := p.EncryptBlocks(ctx, "a@0", make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a key that was given up: %v", err)
	}
	mustClose(t, p)
}

// TestOnlyObjectMissing: only the object that binds the token is missing, as on a member of an HA group to which the
// vendor's tools copied the keys. A running server and a start each make the object again. If one key is missing too
// they do not; both serve the keys that are there.
func TestOnlyObjectMissing(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	b.soft = "true"
	p := b.mustOpen(t)
	for _, key := range []string{"a", "b", "c", "deleted"} {
		create(t, p, key)
	}
	if err := p.Delete(ctx, "deleted"); err != nil {
		t.Fatal(err)
	}
	b.unbind(t)
	create(t, p, "d")
	if list := bound(t, b); len(list) != 1 {
		t.Fatalf("a running server: %+v", list)
	}
	b.unbind(t)
	b.destroyObjects(t, "b@0")
	wantStopped(t, p, "a", "no object that binds it", "lacks these key versions of the metastore: b@0;")
	keystream(t, p, "a@0")
	if err := p.CheckCurrent(ctx); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
	p = b.mustOpen(t)
	keystream(t, p, "a@0")
	wantStopped(t, p, "a", "no object that binds it", "lacks these key versions of the metastore: b@0;")
	mustClose(t, p)
	// Once the key is there again, as after restoring a backup, keys are made again.
	b.withStore(t, func(s metastore.Store) {
		if _, err := s.Remove(ctx, "b"); err != nil {
			t.Error(err)
		}
	})
	mustClose(t, b.mustOpen(t))
	if list := bound(t, b); len(list) != 1 {
		t.Errorf("a clone: %+v", list)
	}
	b.unbind(t)
	b.withStore(t, func(s metastore.Store) { // a deleted key that cannot come back counts as a loss too
		list, err := s.DeletedKeys(ctx)
		if err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		b.withToken(t, func(tok *pkcs11.Token) {
			keys, err := tok.FindLabel(ctx, "deleted@0")
			if err != nil || len(keys) != 1 {
				t.Fatalf("%+v, %v", keys, err)
			}
			if err := tok.Destroy(ctx, keys[0].ID, "deleted@0"); err != nil {
				t.Error(err)
			}
		})
	})
	p = b.mustOpen(t)
	wantStopped(t, p, "a", "deleted@0")
	mustClose(t, p)
	if list := bound(t, b); len(list) != 0 {
		t.Errorf("bound again although keys are lost: %+v", list)
	}
}

// TestMostKeysLost: the loss of most keys stops creations, under a running server and from the start, if the token has
// the object or keeps no objects. Keys that are there are served.
func TestMostKeysLost(t *testing.T) {
	for name, none := range map[string]bool{"bound": false, "no data objects": true} {
		t.Run(name, func(t *testing.T) {
			b := newSite(t)
			if none {
				b.meter.Fail("CreateObject", 100, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED))
			}
			p := b.mustOpen(t)
			for _, key := range []string{"a", "b", "c"} {
				create(t, p, key)
			}
			b.destroyObjects(t, "a@0")
			create(t, p, "d") // the loss of a few keys does not stop creations
			b.destroyObjects(t, "b@0", "c@0")
			for range 2 {
				wantStopped(t, p, "d", "lacks 3 of 4 key versions", "a@0, b@0, c@0")
				keystream(t, p, "d@0")
				if err := p.CheckAny(t.Context()); err != nil {
					t.Error(err)
				}
				mustClose(t, p)
				p = b.mustOpen(t)
			}
			mustClose(t, p)
		})
	}
}

// TestStoreReplaced: a store is replaced under a running server. The server makes no key.
func TestStoreReplaced(t *testing.T) {
	t.Run("another id", func(t *testing.T) {
		b := newSite(t)
		b.soft = "true"
		p := b.mustOpen(t)
		create(t, p, "a")
		create(t, p, "deleted")
		if err := p.Delete(t.Context(), "deleted"); err != nil {
			t.Fatal(err)
		}
		was := b.setting(t, "store.id", strings.Repeat("0", 32))
		wantStopped(t, p, "a", "was replaced while this server used it", was)
		if err := p.Purge(t.Context(), "deleted", "deleted@0"); !claviger.Is(err, claviger.Unavailable) ||
			!hsm.IsMisfit(err) {
			t.Errorf("an object that may belong to another store is destroyed: %v", err)
		}
		wantMarks(t, p, map[string]hsm.Mark{"a@0": hsm.InUse, "deleted@0": hsm.Deleted})
		keystream(t, p, "a@0")
		mustClose(t, p)
	})
	t.Run("another file", func(t *testing.T) {
		b := newSite(t)
		p := b.mustOpen(t)
		create(t, p, "a")
		if err := os.Rename(b.db, b.db+".moved"); err != nil {
			t.Fatal(err)
		}
		for range 2 { // first it is missing, then another store is there
			if _, err := p.Create(t.Context(), provider.Spec{Name: "young", Cipher: claviger.DefaultCipher,
				BitLength: 256}); !claviger.Is(err, claviger.Unavailable) ||
				!strings.Contains(err.Error(), "is no longer the file that this process has open") {
				t.Errorf("a key was made in a file that is no longer used: %v", err)
			}
			keystream(t, p, "a@0")
			if err := os.WriteFile(b.db, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		wantMarks(t, p, map[string]hsm.Mark{"a@0": hsm.InUse})
		mustClose(t, p)
	})
}
