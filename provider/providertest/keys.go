package providertest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
)

func testKeys(t *testing.T, s Suite) {
	for _, c := range []struct {
		name string
		f    func(*testing.T, Suite)
	}{
		{"Create", testCreate}, {"Description", testDescription}, {"Attributes", testAttributes},
		{"CreateRefuses", testCreateRefuses}, {"Material", testMaterial}, {"Roll", testRoll},
		{"Missing", testMissing}, {"Delete", testDelete}, {"Many", testMany}, {"UnusualNames", testUnusualNames},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(t, s) })
	}
}

func testCreate(t *testing.T, s Suite) {
	p := s.open(t)
	if p.URI() == "" {
		t.Error("URI is empty")
	}
	for _, bits := range []int{128, 192, 256} {
		name := keyName(fmt.Sprint("create", bits))
		if m := metadata(t, p, name); m != nil {
			t.Fatalf("key %q exists already", name)
		}
		before := time.Now()
		v := create(t, p, spec(name, bits))
		after := time.Now()
		s.wantVersion(t, v, name, bits)

		m := metadata(t, p, name)
		if m == nil {
			t.Fatalf("key %q does not exist", name)
		}
		if m.Name != name || m.Cipher != claviger.DefaultCipher || m.BitLength != bits || m.Versions != 1 {
			t.Errorf("metadata %+v", m)
		}
		if !sameAttributes(m.Attributes, nil) {
			t.Errorf("attributes %v, want none, and not nil", m.Attributes)
		}
		// Created is cut to milliseconds, so it may be up to one millisecond before the call.
		if m.Created.Before(before.Add(-time.Millisecond-s.Skew)) || m.Created.After(after.Add(s.Skew)) {
			t.Errorf("created %v, want between %v and %v", m.Created, before, after)
		}
		if !m.Created.Equal(m.Created.Truncate(time.Millisecond)) {
			t.Errorf("created %v is finer than milliseconds", m.Created)
		}
		cur, err := p.Current(t.Context(), name)
		if err != nil || !sameVersion(cur, v) {
			t.Errorf("Current: %q, %v; want what Create returned, %q", cur.Name, err, v.Name)
		}
		got, err := p.Version(t.Context(), v.Name)
		if err != nil || !sameVersion(got, v) {
			t.Errorf("Version(%q): %q, %v", v.Name, got.Name, err)
		}
		if list := versions(t, p, name); len(list) != 1 || !sameVersion(list[0], v) {
			t.Errorf("Versions: %q", names(list))
		}
		keys, err := p.Keys(t.Context())
		if err != nil || len(withPrefix(keys, name)) != 1 {
			t.Errorf("Keys lists %q %d times, %v", name, len(withPrefix(keys, name)), err)
		}
	}
}

func testDescription(t *testing.T, s Suite) {
	p := s.open(t)
	for i, want := range []*string{nil, ptr(""), ptr("a zone's key"), ptr("ümläut \"quo'te\" \\ \n 鍵 <&>")} {
		sp := spec(keyName(fmt.Sprint("description", i)), 128)
		sp.Description = want
		create(t, p, sp)
		if m := metadata(t, p, sp.Name); m == nil || quoted(m.Description) != quoted(want) {
			t.Errorf("description is %s, want %s", quoted(m.Description), quoted(want))
		}
	}
}

func testAttributes(t *testing.T, s Suite) {
	p := s.open(t)
	for i, want := range []map[string]string{
		nil, {}, {"a": "b"}, {"a": "", "B c": "d=e,f", "ü": "\"鍵\"\n"},
		{claviger.ACLNameAttribute: keyName("acl"), "x": "y"},
	} {
		sp := spec(keyName(fmt.Sprint("attributes", i)), 256)
		sp.Attributes = want
		create(t, p, sp)
		m := metadata(t, p, sp.Name)
		if m == nil || !sameAttributes(m.Attributes, want) {
			t.Errorf("attributes of %+v, want %v", m, want)
			continue
		}
		// The caller owns the returned metadata and may change it.
		m.Attributes["mine"] = "changed"
		if again := metadata(t, p, sp.Name); !sameAttributes(again.Attributes, want) {
			t.Errorf("a caller's change is visible to another call: %v", again.Attributes)
		}
	}
}

func testCreateRefuses(t *testing.T, s Suite) {
	p := s.open(t)
	name := keyName("refuse")
	for _, bits := range []int{-128, -1, 1, 64, 100, 129, 512, 1 << 30} {
		_, err := p.Create(t.Context(), spec(name, bits))
		wantKind(t, fmt.Sprintf("Create with %d bits", bits), err, claviger.InvalidKeySize)
	}
	for _, cipher := range []string{"FOO/CTR/NoPadding", "nonsense"} {
		sp := spec(name, 128)
		sp.Cipher = cipher
		_, err := p.Create(t.Context(), sp)
		wantKind(t, "Create with cipher "+cipher, err, claviger.UnknownCipher)
	}
	_, err := p.Create(t.Context(), spec("", 128))
	wantKind(t, "Create without a name", err, claviger.Invalid)
	for _, n := range s.Refused {
		_, err := p.Create(t.Context(), spec(n, 128))
		wantKind(t, fmt.Sprintf("Create of %q", n), err, claviger.Invalid)
	}
	if m := metadata(t, p, name); m != nil {
		t.Errorf("a refused key exists: %+v", m)
	}

	v := create(t, p, spec(name, 192))
	before := metadata(t, p, name)
	other := spec(name, 256)
	other.Description = ptr("another")
	_, err = p.Create(t.Context(), other)
	wantKind(t, "Create of an existing key", err, claviger.KeyExists)
	if m := metadata(t, p, name); m == nil || m.BitLength != 192 || m.Description != nil || m.Versions != 1 ||
		!m.Created.Equal(before.Created) {
		t.Errorf("a refused Create changed the key: %+v, before %+v", m, before)
	}
	if cur, err := p.Current(t.Context(), name); err != nil || !sameVersion(cur, v) {
		t.Errorf("a refused Create changed the version: %q, %v", cur.Name, err)
	}
}

func testMaterial(t *testing.T, s Suite) {
	p := s.open(t)
	if !s.TakesMaterial {
		name := keyName("given")
		sp := spec(name, 128)
		sp.Material = bytesOf(16)
		_, err := p.Create(t.Context(), sp)
		wantKind(t, "Create with material", err, claviger.Unsupported)
		if m := metadata(t, p, name); m != nil {
			t.Errorf("the refused key exists: %+v", m)
		}
		create(t, p, spec(name, 128))
		_, err = p.Roll(t.Context(), name, bytesOf(16))
		wantKind(t, "Roll with material", err, claviger.Unsupported)
		if n := len(versions(t, p, name)); n != 1 {
			t.Errorf("%d versions after a refused Roll", n)
		}
		return
	}
	for _, bits := range []int{128, 192, 256} {
		name := keyName(fmt.Sprint("given", bits))
		for _, n := range []int{0, 1, bits/8 - 1, bits/8 + 1, 64} {
			sp := spec(name, bits)
			sp.Material = bytesOf(n)
			_, err := p.Create(t.Context(), sp)
			wantKind(t, fmt.Sprintf("Create of %d bits with %d bytes", bits, n), err, claviger.MaterialLength)
		}
		if m := metadata(t, p, name); m != nil {
			t.Errorf("a refused key exists: %+v", m)
		}
		sp := spec(name, bits)
		sp.Material = bytesOf(bits / 8)
		material1 := slices.Clone(sp.Material)
		first := create(t, p, sp)
		second := bytesOf(bits / 8)
		material2 := slices.Clone(second)
		v2, err := p.Roll(t.Context(), name, second)
		if err != nil {
			t.Fatalf("Roll with material: %v", err)
		}
		for _, n := range []int{0, 1, bits/8 - 1, bits/8 + 1} {
			_, err := p.Roll(t.Context(), name, bytesOf(n))
			wantKind(t, fmt.Sprintf("Roll of %d bits with %d bytes", bits, n), err, claviger.MaterialLength)
		}
		// The caller owns the given material, and wipes it after the call.
		sp.Material.Wipe()
		second.Wipe()
		list := versions(t, p, name)
		if len(list) != 2 || list[0].Name != first.Name || list[1].Name != v2.Name {
			t.Fatalf("versions %q", names(list))
		}
		if s.ShowsMaterial && (!list[0].Material.Equal(material1) || !list[1].Material.Equal(material2)) {
			t.Error("the material differs from the given material")
		}
	}
	name := keyName("nokey")
	_, err := p.Roll(t.Context(), name, bytesOf(16))
	wantKind(t, "Roll of a missing key with material", err, claviger.KeyNotFound)
}

func testRoll(t *testing.T, s Suite) {
	p := s.open(t)
	name := keyName("roll")
	sp := spec(name, 256)
	sp.Description, sp.Attributes = ptr("kept"), map[string]string{"kept": "too"}
	want := []claviger.KeyVersion{create(t, p, sp)}
	before := metadata(t, p, name)
	for i := range 12 {
		v := roll(t, p, name)
		s.wantVersion(t, v, name, 256)
		want = append(want, v)
		if cur, err := p.Current(t.Context(), name); err != nil || !sameVersion(cur, v) {
			t.Fatalf("after roll %d the current version is %q, %v; want %q", i+1, cur.Name, err, v.Name)
		}
	}
	list := versions(t, p, name)
	if !slices.Equal(names(list), names(want)) {
		t.Errorf("versions %q, want %q", names(list), names(want))
	}
	seen, materials := map[string]bool{}, map[string]bool{}
	for i, v := range list {
		if !sameVersion(v, want[i]) {
			t.Errorf("version %d is not what Roll returned", i)
		}
		if got, err := p.Version(t.Context(), v.Name); err != nil || !sameVersion(got, v) {
			t.Errorf("Version(%q): %q, %v", v.Name, got.Name, err)
		}
		seen[v.Name], materials[string(v.Material)] = true, true
	}
	if len(seen) != 13 || s.ShowsMaterial && len(materials) != 13 {
		t.Errorf("%d different names and %d different materials of 13", len(seen), len(materials))
	}
	m := metadata(t, p, name)
	if m.Versions != 13 || quoted(m.Description) != `"kept"` || !sameAttributes(m.Attributes, sp.Attributes) ||
		!m.Created.Equal(before.Created) {
		t.Errorf("metadata %+v, before %+v", m, before)
	}
}

func testMissing(t *testing.T, s Suite) {
	p := s.open(t)
	name := keyName("missing")
	existing := keyName("existing")
	create(t, p, spec(existing, 128))

	if list, err := p.Versions(t.Context(), name); err != nil || len(list) != 0 {
		t.Errorf("Versions of a missing key: %q, %v", names(list), err)
	}
	_, err := p.Current(t.Context(), name)
	wantKind(t, "Current of a missing key", err, claviger.KeyNotFound)
	_, err = p.Roll(t.Context(), name, nil)
	wantKind(t, "Roll of a missing key", err, claviger.KeyNotFound)
	wantKind(t, "Delete of a missing key", p.Delete(t.Context(), name), claviger.KeyNotFound)
	for _, v := range append(missingVersions(existing), missingVersions(name)...) {
		if got, err := p.Version(t.Context(), v); !claviger.Is(err, claviger.VersionNotFound) {
			t.Errorf("Version(%.80q): %q, %v; want kind VersionNotFound", v, got.Name, err)
		}
	}
	if list, err := p.Metadata(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("Metadata without names: %v, %v", list, err)
	}
	list, err := p.Metadata(t.Context(), name, existing, "", name, existing)
	if err != nil || len(list) != 5 {
		t.Fatalf("Metadata: %d entries, %v", len(list), err)
	}
	for i, want := range []bool{false, true, false, false, true} {
		if (list[i] != nil) != want || want && list[i].Name != existing {
			t.Errorf("entry %d is %+v", i, list[i])
		}
	}
}

func testDelete(t *testing.T, s Suite) {
	p := s.open(t)
	objects := 0
	if s.Objects != nil {
		objects = s.Objects(t, p)
	}
	name, other := keyName("delete"), keyName("delete-other")
	old := create(t, p, spec(name, 128))
	rolled := roll(t, p, name)
	kept := create(t, p, spec(other, 128))
	if err := p.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	wantNoKey(t, p, name, old.Name, rolled.Name)
	if s.SoftDeletes {
		if err := purgeAll(t.Context(), softDeleter(t, p), name); err != nil {
			t.Fatalf("Purge: %v", err)
		}
		wantNoKey(t, p, name, old.Name, rolled.Name)
	}
	wantKind(t, "second Delete", p.Delete(t.Context(), name), claviger.KeyNotFound)
	if s.Objects != nil {
		if n := s.Objects(t, p); n != objects+1 {
			t.Errorf("%d objects, want %d", n, objects+1)
		}
	}
	if keys, err := p.Keys(t.Context()); err != nil || !slices.Contains(keys, other) {
		t.Errorf("Keys lists the other key: %v, %v", slices.Contains(keys, other), err)
	}
	if cur, err := p.Current(t.Context(), other); err != nil || !sameVersion(cur, kept) {
		t.Errorf("the other key is %q, %v", cur.Name, err)
	}
	testNameFree(t, s, p, old)
}

// wantNoKey demands that no Reader method returns the key or one of these versions.
func wantNoKey(t *testing.T, p provider.Provider, name string, versionNames ...string) {
	t.Helper()
	if m := metadata(t, p, name); m != nil {
		t.Errorf("metadata of the deleted key: %+v", m)
	}
	if list := versions(t, p, name); len(list) != 0 {
		t.Errorf("versions of the deleted key: %q", names(list))
	}
	_, err := p.Current(t.Context(), name)
	wantKind(t, "Current of the deleted key", err, claviger.KeyNotFound)
	for _, v := range versionNames {
		_, err := p.Version(t.Context(), v)
		wantKind(t, "Version of the deleted key", err, claviger.VersionNotFound)
	}
	if keys, err := p.Keys(t.Context()); err != nil || slices.Contains(keys, name) {
		t.Errorf("Keys lists the deleted key: %v, %v", slices.Contains(keys, name), err)
	}
}

// testNameFree makes a new key with the name of the deleted key of version old, and deletes that too.
func testNameFree(t *testing.T, s Suite, p provider.Provider, old claviger.KeyVersion) {
	t.Helper()
	name := old.Key
	v := create(t, p, spec(name, 256))
	s.wantVersion(t, v, name, 256)
	if list := versions(t, p, name); len(list) != 1 || !sameVersion(list[0], v) {
		t.Errorf("versions of the new key: %q", names(list))
	}
	if m := metadata(t, p, name); m == nil || m.Versions != countedVersions(v) || m.BitLength != 256 {
		t.Errorf("metadata of the new key: %+v", m)
	}
	if s.ShowsMaterial && v.Material.Equal(old.Material) {
		t.Error("the new key has the old one's material")
	}
	if err := p.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if m := metadata(t, p, name); m != nil {
		t.Errorf("the key exists after the second Delete: %+v", m)
	}
}

func testMany(t *testing.T, s Suite) {
	p := s.open(t)
	prefix := keyName("many")
	var want []string
	for i := range s.Many {
		name := fmt.Sprintf("%s-%04d", prefix, i)
		sp := spec(name, []int{128, 192, 256}[i%3])
		sp.Description = ptr(name)
		create(t, p, sp)
		want = append(want, name)
	}
	keys, err := p.Keys(t.Context())
	if err != nil || !slices.Equal(withPrefix(keys, prefix), want) {
		t.Errorf("Keys lists %d of %d, %v", len(withPrefix(keys, prefix)), len(want), err)
	}
	// Metadata keeps the order of the names, and the place of a missing key.
	requested := slices.Clone(want)
	slices.Reverse(requested)
	requested = append(requested, prefix+"-missing")
	list, err := p.Metadata(t.Context(), requested...)
	if err != nil || len(list) != len(requested) {
		t.Fatalf("Metadata: %d of %d entries, %v", len(list), len(requested), err)
	}
	for i, m := range list[:len(want)] {
		if m == nil || m.Name != requested[i] || quoted(m.Description) != quoted(&requested[i]) || m.Versions != 1 {
			t.Fatalf("entry %d is %+v, want %q", i, m, requested[i])
		}
	}
	if list[len(want)] != nil {
		t.Errorf("a missing key has metadata: %+v", list[len(want)])
	}
}

// atBothEnds returns names with the unusual characters at the beginning and at the end: one, or two if one is too long.
func atBothEnds(unusual, unique string) []string {
	if both := unusual + unique + unusual; len(both) <= 200 {
		return []string{both}
	}
	return []string{unusual + unique, unique + unusual}
}

func testUnusualNames(t *testing.T, s Suite) {
	p := s.open(t)
	unique := keyName("") // the backing may be shared
	for _, unusual := range s.Names {
		for _, name := range atBothEnds(unusual, unique) {
			v, err := p.Create(t.Context(), spec(name, 128))
			if err != nil {
				t.Errorf("Create(%q): %v", name, err)
				continue
			}
			s.wantVersion(t, v, name, 128)
			v2 := roll(t, p, name)
			s.wantVersion(t, v2, name, 128)
			if m := metadata(t, p, name); m == nil || m.Name != name || m.Versions != 2 {
				t.Errorf("Metadata(%q): %+v", name, m)
			}
			if list := versions(t, p, name); len(list) != 2 || !sameVersion(list[0], v) || !sameVersion(list[1], v2) {
				t.Errorf("Versions(%q): %q", name, names(list))
			}
			if got, err := p.Version(t.Context(), v.Name); err != nil || !sameVersion(got, v) {
				t.Errorf("Version(%q): %q, %v", v.Name, got.Name, err)
			}
			keys, err := p.Keys(t.Context())
			if err != nil || !slices.Contains(keys, name) {
				t.Errorf("Keys does not list %q, %v", name, err)
			}
			if err := p.Delete(t.Context(), name); err != nil {
				t.Errorf("Delete(%q): %v", name, err)
			}
			if m := metadata(t, p, name); m != nil {
				t.Errorf("key %q exists after Delete", name)
			}
		}
	}
}
