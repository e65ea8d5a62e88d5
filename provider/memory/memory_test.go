package memory_test

import (
	"strings"
	"testing"

	"claviger"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/provider/providertest"
)

func suite(cfg memory.Config) providertest.Suite {
	return providertest.Suite{
		New:           func(*testing.T) provider.Provider { return memory.New(cfg) },
		Objects:       func(_ *testing.T, p provider.Provider) int { return p.(*memory.Provider).Objects() },
		TakesMaterial: !cfg.Sealed,
		ShowsMaterial: !cfg.Sealed,
		SoftDeletes:   cfg.SoftDelete,
	}
}

// TestConformance: the provider passes the suite of all providers in each mode.
func TestConformance(t *testing.T) {
	t.Run("Open", func(t *testing.T) { providertest.Run(t, suite(memory.Config{})) })
	t.Run("SoftDelete", func(t *testing.T) { providertest.Run(t, suite(memory.Config{SoftDelete: true})) })
	t.Run("Sealed", func(t *testing.T) { providertest.Run(t, suite(memory.Config{Sealed: true})) })
}

// TestSequentialIDs: versions are numbered, and a new key of the same name begins at 0 with other material.
func TestSequentialIDs(t *testing.T) {
	p := memory.New(memory.Config{SequentialIDs: true})
	defer func() { _ = p.Close() }()
	spec := provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128}
	v, err := p.Create(t.Context(), spec)
	if err != nil || v.Name != "k@0" {
		t.Errorf("first version %q, %v", v.Name, err)
	}
	if v, err = p.Roll(t.Context(), "k", nil); err != nil || v.Name != "k@1" {
		t.Errorf("second version %q, %v", v.Name, err)
	}
	// A new key of the same name has versions of the same names, but with other material.
	if err := p.EncryptBlocksOf(t.Context(), v, make([]byte, 16)); err != nil {
		t.Error(err)
	}
	err = p.Delete(t.Context(), "k")
	if err == nil {
		_, err = p.Create(t.Context(), spec)
	}
	if err == nil {
		_, err = p.Roll(t.Context(), "k", nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := p.EncryptBlocksOf(t.Context(), v, make([]byte, 16)); !claviger.Is(err, claviger.VersionNotFound) {
		t.Errorf("a version of the deleted key: %v", err)
	}
}

// TestScheme: a provider is opened by its URI.
func TestScheme(t *testing.T) {
	p, err := provider.NewRegistry(memory.Scheme()).Open(t.Context(), "memory:demo", provider.Env{})
	if err != nil || p.URI() != "memory:demo" {
		t.Fatalf("%v, %v", p, err)
	}
	_ = p.Close()
}

// TestCreateDuringImport checks that Create refuses the name of a key whose import is not finished.
func TestCreateDuringImport(t *testing.T) {
	p := memory.New(memory.Config{})
	defer func() { _ = p.Close() }()
	m := claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128}
	_, err := p.Import(t.Context(), m, 2, 0, func(string) error {
		_, err := p.Create(t.Context(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128})
		return err
	})
	if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "must be finished first") {
		t.Errorf("Create of a key that is being imported: %v", err)
	}

	// An import with another length does not use the versions of the unfinished import.
	m.BitLength = 256
	vs, err := p.Import(t.Context(), m, 1, 0, nil)
	if err != nil || len(vs) != 1 || vs[0].BitLength != 256 || len(vs[0].Material) != 32 || p.Objects() != 1 {
		t.Errorf("%d versions, %v, %d objects", len(vs), err, p.Objects())
	}
}
