package hsm_test

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

func (f *failing) SoftDelete(ctx context.Context, key string) error {
	return f.do(func() error { return f.Store.SoftDelete(ctx, key) })
}

func (f *failing) Undelete(ctx context.Context, key, id string) error {
	return f.do(func() error { return f.Store.Undelete(ctx, key, id) })
}

func (f *failing) Discard(ctx context.Context, key string, ids ...string) (out metastore.Intent, err error) {
	err = f.do(func() error { out, err = f.Store.Discard(ctx, key, ids...); return err })
	return out, err
}

// undelete brings the deleted key k back. It may be called again.
func undelete(ctx context.Context, p *hsm.Provider) error {
	list, err := p.Deleted(ctx, "k")
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return p.Undelete(ctx, "k", "k@0")
	}
	return p.Undelete(ctx, "k", list[0].List[0])
}

func purge(ctx context.Context, p *hsm.Provider) error {
	list, err := p.Deleted(ctx, "k")
	if err != nil {
		return err
	}
	var versions []string
	for _, k := range list {
		versions = append(versions, k.List...)
	}
	return p.Purge(ctx, "k", versions...)
}

// purgeOldest purges the oldest version of k. It may be called again.
func purgeOldest(ctx context.Context, p *hsm.Provider) error {
	list, err := p.Versions(ctx, "k")
	if err != nil {
		return err
	}
	newest, _ := claviger.VersionNumber(list[len(list)-1].Name)
	return p.PurgeVersion(ctx, claviger.VersionName("k", strconv.Itoa(newest-1)))
}

// TestDeletedCrashes interrupts a soft deletion, an undeletion, a purge, and a purge of one version at each write to
// the metastore and at each kind of HSM call, opens the provider again and makes the step again. It ends as without
// the crash, and each object belongs to a key.
func TestDeletedCrashes(t *testing.T) {
	b := newSite(t)
	b.soft = "true"
	made := func(ctx context.Context, p *hsm.Provider) error {
		if _, err := p.Create(ctx, provider.Spec{Name: "k", Cipher: claviger.DefaultCipher,
			BitLength: 256}); err != nil {
			return err
		}
		_, err := p.Roll(ctx, "k", nil)
		return err
	}
	deleted := func(ctx context.Context, p *hsm.Provider) error {
		if err := made(ctx, p); err != nil {
			return err
		}
		return p.Delete(ctx, "k")
	}
	var store *failing
	b.around = func(s metastore.Store) metastore.Store { store.Store = s; return store }
	faults := b.crashes(&store, "DestroyObject", "Encrypt", "FindObjectsInit")
	for _, s := range []struct {
		name             string
		before, do       func(context.Context, *hsm.Provider) error
		again            claviger.Kind // error of a second call if the first had finished
		mark             hsm.Mark      // of all objects at the end
		objects, deleted int
	}{
		{"delete", made, func(ctx context.Context, p *hsm.Provider) error { return p.Delete(ctx, "k") },
			claviger.KeyNotFound, hsm.Deleted, 2, 1},
		{"undelete", deleted, func(ctx context.Context, p *hsm.Provider) error { return undelete(ctx, p) },
			claviger.KeyExists, hsm.InUse, 2, 0},
		{"purge", deleted, func(ctx context.Context, p *hsm.Provider) error { return purge(ctx, p) },
			claviger.KeyNotFound, "", 0, 0},
		{"purge a version", made, purgeOldest, claviger.VersionNotFound, hsm.InUse, 1, 0},
	} {
		for name, fault := range faults {
			t.Run(s.name+"/"+name, func(t *testing.T) {
				ctx := t.Context()
				store = &failing{}
				p := b.mustOpen(t)
				if err := s.before(ctx, p); err != nil {
					t.Fatal(err)
				}
				fault()
				first := s.do(ctx, p)
				b.meter.Heal()
				mustClose(t, p)
				store = &failing{}
				p = b.mustOpen(t)
				if err := s.do(ctx, p); err != nil && !claviger.Is(err, s.again) {
					t.Errorf("again: %v (first: %v)", err, first)
				}
				list := objects(t, p)
				for _, o := range list {
					if o.Mark != s.mark {
						t.Errorf("%s is %s (first: %v)", o.Label, o.Mark, first)
					}
				}
				keys, err := p.Deleted(ctx)
				if err != nil || len(keys) != s.deleted || len(list) != s.objects {
					t.Errorf("%d objects, deleted keys %+v, %v; want %d and %d (first: %v)", len(list), keys, err,
						s.objects, s.deleted, first)
				}
				if s.mark == hsm.InUse {
					if err := p.Delete(ctx, "k"); err != nil {
						t.Error(err)
					}
				}
				if err := purge(ctx, p); err != nil && !claviger.Is(err, claviger.KeyNotFound) {
					t.Error(err)
				}
				if list := objects(t, p); len(list) != 0 {
					t.Errorf("left: %+v", list)
				}
				mustClose(t, p)
			})
		}
	}
}

// TestPurgeFailed: a purge fails if the token refuses to destroy an object. The same call, made again, finishes it,
// also in the same process.
func TestPurgeFailed(t *testing.T) {
	b := newSite(t)
	b.soft = "true"
	b.create(t, "k")
	p := b.mustOpen(t)
	if err := p.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	b.meter.Fail("DestroyObject", 1, errKilled)
	if err := purge(t.Context(), p); err == nil {
		t.Error("a purge that destroyed nothing succeeded")
	}
	b.meter.Heal()
	if err := purge(t.Context(), p); err != nil {
		t.Errorf("again: %v", err)
	}
	if list := objects(t, p); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	mustClose(t, p)
}

// TestPruneLeavesDeleted: the objects of a key that can come back are not orphans.
func TestPruneLeavesDeleted(t *testing.T) {
	b := newSite(t)
	b.soft = "true"
	version := b.create(t, "k")
	p := b.mustOpen(t)
	if err := p.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if list := objects(t, p); len(list) != 1 || list[0].Mark != hsm.Deleted || list[0].Label != version {
		t.Errorf("%+v", list)
	}
	if list, err := p.Prunable(t.Context(), 0); err != nil || len(list.Orphans) != 0 {
		t.Errorf("prunable: %+v, %v", list, err)
	}
	if gone, err := p.Prune(t.Context(), objects(t, p)); err != nil || len(gone) != 0 {
		t.Errorf("pruned %+v, %v", gone, err)
	}
	if err := undelete(t.Context(), p); err != nil {
		t.Error(err)
	}
	if err := p.EncryptBlocks(t.Context(), version, make([]byte, 16)); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
}

// TestUndeleteLost: a key stays deleted if the token lacks one of its versions. A deleted key binds the metastore to
// its token like any other key.
func TestUndeleteLost(t *testing.T) {
	b := newSite(t)
	b.soft = "true"
	version := b.create(t, "k")
	id, label := b.object(t, version)
	p := b.mustOpen(t)
	if err := p.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	elsewhere := func() {
		b.withStore(t, func(s metastore.Store) {
			if err := s.SetSetting(t.Context(), "hsm.token.serial", "elsewhere"); err != nil {
				t.Error(err)
			}
		})
	}
	elsewhere()
	mustClose(t, b.mustOpen(t)) // the token has the deleted key, so it counts as a clone
	b.withToken(t, func(tok *pkcs11.Token) {
		if err := tok.Destroy(t.Context(), id, label); err != nil {
			t.Fatal(err)
		}
	})
	p = b.mustOpen(t)
	if err := undelete(t.Context(), p); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), version) {
		t.Errorf("Undelete of what the token lacks: %v", err)
	}
	if list, err := p.Deleted(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("deleted: %+v, %v", list, err)
	}
	if err := p.CheckKeys(t.Context()); err != nil {
		t.Errorf("a version that no client can request is reported: %v", err)
	}
	mustClose(t, p)
	elsewhere()
	if _, err := b.open(t.Context()); !claviger.Is(err, claviger.Invalid) ||
		!strings.Contains(err.Error(), "serial elsewhere") {
		t.Errorf("another token without the deleted key: %v", err)
	}
}

// TestDeletedSetting: the property for soft deletion must be true or false.
func TestDeletedSetting(t *testing.T) {
	b := newSite(t)
	b.soft = "maybe"
	if _, err := b.open(t.Context()); !claviger.Is(err, claviger.Invalid) ||
		!strings.Contains(err.Error(), hsm.PropertySoftDelete) {
		t.Errorf("%v", err)
	}
}
