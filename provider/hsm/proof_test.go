package hsm_test

import (
	"bytes"
	"context"
	"testing"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/metastore"
)

// TestRenumberedObjects: the handles of all objects change while a provider serves, and the library reports no error.
// Each version goes on to encrypt as itself, and no version is called lost or wrong.
func TestRenumberedObjects(t *testing.T) {
	token := softhsmtest.New(t)
	m := faultmodule.New(t, token.Module)
	token.Module = m.Path
	b := newSiteAt(t, token)
	versions := []string{b.create(t, "a"), b.create(t, "b")}
	p := b.mustOpen(t)
	want := map[string][]byte{}
	for range 4 {
		for _, v := range versions {
			got := make([]byte, 64)
			if err := p.EncryptBlocks(t.Context(), v, got); err != nil {
				t.Errorf("%s: %v", v, err)
			}
			if want[v] == nil {
				want[v] = got
			}
			if !bytes.Equal(got, want[v]) {
				t.Errorf("%s encrypts with another key", v)
			}
		}
		m.Renumber()
	}
	if err := p.CheckKeys(t.Context()); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
}

// withoutCheck is a store that has lost the check value of one version.
type withoutCheck struct {
	metastore.Store
	version string
}

func (s withoutCheck) ByVersion(ctx context.Context, version string) (*claviger.Metadata, metastore.Version, error) {
	m, v, err := s.Store.ByVersion(ctx, version)
	if version == s.version {
		v.Check = nil
	}
	return m, v, err
}

// TestNoCheckValue: a version without a check value is not used, since nothing could prove what the token returns.
func TestNoCheckValue(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	b.create(t, "other")
	b.around = func(s metastore.Store) metastore.Store { return withoutCheck{s, version} }
	p := b.mustOpen(t)
	block := make([]byte, 16)
	if err := p.EncryptBlocks(t.Context(), version, block); !claviger.Is(err, claviger.Unavailable) ||
		!bytes.Equal(block, make([]byte, 16)) {
		t.Errorf("%v, %x", err, block)
	}
	mustClose(t, p)
}
