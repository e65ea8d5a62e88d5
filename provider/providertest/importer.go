package providertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
)

// imported returns the metadata of a key to import.
func imported(name string) claviger.Metadata {
	return claviger.Metadata{
		Name: name, Cipher: claviger.DefaultCipher, BitLength: 256,
		Description: ptr("from elsewhere"),
		Attributes:  map[string]string{claviger.ACLNameAttribute: "an-acl", "x": ""},
		Created:     time.UnixMilli(1234567890123),
		Versions:    99, // not used
	}
}

func testImport(t *testing.T, s Suite) {
	t.Run("Kept", func(t *testing.T) { testImportKept(t, s) })
	t.Run("Refuses", func(t *testing.T) { testImportRefuses(t, s) })
	t.Run("Interrupted", func(t *testing.T) { testImportInterrupted(t, s) })
	t.Run("Parallel", func(t *testing.T) { testImportParallel(t, s) })
}

func testImportParallel(t *testing.T, s Suite) {
	p := s.open(t)
	m := imported(keyName("import-parallel"))
	inParallel(4, func(int) {
		if _, err := p.(provider.Importer).Import(t.Context(), m, 3, 0, nil); err != nil &&
			!claviger.Is(err, claviger.KeyExists) && !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("Import at the same time as another: %v", err)
		}
	})
	if _, err := p.(provider.Importer).Import(t.Context(), m, 3, 0, nil); err != nil &&
		!claviger.Is(err, claviger.KeyExists) {
		t.Errorf("Import: %v", err)
	}
	wantImported(t, s, p, m, 3, 0)
}

// wantImported demands that the key exists with that metadata and n usable versions, the first with number first.
func wantImported(t *testing.T, s Suite, p provider.Provider, want claviger.Metadata,
	n, first int) []claviger.KeyVersion {
	t.Helper()
	m := metadata(t, p, want.Name)
	if m == nil {
		t.Fatalf("key %q does not exist", want.Name)
	}
	if m.Name != want.Name || m.Cipher != want.Cipher || m.BitLength != want.BitLength || m.Versions != first+n ||
		quoted(m.Description) != quoted(want.Description) || !sameAttributes(m.Attributes, want.Attributes) ||
		!m.Created.Equal(want.Created) {
		t.Errorf("metadata %+v (description %s), want %+v with versions %d", m, quoted(m.Description), want, first+n)
	}
	list := versions(t, p, want.Name)
	if len(list) != n {
		t.Fatalf("versions %q, want %d", names(list), n)
	}
	seen := map[string]bool{}
	for i, v := range list {
		s.wantVersion(t, v, want.Name, want.BitLength)
		if name := claviger.VersionName(want.Name, strconv.Itoa(first+i)); v.Name != name {
			t.Errorf("version %d is %q, want %q", i, v.Name, name)
		}
		seen[string(useOf(t, p, want.Name, v.Name)(t))] = true
	}
	if len(seen) != n {
		t.Errorf("%d different keys in %d versions", len(seen), n)
	}
	if cur, err := p.Current(t.Context(), want.Name); err != nil || !sameVersion(cur, list[n-1]) {
		t.Errorf("the current version is %q, %v; want %q", cur.Name, err, list[n-1].Name)
	}
	return list
}

// testImportKept checks that an imported key has the metadata and the numbers that were given, can be rolled and
// deleted, and that no number of a deleted key is used again.
func testImportKept(t *testing.T, s Suite) {
	p := s.open(t)
	imp := p.(provider.Importer)
	bare := imported(keyName("import-bare"))
	bare.Description, bare.Attributes, bare.BitLength = nil, nil, 128
	empty := imported(keyName("import-empty"))
	empty.Description, empty.Attributes, empty.BitLength = ptr(""), map[string]string{}, 192
	for i, m := range []claviger.Metadata{imported(keyName("import")), bare, empty} {
		n, first := []int{5, 1, 2}[i], []int{7, 1, 0}[i]
		got, err := imp.Import(t.Context(), m, n, first, nil)
		if err != nil {
			t.Fatalf("Import: %v", err)
		}
		list := wantImported(t, s, p, m, n, first)
		if !slices.EqualFunc(got, list, sameVersion) {
			t.Errorf("Import returned %q, Versions %q", names(got), names(list))
		}
		// The imported key can be rolled and deleted as every other key.
		v := roll(t, p, m.Name)
		if list := versions(t, p, m.Name); len(list) != n+1 || list[n].Name != v.Name {
			t.Errorf("versions after a roll: %q", names(list))
		}
		wantNumber(t, p, v, first+n)
		deleteKey := func() {
			if err := p.Delete(t.Context(), m.Name); err != nil {
				t.Errorf("Delete: %v", err)
			}
			if m := metadata(t, p, m.Name); m != nil {
				t.Errorf("the deleted key still exists: %+v", m)
			}
		}
		deleteKey()
		if s.ForgetsNumbers {
			continue
		}
		// A number of the deleted key is never used again: not after another Import, Purge or Create.
		if _, err := imp.Import(t.Context(), m, 1, first, nil); err != nil {
			t.Fatal(err)
		}
		wantImported(t, s, p, m, 1, first+n+1)
		deleteKey()
		if soft, ok := p.(provider.SoftDeleter); ok && s.SoftDeletes {
			if err := purgeAll(t.Context(), soft, m.Name); err != nil {
				t.Error(err)
			}
		}
		wantNumber(t, p, create(t, p, spec(m.Name, 128)), first+n+2)
		deleteKey()
		sp := spec(m.Name, 128)
		sp.First = first + n + 9
		wantNumber(t, p, create(t, p, sp), sp.First)
		wantNumber(t, p, roll(t, p, m.Name), sp.First+1)
	}
}

// wantNumber demands that the current version v has number n, and that the metadata counts n + 1 versions.
func wantNumber(t *testing.T, p provider.Provider, v claviger.KeyVersion, n int) {
	t.Helper()
	if v.Name != claviger.VersionName(v.Key, strconv.Itoa(n)) {
		t.Errorf("version %q, want number %d", v.Name, n)
	}
	if m := metadata(t, p, v.Key); m.Versions != n+1 {
		t.Errorf("versions %d, want %d", m.Versions, n+1)
	}
}

func testImportRefuses(t *testing.T, s Suite) {
	p := s.open(t)
	imp := p.(provider.Importer)
	m := imported(keyName("import-refused"))
	for _, bad := range []struct{ n, first int }{{0, 0}, {-1, 0}, {1, -1}, {1, claviger.MaxVersion + 1},
		{2, claviger.MaxVersion}} {
		_, err := imp.Import(t.Context(), m, bad.n, bad.first, nil)
		wantKind(t, fmt.Sprintf("Import of %d versions from %d on", bad.n, bad.first), err, claviger.Invalid)
	}
	bad := m
	bad.BitLength = 100
	_, err := imp.Import(t.Context(), bad, 1, 0, nil)
	wantKind(t, "Import with 100 bits", err, claviger.InvalidKeySize)
	bad = m
	bad.Cipher = "FOO/CTR/NoPadding"
	_, err = imp.Import(t.Context(), bad, 1, 0, nil)
	wantKind(t, "Import with an unknown cipher", err, claviger.UnknownCipher)
	if got := metadata(t, p, m.Name); got != nil {
		t.Errorf("a refused key exists: %+v", got)
	}

	v := create(t, p, spec(m.Name, 128))
	before := metadata(t, p, m.Name)
	_, err = imp.Import(t.Context(), m, 3, 0, nil)
	wantKind(t, "Import of an existing key", err, claviger.KeyExists)
	if list := versions(t, p, m.Name); len(list) != 1 || !sameVersion(list[0], v) {
		t.Errorf("a refused Import changed the key: %q", names(list))
	}
	if got := metadata(t, p, m.Name); quoted(got.Description) != quoted(before.Description) ||
		!got.Created.Equal(before.Created) {
		t.Errorf("a refused Import changed the key: %+v", got)
	}
}

// testImportInterrupted interrupts an import after each of its steps, and calls Import again. The second call must make
// the wanted number of versions, and leave no object behind.
func testImportInterrupted(t *testing.T, s Suite) {
	b := interruptedImport{s: s, p: s.open(t)}
	b.steps = countSteps(t, b.p)
	if s.Objects != nil {
		b.objects = s.Objects(t, b.p)
	}
	for at := 1; at <= b.steps; at++ {
		for _, how := range []string{"call again", "reopen", "cancel"} {
			if how == "reopen" && s.Reopen == nil {
				continue
			}
			b.test(t, at, how)
		}
	}
}

// The versions of an import that is interrupted.
const importVersions, importFirst = 3, 4

// interruptedImport interrupts imports.
type interruptedImport struct {
	s       Suite
	p       provider.Provider
	steps   int // of an import
	objects int // keys in the HSM or store behind p; 0 if the suite does not count them
}

// countSteps returns the number of steps of an import.
func countSteps(t *testing.T, p provider.Provider) int {
	t.Helper()
	steps := 0
	m := imported(keyName("import-steps"))
	_, err := p.(provider.Importer).Import(t.Context(), m, importVersions, importFirst, func(name string) error {
		if name == "" {
			t.Error("a step without a name")
		}
		steps++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if steps == 0 {
		t.Fatal("no steps")
	}
	return steps
}

// test interrupts one import after step at, and calls Import again. how says what ends the import, and what happens
// between the calls.
func (b *interruptedImport) test(t *testing.T, at int, how string) {
	t.Helper()
	m := imported(keyName(fmt.Sprint("import-interrupted", at)))
	step := b.interrupt(t, m, at, how)
	committed := metadata(t, b.p, m.Name) != nil
	if committed && at < b.steps {
		t.Errorf("after %q, step %d of %d, the key is visible", step, at, b.steps)
	}
	if list := versions(t, b.p, m.Name); !committed && len(list) != 0 {
		t.Errorf("after %q versions are visible: %q", step, names(list))
	}
	if how == "reopen" {
		p := b.s.Reopen(t, b.p)
		t.Cleanup(func() { _ = p.Close() })
		b.p = p
	}
	imp := b.p.(provider.Importer)
	_, err := imp.Import(t.Context(), m, importVersions, importFirst, nil)
	if err != nil && !(committed && claviger.Is(err, claviger.KeyExists)) {
		t.Errorf("second Import, after the first was interrupted after %q: %v", step, err)
		return
	}
	wantImported(t, b.s, b.p, m, importVersions, importFirst)
	if b.s.Objects != nil {
		b.objects += importVersions
		if got := b.s.Objects(t, b.p); got != b.objects {
			t.Errorf("interrupted after %q and called again, %d objects, want %d", step, got, b.objects)
			b.objects = got
		}
	}
	_, err = imp.Import(t.Context(), m, importVersions, importFirst, nil)
	wantKind(t, "Import of an imported key", err, claviger.KeyExists)
}

// interrupt calls Import, and returns the name of the step after which it interrupted the import.
func (b *interruptedImport) interrupt(t *testing.T, m claviger.Metadata, at int, how string) string {
	t.Helper()
	stop := errors.New("interrupted")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	i, last := 0, ""
	imp := b.p.(provider.Importer)
	_, err := imp.Import(ctx, m, importVersions, importFirst, func(name string) error {
		if i++; i != at {
			return nil
		}
		last = name
		if how == "cancel" {
			cancel()
			return ctx.Err()
		}
		return stop
	})
	if err == nil || how != "cancel" && !errors.Is(err, stop) {
		t.Fatalf("Import interrupted after step %d: %v", at, err)
	}
	return last
}
