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
	t.Run("BrokenOff", func(t *testing.T) { testImportBrokenOff(t, s) })
	t.Run("Parallel", func(t *testing.T) {
		p := s.open(t)
		m := imported(keyName("import-parallel"))
		together(4, func(int) {
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
	})
}

// wantImported demands that m is there, with n versions that can be used, numbered
// from first on.
func wantImported(t *testing.T, s Suite, p provider.Provider, want claviger.Metadata, n,
	first int) []claviger.KeyVersion {
	t.Helper()
	m := metadata(t, p, want.Name)
	if m == nil {
		t.Fatalf("%q is not there", want.Name)
	}
	if m.Name != want.Name || m.Cipher != want.Cipher || m.BitLength != want.BitLength || m.Versions != first+n ||
		text(m.Description) != text(want.Description) || !sameAttributes(m.Attributes, want.Attributes) ||
		!m.Created.Equal(want.Created) {
		t.Errorf("metadata %+v (description %s), want %+v with versions %d", m, text(m.Description), want, first+n)
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
		seen[string(user(t, p, want.Name, v.Name)(t))] = true
	}
	if len(seen) != n {
		t.Errorf("%d different keys in %d versions", len(seen), n)
	}
	if cur, err := p.Current(t.Context(), want.Name); err != nil || !same(cur, list[n-1]) {
		t.Errorf("the current version is %q, %v; want %q", cur.Name, err, list[n-1].Name)
	}
	return list
}

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
		if !slices.EqualFunc(got, list, same) {
			t.Errorf("Import returned %q, Versions %q", names(got), names(list))
		}
		// From here on it is a key like any other.
		v := roll(t, p, m.Name)
		if list := versions(t, p, m.Name); len(list) != n+1 || list[n].Name != v.Name {
			t.Errorf("versions after a roll: %q", names(list))
		}
		wantNumber(t, p, v, first+n)
		ended := func() {
			if err := p.Delete(t.Context(), m.Name); err != nil {
				t.Errorf("Delete: %v", err)
			}
			if m := metadata(t, p, m.Name); m != nil {
				t.Errorf("deleted, and there: %+v", m)
			}
		}
		ended()
		if s.ForgetsNumbers {
			continue
		}
		// No number of a key that is gone is used again, however it comes back.
		if _, err := imp.Import(t.Context(), m, 1, first, nil); err != nil {
			t.Fatal(err)
		}
		wantImported(t, s, p, m, 1, first+n+1)
		ended()
		if soft, ok := p.(provider.SoftDeleter); ok && s.SoftDeletes {
			if err := purgeAll(t.Context(), soft, m.Name); err != nil {
				t.Error(err)
			}
		}
		wantNumber(t, p, create(t, p, spec(m.Name, 128)), first+n+2)
		ended()
		sp := spec(m.Name, 128)
		sp.First = first + n + 9
		wantNumber(t, p, create(t, p, sp), sp.First)
		wantNumber(t, p, roll(t, p, m.Name), sp.First+1)
	}
}

// wantNumber demands that v, which is current, has the number n, and that the
// metadata leads to it.
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
		t.Errorf("a refused key is there: %+v", got)
	}

	v := create(t, p, spec(m.Name, 128))
	before := metadata(t, p, m.Name)
	_, err = imp.Import(t.Context(), m, 3, 0, nil)
	wantKind(t, "Import of a key that is there", err, claviger.KeyExists)
	if list := versions(t, p, m.Name); len(list) != 1 || !same(list[0], v) {
		t.Errorf("a refused Import changed the key: %q", names(list))
	}
	if got := metadata(t, p, m.Name); text(got.Description) != text(before.Description) ||
		!got.Created.Equal(before.Created) {
		t.Errorf("a refused Import changed the key: %+v", got)
	}
}

// testImportBrokenOff breaks an import off after each of its steps, in turn,
// and calls again: the same number of versions, and nothing left over.
func testImportBrokenOff(t *testing.T, s Suite) {
	const n = 3
	steps := 0
	p := s.open(t)
	if _, err := p.(provider.Importer).Import(t.Context(), imported(keyName("import-steps")), n, 4,
		func(what string) error {
			if what == "" {
				t.Error("a step without a name")
			}
			steps++
			return nil
		}); err != nil {
		t.Fatal(err)
	}
	if steps == 0 {
		t.Fatal("no steps")
	}
	objects := 0
	if s.Objects != nil {
		objects = s.Objects(t, p)
	}
	stop := errors.New("broken off")
	for at := 1; at <= steps; at++ {
		for _, how := range []string{"call again", "reopen", "cancel"} {
			if how == "reopen" && s.Reopen == nil {
				continue
			}
			m := imported(keyName(fmt.Sprint("import-broken", at)))
			ctx, cancel := context.WithCancel(t.Context())
			i, last := 0, ""
			_, err := p.(provider.Importer).Import(ctx, m, n, 4, func(what string) error {
				if i++; i == at {
					last = what
					if how == "cancel" {
						cancel()
						return ctx.Err()
					}
					return stop
				}
				return nil
			})
			cancel()
			if err == nil || how != "cancel" && !errors.Is(err, stop) {
				t.Fatalf("Import broken off after step %d: %v", at, err)
			}
			committed := metadata(t, p, m.Name) != nil
			if committed && at < steps {
				t.Errorf("after %q, step %d of %d, the key is visible", last, at, steps)
			}
			if list := versions(t, p, m.Name); !committed && len(list) != 0 {
				t.Errorf("after %q versions are visible: %q", last, names(list))
			}
			if how == "reopen" {
				p = s.Reopen(t, p)
				t.Cleanup(func() { _ = p.Close() })
			}
			_, err = p.(provider.Importer).Import(t.Context(), m, n, 4, nil)
			if err != nil && !(committed && claviger.Is(err, claviger.KeyExists)) {
				t.Errorf("Import again, after it was broken off after %q: %v", last, err)
				continue
			}
			wantImported(t, s, p, m, n, 4)
			if s.Objects != nil {
				objects += n
				if got := s.Objects(t, p); got != objects {
					t.Errorf("broken off after %q and called again, %d objects, want %d", last, got, objects)
					objects = got
				}
			}
			_, err = p.(provider.Importer).Import(t.Context(), m, n, 4, nil)
			wantKind(t, "Import of an imported key", err, claviger.KeyExists)
		}
	}
}
