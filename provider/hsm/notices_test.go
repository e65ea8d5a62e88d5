package hsm_test

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider/hsm"
)

// openRepair opens a second provider on the same token and store, as claviger hsm adopt does while nodes serve.
func (b *testSite) openRepair(t *testing.T) (*hsm.Provider, map[string]hsm.Candidate) {
	t.Helper()
	was := b.access
	b.access = hsm.Repair
	p := b.mustOpen(t)
	b.access = was
	list, err := p.Candidates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]hsm.Candidate{}
	for _, c := range list {
		all[c.Key] = c
	}
	return p, all
}

// TestAdoptBesideANode: a node changes a key after an operator saw the candidate. The adoption is refused, and changes
// nothing.
func TestAdoptBesideANode(t *testing.T) {
	b := newSite(t)
	b.soft = "true"
	p := b.mustOpen(t)
	create(t, p, "deleted")
	create(t, p, "k")
	b.generate(t, "deleted@1", "k@1", "twice@0", "made@0", "aside@0", "free@0")
	m, was := b.openRepair(t)
	if len(was) != 6 {
		t.Fatalf("candidates: %+v", was)
	}
	other, _ := b.openRepair(t)
	if err := other.Adopt(t.Context(), was["twice"], hsm.Adoption{}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"made", "aside"} {
		if err := other.SetAside(t.Context(), was[key], hsm.Adoption{}); err != nil {
			t.Fatal(err)
		}
	}
	if v := create(t, p, "made"); v != "made@1" {
		t.Fatalf("made %s", v)
	}
	if err := p.Delete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	b.withToken(t, func(tok *pkcs11.Token) {
		for _, o := range was["free"].Versions {
			id, err := hex.DecodeString(o.ID)
			if err != nil {
				t.Fatal(err)
			}
			if err := tok.Destroy(t.Context(), id, o.Label); err != nil {
				t.Fatal(err)
			}
		}
	})
	for key, why := range map[string]string{"twice": "in use", "made": "was made after",
		"deleted": "was deleted after",
		"free":    "does not hold free@0 any more"} {
		if err := m.Adopt(t.Context(), was[key], hsm.Adoption{}); !claviger.Is(err, claviger.Invalid) ||
			!strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", key, err)
		}
		if err := m.SetAside(t.Context(), was[key], hsm.Adoption{}); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("setting %s aside: %v", key, err)
		}
	}
	wantLost(t, p, "deleted", "deleted@1") // the version is still lost
	wantNoKey(t, p, "free")
	if vs, err := p.Versions(t.Context(), "made"); err != nil || len(vs) != 1 {
		t.Errorf("made: %+v, %v", vs, err)
	}
	for _, key := range []string{"k", "aside"} {
		if err := m.Adopt(t.Context(), was[key], hsm.Adoption{OneKey: true}); err != nil { // the test made k@1
			t.Errorf("%s: %v", key, err)
		}
	}
	for key, version := range map[string]string{"k": "k@1", "twice": "twice@0", "aside": "aside@0"} {
		if v, err := p.Current(t.Context(), key); err != nil || v.Name != version {
			t.Errorf("%s at the node: %+v, %v", key, v, err)
		}
		keystream(t, p, version)
	}
	for _, p := range []*hsm.Provider{p, m, other} {
		mustClose(t, p)
	}
}

// TestHandleNotice: a notice makes a node forget what it remembers about names that the store does not have. A key that
// was adopted leaves the list of unknown keys within seconds.
func TestHandleNotice(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	p := b.mustOpen(t)
	b.generate(t, "fresh@0", "left@0")
	wantLost(t, p, "fresh", "fresh@0")
	wantLost(t, p, "left", "left@0")
	m, was := b.openRepair(t)
	if err := m.SetAside(t.Context(), was["left"], hsm.Adoption{}); err != nil {
		t.Fatal(err)
	}
	if err := m.Adopt(t.Context(), was["fresh"], hsm.Adoption{}); err != nil {
		t.Fatal(err)
	}
	mustClose(t, m)
	wantLost(t, p, "left", "left@0") // the node remembers it
	p.HandleNotice(metastore.Notice{Key: "left", Change: metastore.Invalidated})
	wantNoKey(t, p, "left")
	p.HandleNotice(metastore.Notice{Key: "fresh", Change: metastore.Created})
	if v, err := p.Current(t.Context(), "fresh"); err != nil || v.Name != "fresh@0" {
		t.Errorf("the adopted key: %+v, %v", v, err)
	}
	for begun := time.Now(); p.CheckUnknown(t.Context()) != nil; time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > 25*time.Second {
			t.Fatalf("after the adoption: %v", p.CheckUnknown(t.Context()))
		}
	}

	// A version that was missing appears on the token.
	if _, err := p.Version(t.Context(), "late@0"); !claviger.Is(err, claviger.VersionNotFound) {
		t.Errorf("a version that is still missing: %v", err)
	}
	wantNoKey(t, p, "late")
	b.generate(t, "late@0")
	p.HandleNotice(metastore.Notice{Change: metastore.Invalidated})
	wantLost(t, p, "late", "late@0")
	if _, err := p.Version(t.Context(), "late@0"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("on the token: %v", err)
	}
	mustClose(t, p)
}
