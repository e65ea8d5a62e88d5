package hsm_test

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/hsm"
)

// keystream returns a block of zeros, encrypted with a version.
func keystream(t *testing.T, p *hsm.Provider, version string) []byte {
	t.Helper()
	block := make([]byte, 16)
	if err := p.EncryptBlocks(t.Context(), version, block); err != nil {
		t.Fatalf("%s: %v", version, err)
	}
	return block
}

// adoptAll adopts every candidate, as the command does.
func (b *testSite) adoptAll(t *testing.T, a hsm.Adoption) {
	t.Helper()
	b.access = hsm.Repair
	p := b.mustOpen(t)
	list, err := p.Candidates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if err := p.Adopt(t.Context(), c, a); err != nil {
			t.Error(err)
		}
	}
	if err := p.Rebind(t.Context()); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
	b.access = hsm.Serve
}

// TestAdoptAll: the whole store is lost, and its records are made again from the token. Old versions encrypt as before,
// the newest version is the current one, and the next numbers follow it.
func TestAdoptAll(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	create(t, p, "k")
	for range 11 { // enough versions that the order of texts and of numbers differs
		if _, err := p.Roll(t.Context(), "k", nil); err != nil {
			t.Fatal(err)
		}
	}
	create(t, p, "other")
	was := map[string][]byte{}
	for _, v := range []string{"k@0", "k@2", "k@11", "other@0"} {
		was[v] = keystream(t, p, v)
	}
	mustClose(t, p)
	b.generate(t, "old@00000000000000aa", "old@00000000000000bb")
	b.db += ".new"
	b.access = hsm.Repair
	p = b.mustOpen(t)
	list, err := p.Candidates(t.Context())
	if err != nil || len(list) != 3 || list[0].Unordered || !list[1].Unordered || list[2].Unordered {
		t.Errorf("candidates: %+v, %v", list, err)
	}
	mustClose(t, p)
	b.adoptAll(t, hsm.Adoption{By: "root", OneKey: true}) // the two versions of old need OneKey
	p = b.mustOpen(t)
	for v, want := range was {
		if got := keystream(t, p, v); !bytes.Equal(got, want) {
			t.Errorf("%s encrypts to %x, before to %x", v, got, want)
		}
	}
	for key, want := range map[string]string{"k": "k@11", "other": "other@0", "old": "old@00000000000000bb"} {
		if v, err := p.Current(t.Context(), key); err != nil || v.Name != want {
			t.Errorf("current is %s, %v; want %s", v.Name, err, want)
		}
	}
	m, err := p.Metadata(t.Context(), "k", "old")
	if err != nil || m[0].Versions != 12 || m[0].BitLength != 256 || m[0].Cipher != claviger.DefaultCipher ||
		m[1].Versions != 2 {
		t.Errorf("%+v, %v", m, err)
	}
	if v, err := p.Roll(t.Context(), "k", nil); err != nil || v.Name != "k@12" {
		t.Errorf("rolled to %s, %v", v.Name, err)
	}
	if s := p.Survey(); len(s.Unknown) != 0 {
		t.Errorf("unknown: %+v", s.Unknown)
	}
	mustClose(t, p)
	b.withStore(t, func(s metastore.Store) {
		if list, err := s.Records(t.Context(), "adoption"); err != nil || len(list) != 3 ||
			!strings.Contains(string(list[0].Data), `"state":"done"`) ||
			!strings.Contains(string(list[0].Data), `"by":"root"`) {
			t.Errorf("journal: %s, %v", list, err)
		}
	})
}

// TestAdoptACLName: an adopted key keeps the attributes that an operator gives.
func TestAdoptACLName(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	b.db += ".new"
	text := "as it was"
	b.adoptAll(t, hsm.Adoption{ACLName: "finance", Description: &text})
	p := b.mustOpen(t)
	m, err := p.Metadata(t.Context(), "k")
	if err != nil || m[0].ACLName() != "finance" || m[0].Description == nil || *m[0].Description != text {
		t.Errorf("%+v, %v", m[0], err)
	}
	mustClose(t, p)
}

// remadeKey makes a key k with the versions k@0 and k@1, deletes it, and makes another key k with k@2 and k@3. copied
// is the store's file from before k@3 was made; streams has the key streams of k@2 and k@3.
func remadeKey(t *testing.T) (b *testSite, copied []byte, streams map[string][]byte) {
	t.Helper()
	b = newSite(t)
	b.soft = "true"
	p := b.mustOpen(t)
	if _, err := p.Import(t.Context(), claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 256}, 2,
		0, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	create(t, p, "k")
	mustClose(t, p)
	b.closeStores(t)
	copied, err := os.ReadFile(b.db)
	if err != nil {
		t.Fatal(err)
	}
	p = b.mustOpen(t)
	if _, err := p.Roll(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	streams = map[string][]byte{"k@2": keystream(t, p, "k@2"), "k@3": keystream(t, p, "k@3")}
	mustClose(t, p)
	b.closeStores(t)
	return b, copied, streams
}

// TestAdoptBesideDeletedKey: an old copy of the store that has the key gets the versions that it lacks. If it has the
// key as a deleted key, adopting is refused until that key is brought back.
func TestAdoptBesideDeletedKey(t *testing.T) {
	b, copied, _ := remadeKey(t)
	b.putUnnoticed(t, copied)
	b.access = hsm.Repair
	p := b.mustOpen(t)
	if c := only(t, p); !c.Known || c.Keys != nil || len(c.Versions) != 1 {
		t.Errorf("%+v", c)
	}
	mustClose(t, p)
	b.closeStores(t)
	b.withStore(t, func(s metastore.Store) {
		if err := s.SoftDelete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
	})
	p = b.mustOpen(t)
	if err := p.Adopt(t.Context(), only(t, p), hsm.Adoption{OneKey: true}); !claviger.Is(err, claviger.Invalid) ||
		!strings.Contains(err.Error(), "belong to the deleted key that has k@2") {
		t.Errorf("adopted versions of a deleted key: %v", err)
	}
	mustClose(t, p)
}

// TestAdoptRemadeKey: a deleted key and a later key of the same name are never adopted as one key. They are listed
// separately, each is adopted alone, and versions of one are not added to the other, unless an operator says that all
// belong to one key.
func TestAdoptRemadeKey(t *testing.T) {
	b, _, streams := remadeKey(t)
	b.access = hsm.Repair
	b.db += ".new" // the whole store is lost
	p := b.mustOpen(t)
	c := only(t, p)
	if want := [][]string{{"k@0", "k@1"}, {"k@2", "k@3"}}; !reflect.DeepEqual(c.Keys, want) || c.Known {
		t.Fatalf("%+v, want %v", c, want)
	}
	wantNotMerged := func(c hsm.Candidate, says string) {
		t.Helper()
		err := p.Adopt(t.Context(), c, hsm.Adoption{})
		if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), says) ||
			!strings.Contains(err.Error(), "--one-key") {
			t.Errorf("%+v was adopted: %v", c, err)
		}
	}
	wantNotMerged(c, "k@0, k@1; k@2, k@3")
	newer, err := p.Restrict(t.Context(), c, func(o hsm.Object) bool { return o.Label >= "k@2" })
	if err != nil || newer.Keys != nil || len(newer.Versions) != 2 {
		t.Fatalf("%+v, %v", newer, err)
	}
	if err := p.Adopt(t.Context(), newer, hsm.Adoption{}); err != nil {
		t.Fatal(err)
	}
	for v, want := range streams {
		if got := keystream(t, p, v); !bytes.Equal(got, want) {
			t.Errorf("%s encrypts to %x, before to %x", v, got, want)
		}
	}
	// The other versions are not added to that key.
	older := only(t, p)
	if want := [][]string{{"k@0", "k@1"}}; !older.Known || !reflect.DeepEqual(older.Keys, want) {
		t.Errorf("%+v, want %v", older, want)
	}
	wantNotMerged(older, "k@0, k@1 are versions of the metastore's key k")
	if err := p.SetAside(t.Context(), older, hsm.Adoption{}); err != nil {
		t.Error(err)
	}
	if err := p.Adopt(t.Context(), older, hsm.Adoption{OneKey: true}); err != nil {
		t.Error(err)
	}
	if vs, err := p.Versions(t.Context(), "k"); err != nil || len(vs) != 4 || vs[3].Name != "k@3" {
		t.Errorf("%+v, %v", vs, err)
	}
	mustClose(t, p)
}

// only returns the candidate, and demands that there is just one.
func only(t *testing.T, p *hsm.Provider) hsm.Candidate {
	t.Helper()
	list, err := p.Candidates(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("candidates: %+v, %v", list, err)
	}
	return list[0]
}

// oldCopy makes a key, copies the store, makes a version and another key, and puts the copy back.
func oldCopy(t *testing.T) *testSite {
	t.Helper()
	b := newSite(t)
	p := b.mustOpen(t)
	create(t, p, "k")
	mustClose(t, p)
	b.closeStores(t)
	copied, err := os.ReadFile(b.db)
	if err != nil {
		t.Fatal(err)
	}
	p = b.mustOpen(t)
	if _, err := p.Roll(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	create(t, p, "later")
	mustClose(t, p)
	b.closeStores(t)
	b.putUnnoticed(t, copied)
	return b
}

// TestOldCopy: the store is an old copy. Keys that it does not know are named, and requests for them get Unavailable.
// No new version hides them until they are adopted.
func TestOldCopy(t *testing.T) {
	b := oldCopy(t)
	p := b.mustOpen(t)
	if err := p.CheckUnknown(t.Context()); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "2 keys") || !strings.Contains(err.Error(), "k@1, later@0") {
		t.Errorf("readiness says %v", err)
	}
	for _, v := range []string{"k@1", "later@0"} {
		if _, err := p.Version(t.Context(), v); !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), "claviger hsm adopt") {
			t.Errorf("%s: %v", v, err)
		}
		if err := p.EncryptBlocks(t.Context(), v, make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("%s: %v", v, err)
		}
	}
	for _, v := range []string{"k@2", "later@1", "never@0", "never@00000000000000aa", "never@opaque"} {
		if _, err := p.Version(t.Context(), v); !claviger.Is(err, claviger.VersionNotFound) {
			t.Errorf("%s: %v", v, err)
		}
	}
	refused := func(what string, err error, hidden string) {
		t.Helper()
		if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), hidden) ||
			!strings.Contains(err.Error(), "claviger hsm adopt") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := p.Roll(t.Context(), "k", nil)
	refused("roll", err, "k@1")
	_, err = p.Create(t.Context(), provider.Spec{Name: "later", Cipher: claviger.DefaultCipher, BitLength: 256})
	refused("create", err, "later@0")
	wantLost(t, p, "later", "later@0")
	if list, err := p.Metadata(t.Context(), "k", "later", "never"); err != nil || list[0] == nil || list[1] != nil ||
		list[2] != nil {
		t.Errorf("one lost key among others: %+v, %v", list, err)
	}
	if names, err := p.Keys(t.Context()); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
	wantNoKey(t, p, "never")
	create(t, p, "never")
	mustClose(t, p)

	b.adoptAll(t, hsm.Adoption{})
	p = b.mustOpen(t)
	if err := p.CheckUnknown(t.Context()); err != nil {
		t.Error(err)
	}
	keystream(t, p, "later@0")
	if v, err := p.Current(t.Context(), "k"); err != nil || v.Name != "k@1" {
		t.Errorf("%s, %v", v.Name, err)
	}
	if v, err := p.Roll(t.Context(), "k", nil); err != nil || v.Name != "k@2" {
		t.Errorf("%s, %v", v.Name, err)
	}
	mustClose(t, p)
}

// TestSetAside: a version that was set aside counts as missing, and can be adopted later.
func TestSetAside(t *testing.T) {
	b := oldCopy(t)
	b.access = hsm.Repair
	p := b.mustOpen(t)
	list, err := p.Candidates(t.Context())
	if err != nil || len(list) != 2 || list[1].Key != "later" || list[1].Known || !list[0].Known {
		t.Fatalf("%+v, %v", list, err)
	}
	for range 2 {
		if err := p.SetAside(t.Context(), list[1], hsm.Adoption{}); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, p)
	b.access = hsm.Serve
	p = b.mustOpen(t)
	wantMarks(t, p, map[string]hsm.Mark{"k@0": hsm.InUse, "k@1": hsm.Unknown, "later@0": hsm.Aside})
	if _, err := p.Version(t.Context(), "later@0"); !claviger.Is(err, claviger.VersionNotFound) {
		t.Errorf("set aside: %v", err)
	}
	wantNoKey(t, p, "later")
	if v := create(t, p, "later"); v != "later@1" {
		t.Errorf("made %s", v)
	}
	mustClose(t, p)
	b.adoptAll(t, hsm.Adoption{OneKey: true}) // later@0 and later@1 belong to two keys
	p = b.mustOpen(t)
	wantMarks(t, p, map[string]hsm.Mark{"k@0": hsm.InUse, "k@1": hsm.InUse, "later@0": hsm.InUse,
		"later@1": hsm.InUse})
	keystream(t, p, "later@0")
	if vs, err := p.Versions(t.Context(), "later"); err != nil || len(vs) != 2 || vs[1].Name != "later@1" {
		t.Errorf("%+v, %v", vs, err)
	}
	mustClose(t, p)
}

// TestLostWhileServing: another node made a version, and the store then lost it. The version is looked up on the token
// only if the store does not have it, and once a minute. It is never "not found" while the token holds it.
func TestLostWhileServing(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	create(t, p, "k")
	b.generate(t, "k@1", "fresh@0")
	for _, v := range []string{"k@1", "fresh@0"} {
		if _, err := p.Version(t.Context(), v); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("%s: %v", v, err)
		}
	}
	if _, err := p.Create(t.Context(), provider.Spec{Name: "fresh", Cipher: claviger.DefaultCipher,
		BitLength: 256}); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("hides fresh@0: %v", err)
	}
	calls := func(version string, want claviger.Kind) int {
		b.meter.Reset()
		for range 3 {
			if _, err := p.Version(t.Context(), version); err != nil && !claviger.Is(err, want) {
				t.Errorf("%s: %v", version, err)
			}
		}
		return b.meter.Count("FindObjectsInit")
	}
	for version, want := range map[string]int{"k@0": 0, "source@5": 1, "source@opaque": 0,
		"source@00000000000000cc": 1} {
		if n := calls(version, claviger.VersionNotFound); n != want {
			t.Errorf("%s: %d searches, want %d", version, n, want)
		}
	}
	// While the token does not answer, versions of keys in the store get Unavailable. Other names are left to the
	// sources.
	b.meter.Fail("FindObjectsInit", 100, p11.Error(p11.CKR_FUNCTION_CANCELED))
	for version, want := range map[string]claviger.Kind{"k@7": claviger.Unavailable,
		"away@5": claviger.VersionNotFound} {
		if _, err := p.Version(t.Context(), version); !claviger.Is(err, want) {
			t.Errorf("%s: %v", version, err)
		}
	}
	b.meter.Heal()
	mustClose(t, p)
}

// TestAdoptKilled: an adoption is killed at each call of the store. The next adoption finishes it.
func TestAdoptKilled(t *testing.T) {
	for at := 1; at < 4; at++ {
		b := oldCopy(t)
		b.access = hsm.Repair
		f := &putFails{at: at}
		b.around = func(s metastore.Store) metastore.Store { f.Store = s; return f }
		p := b.mustOpen(t)
		list, err := p.Candidates(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if err = p.Adopt(t.Context(), c, hsm.Adoption{}); err != nil {
				break
			}
		}
		if !errors.Is(err, errKilled) {
			t.Fatalf("killed at %d: %v", at, err)
		}
		mustClose(t, p)
		b.around = nil
		b.adoptAll(t, hsm.Adoption{})
		p = b.mustOpen(t)
		wantMarks(t, p, map[string]hsm.Mark{"k@0": hsm.InUse, "k@1": hsm.InUse, "later@0": hsm.InUse})
		if vs, err := p.Versions(t.Context(), "k"); err != nil || len(vs) != 2 {
			t.Errorf("killed at %d: %+v, %v", at, vs, err)
		}
		mustClose(t, p)
	}
}
