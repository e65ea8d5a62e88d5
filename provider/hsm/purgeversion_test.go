package hsm_test

import (
	"context"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
)

func (f *failing) RemoveVersion(ctx context.Context, key, id string) (out metastore.Intent, err error) {
	err = f.do(func() error { out, err = f.Store.RemoveVersion(ctx, key, id); return err })
	return out, err
}

// TestPurgeVersion: an old version is destroyed, and nothing else. The newest version and unknown ones are refused. The
// number is not given again, also after the provider was opened again.
func TestPurgeVersion(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	ctx := t.Context()
	for _, name := range []string{"k", "other"} {
		spec := provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 256}
		if _, err := p.Create(ctx, spec); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := p.Roll(ctx, "k", nil); err != nil {
			t.Fatal(err)
		}
	}
	encrypts := func(version string) error { return p.EncryptBlocks(ctx, version, make([]byte, claviger.IVSize)) }
	if err := encrypts("k@1"); err != nil {
		t.Fatal(err)
	}
	if at, err := p.Replaced(ctx, "k@1"); err != nil || time.Since(at).Abs() > time.Minute {
		t.Errorf("k@1 was replaced at %v, %v", at, err)
	}
	for version, kind := range map[string]claviger.Kind{"k@2": claviger.Invalid, "other@0": claviger.Invalid,
		"k@7": claviger.VersionNotFound, "none@0": claviger.KeyNotFound, "bad": claviger.KeyNotFound} {
		if err := p.PurgeVersion(ctx, version); !claviger.Is(err, kind) {
			t.Errorf("%s: %v, want kind %q", version, err, kind)
		}
		if _, err := p.Replaced(ctx, version); !claviger.Is(err, kind) {
			t.Errorf("Replaced of %s: %v, want kind %q", version, err, kind)
		}
	}
	if list := objects(t, p); len(list) != 4 {
		t.Fatalf("%d objects after refusals", len(list))
	}
	if err := p.PurgeVersion(ctx, "k@1"); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if err := encrypts("k@1"); !claviger.Is(err, claviger.VersionNotFound) {
			t.Errorf("the purged version: %v", err)
		}
		for _, v := range []string{"k@0", "k@2", "other@0"} {
			if err := encrypts(v); err != nil {
				t.Errorf("%s: %v", v, err)
			}
		}
		if ms, err := p.Metadata(ctx, "k"); err != nil || ms[0].Versions != 3 {
			t.Errorf("%+v, %v", ms, err)
		}
		if list := objects(t, p); len(list) != 3 {
			t.Errorf("%d objects", len(list))
		}
	}
	check()
	if err := p.PurgeVersion(ctx, "k@1"); !claviger.Is(err, claviger.VersionNotFound) {
		t.Errorf("again: %v", err)
	}
	mustClose(t, p)
	p = b.mustOpen(t)
	check()
	if v, err := p.Roll(ctx, "k", nil); err != nil || v.Name != "k@3" {
		t.Errorf("rolled to %s, %v", v.Name, err)
	}
	mustClose(t, p)
}
