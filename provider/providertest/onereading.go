package providertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"claviger"
	"claviger/provider"
)

// testOneReading: a version comes with the metadata of its key, of one reading.
func testOneReading(t *testing.T, s Suite) {
	t.Run("Of", func(t *testing.T) {
		p := s.open(t)
		if _, elsewhere := p.(provider.EDEKService); elsewhere {
			t.Skip("a KMS elsewhere cannot give both at once")
		}
		sp := spec(keyName("of"), 256)
		sp.Description, sp.Attributes = ptr("d"), map[string]string{claviger.ACLNameAttribute: "guard", "a": "b"}
		create(t, p, sp)
		second := roll(t, p, sp.Name)
		want := metadata(t, p, sp.Name)
		cur, err := p.Current(t.Context(), sp.Name)
		if err != nil {
			t.Fatal(err)
		}
		byName, err := p.Version(t.Context(), second.Name)
		if err != nil {
			t.Fatal(err)
		}
		for what, v := range map[string]claviger.KeyVersion{"Current": cur, "Version": byName,
			"Versions[0]": versions(t, p, sp.Name)[0]} {
			of := v.Of
			if of == nil {
				t.Errorf("%s comes without its key's metadata", what)
				continue
			}
			if of.Name != want.Name || of.Cipher != want.Cipher || of.BitLength != want.BitLength ||
				!of.Created.Equal(want.Created) || of.Versions != want.Versions ||
				!sameAttributes(of.Attributes, want.Attributes) || of.ACLName() != "guard" ||
				text(of.Description) != text(want.Description) {
				t.Errorf("%s comes with %+v, the metadata is %+v", what, *of, *want)
			}
		}
	})
	t.Run("DeletedAndMadeAnew", func(t *testing.T) { deletedAndMadeAnew(t, s) })
	t.Run("Pinned", func(t *testing.T) {
		p := s.open(t)
		pinned, ok := p.(provider.Pinned)
		if !ok {
			t.Skip("version names are given once")
		}
		sp := spec(keyName("pinned"), 128)
		create(t, p, sp)
		old, err := p.Current(t.Context(), sp.Name)
		if err != nil {
			t.Fatal(err)
		}
		if err := pinned.EncryptBlocksOf(t.Context(), old, make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
		if err := p.Delete(t.Context(), sp.Name); err != nil {
			t.Fatal(err)
		}
		wantKind(t, "EncryptBlocksOf a deleted version", pinned.EncryptBlocksOf(t.Context(), old, make([]byte, 16)),
			claviger.VersionNotFound)
		create(t, p, sp)
		wantKind(t, "EncryptBlocksOf a version of the key before",
			pinned.EncryptBlocksOf(t.Context(), old, make([]byte, 16)), claviger.VersionNotFound)
	})
}

// deletedAndMadeAnew: while a key is deleted and made anew under other rules, no
// reading mixes one with the other.
func deletedAndMadeAnew(t *testing.T, s Suite) {
	p := s.open(t)
	if _, elsewhere := p.(provider.EDEKService); elsewhere {
		t.Skip("a KMS elsewhere cannot give both at once")
	}
	type reading struct{ aclName, version, material string }
	what := func(v claviger.KeyVersion, aclName string) reading {
		return reading{aclName, v.Name, string(v.Material)}
	}
	name := keyName("anew")
	var mu sync.Mutex
	made, seen := map[reading]bool{}, map[reading]bool{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				vs, err := p.Versions(t.Context(), name)
				if cur, cerr := p.Current(t.Context(), name); cerr == nil {
					vs = append(vs, cur)
				}
				if err != nil && !claviger.Is(err, claviger.VersionNotFound) {
					t.Errorf("Versions: %v", err)
					return
				}
				mu.Lock()
				for _, v := range vs {
					seen[what(v, v.Of.ACLName())] = true
				}
				mu.Unlock()
			}
		})
	}
	for i := range 6 {
		sp := spec(name, 128)
		aclName := fmt.Sprint("guard", i)
		sp.Attributes = map[string]string{claviger.ACLNameAttribute: aclName}
		v, err := p.Create(t.Context(), sp)
		if err != nil {
			t.Errorf("Create: %v", err)
			break
		}
		made[what(v, aclName)] = true
		if err := p.Delete(t.Context(), name); err != nil {
			t.Errorf("Delete: %v", err)
		}
	}
	close(stop)
	wg.Wait()
	for r := range seen {
		if !made[r] {
			t.Errorf("a reading gave version %q with the rules of %q, which no key had", r.version, r.aclName)
		}
	}
	if soft, ok := p.(provider.SoftDeleter); ok {
		_ = purgeAll(context.Background(), soft, name)
	}
}

// testConditional: a change is allowed in the very step that makes it.
func testConditional(t *testing.T, s Suite) {
	p := s.open(t)
	c := p.(provider.Conditional)
	sp := spec(keyName("conditional"), 128)
	sp.Attributes = map[string]string{claviger.ACLNameAttribute: "guard"}
	create(t, p, sp)
	no := claviger.Errorf("test", claviger.KeyDenied, sp.Name, "no")
	asked := 0
	refuse := func(m *claviger.Metadata) error {
		asked++
		if m == nil || m.Name != sp.Name || m.ACLName() != "guard" || m.Versions != 1 {
			t.Errorf("asked with the metadata %+v", m)
		}
		return no
	}
	if _, err := c.RollIf(t.Context(), sp.Name, nil, refuse); !errors.Is(err, no) {
		t.Errorf("RollIf: %v, want what may said", err)
	}
	if err := c.DeleteIf(t.Context(), sp.Name, refuse); !errors.Is(err, no) {
		t.Errorf("DeleteIf: %v, want what may said", err)
	}
	if m := metadata(t, p, sp.Name); asked != 2 || m == nil || m.Versions != 1 || len(versions(t, p, sp.Name)) != 1 {
		t.Errorf("asked %d times; after that the key is %+v", asked, m)
	}
	if v, err := c.RollIf(t.Context(), sp.Name, nil, provider.Anyway); err != nil || len(versions(t, p, sp.Name)) != 2 {
		t.Errorf("RollIf: %v, %v", v, err)
	}
	if err := c.DeleteIf(t.Context(), sp.Name, provider.Anyway); err != nil || metadata(t, p, sp.Name) != nil {
		t.Errorf("DeleteIf: %v", err)
	}
	never := func(*claviger.Metadata) error { t.Error("asked about no key"); return nil }
	_, err := c.RollIf(t.Context(), sp.Name, nil, never)
	wantKind(t, "RollIf without a key", err, claviger.KeyNotFound)
	wantKind(t, "DeleteIf without a key", c.DeleteIf(t.Context(), sp.Name, never), claviger.KeyNotFound)
}
