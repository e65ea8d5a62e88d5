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

// testOneReading checks that a version and its key's metadata are read at the same moment.
func testOneReading(t *testing.T, s Suite) {
	t.Run("Of", func(t *testing.T) { testOf(t, s.open(t)) })
	t.Run("DeletedAndCreatedAgain", func(t *testing.T) { testDeletedAndCreatedAgain(t, s.open(t)) })
	t.Run("Pinned", func(t *testing.T) { testPinned(t, s.open(t)) })
}

// skipRemote skips the test for a remote KMS, which has no request that returns a version with its key's metadata.
func skipRemote(t *testing.T, p provider.Provider) {
	t.Helper()
	if _, remote := p.(provider.EDEKService); remote {
		t.Skip("a remote KMS does not return a version with its key's metadata")
	}
}

// testOf checks that each version is returned with its key's metadata.
func testOf(t *testing.T, p provider.Provider) {
	skipRemote(t, p)
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
	for method, v := range map[string]claviger.KeyVersion{"Current": cur, "Version": byName,
		"Versions[0]": versions(t, p, sp.Name)[0]} {
		of := v.Of
		if of == nil {
			t.Errorf("%s returns a version without its key's metadata", method)
			continue
		}
		if of.Name != want.Name || of.Cipher != want.Cipher || of.BitLength != want.BitLength ||
			!of.Created.Equal(want.Created) || of.Versions != want.Versions ||
			!sameAttributes(of.Attributes, want.Attributes) || of.ACLName() != "guard" ||
			quoted(of.Description) != quoted(want.Description) {
			t.Errorf("%s returns a version with %+v, the metadata is %+v", method, *of, *want)
		}
	}
}

// testPinned checks that EncryptBlocksOf does not use another key that got the name of the version later.
func testPinned(t *testing.T, p provider.Provider) {
	pinned, ok := p.(provider.Pinned)
	if !ok {
		t.Skip("the provider never uses the name of a version again")
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
	wantKind(t, "EncryptBlocksOf a version of the earlier key of that name",
		pinned.EncryptBlocksOf(t.Context(), old, make([]byte, 16)), claviger.VersionNotFound)
}

// reading has the data of a key that one call returned.
type reading struct{ aclName, version, material string }

func readingOf(v claviger.KeyVersion, aclName string) reading {
	return reading{aclName, v.Name, string(v.Material)}
}

// testDeletedAndCreatedAgain deletes a key repeatedly, and creates it again with another ACL name. No reader may get
// a version of one key with the metadata of another.
func testDeletedAndCreatedAgain(t *testing.T, p provider.Provider) {
	skipRemote(t, p)
	name := keyName("again")
	var mu sync.Mutex
	made, seen := map[reading]bool{}, map[reading]bool{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			readUntil(t, p, name, stop, func(v claviger.KeyVersion) {
				mu.Lock()
				defer mu.Unlock()
				seen[readingOf(v, v.Of.ACLName())] = true
			})
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
		made[readingOf(v, aclName)] = true
		if err := p.Delete(t.Context(), name); err != nil {
			t.Errorf("Delete: %v", err)
		}
	}
	close(stop)
	wg.Wait()
	for r := range seen {
		if !made[r] {
			t.Errorf("a reader got version %q with the ACL name %q; no key had both", r.version, r.aclName)
		}
	}
	if soft, ok := p.(provider.SoftDeleter); ok {
		_ = purgeAll(context.Background(), soft, name)
	}
}

// readUntil reads the versions of the key until stop is closed, and calls seen with each version.
func readUntil(t *testing.T, p provider.Provider, name string, stop <-chan struct{}, seen func(claviger.KeyVersion)) {
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
		for _, v := range vs {
			seen(v)
		}
	}
}

// testConditional checks that RollIf and DeleteIf change a key only if their callback allows the change.
func testConditional(t *testing.T, s Suite) {
	p := s.open(t)
	c := p.(provider.Conditional)
	sp := spec(keyName("conditional"), 128)
	sp.Attributes = map[string]string{claviger.ACLNameAttribute: "guard"}
	create(t, p, sp)
	no := claviger.Errorf("test", claviger.KeyDenied, sp.Name, "no")
	calls := 0
	refuse := func(m *claviger.Metadata) error {
		calls++
		if m == nil || m.Name != sp.Name || m.ACLName() != "guard" || m.Versions != 1 {
			t.Errorf("called with the metadata %+v", m)
		}
		return no
	}
	if _, err := c.RollIf(t.Context(), sp.Name, nil, refuse); !errors.Is(err, no) {
		t.Errorf("RollIf: %v, want the error of the callback", err)
	}
	if err := c.DeleteIf(t.Context(), sp.Name, refuse); !errors.Is(err, no) {
		t.Errorf("DeleteIf: %v, want the error of the callback", err)
	}
	if m := metadata(t, p, sp.Name); calls != 2 || m == nil || m.Versions != 1 || len(versions(t, p, sp.Name)) != 1 {
		t.Errorf("%d calls; after them the key is %+v", calls, m)
	}
	v, err := c.RollIf(t.Context(), sp.Name, nil, provider.AllowAll)
	if err != nil || len(versions(t, p, sp.Name)) != 2 {
		t.Errorf("RollIf: %v, %v", v, err)
	}
	if err := c.DeleteIf(t.Context(), sp.Name, provider.AllowAll); err != nil || metadata(t, p, sp.Name) != nil {
		t.Errorf("DeleteIf: %v", err)
	}
	never := func(*claviger.Metadata) error { t.Error("called for a missing key"); return nil }
	_, err = c.RollIf(t.Context(), sp.Name, nil, never)
	wantKind(t, "RollIf without a key", err, claviger.KeyNotFound)
	wantKind(t, "DeleteIf without a key", c.DeleteIf(t.Context(), sp.Name, never), claviger.KeyNotFound)
}
