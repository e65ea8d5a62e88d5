package providertest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
)

func softDeleter(t *testing.T, p provider.Provider) provider.SoftDeleter {
	t.Helper()
	soft, ok := p.(provider.SoftDeleter)
	if !ok {
		t.Fatal("the suite says SoftDeletes, the provider is no SoftDeleter")
	}
	return soft
}

// deletedOf returns the deleted keys of that name.
func deletedOf(t *testing.T, p provider.Provider, name string) []provider.Deleted {
	t.Helper()
	list, err := softDeleter(t, p).Deleted(t.Context(), name)
	if err != nil {
		t.Fatalf("Deleted: %v", err)
	}
	all, err := softDeleter(t, p).Deleted(t.Context())
	if err != nil {
		t.Fatalf("Deleted: %v", err)
	}
	same := func(a, b provider.Deleted) bool { return a.Since.Equal(b.Since) && slices.Equal(a.List, b.List) }
	all = slices.DeleteFunc(all, func(d provider.Deleted) bool { return d.Name != name })
	if !slices.EqualFunc(list, all, same) {
		t.Errorf("deleted keys asked for by the name %q: %+v; among all: %+v", name, list, all)
	}
	return list
}

// last is the version by which the tests name the key of that name that was deleted
// last.
func last(t *testing.T, p provider.Provider, name string) string {
	t.Helper()
	list := deletedOf(t, p, name)
	if len(list) == 0 {
		return claviger.VersionName(name, "0")
	}
	k := list[len(list)-1]
	return k.List[len(k.List)-1]
}

func undelete(t *testing.T, p provider.Provider, name string) error {
	t.Helper()
	return softDeleter(t, p).Undelete(t.Context(), name, last(t, p, name))
}

// purgeAll ends all deleted keys of the name.
func purgeAll(ctx context.Context, soft provider.SoftDeleter, name string) error {
	list, err := soft.Deleted(ctx, name)
	if err != nil {
		return err
	}
	var versions []string
	for _, k := range list {
		versions = append(versions, k.List[0])
	}
	return soft.Purge(ctx, name, versions...)
}

func testDeleted(t *testing.T, s Suite) {
	for _, tt := range []struct {
		name string
		f    func(*testing.T, Suite)
	}{
		{"Undelete", testUndelete}, {"NameTaken", testUndeleteTaken}, {"Chosen", testDeletedChosen},
		{"Purge", testPurge},
		{"None", testNoneDeleted}, {"Together", testUndeleteTogether}, {"Survives", testDeletedSurvives},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.f(t, s) })
	}
}

func testUndelete(t *testing.T, s Suite) {
	p := s.open(t)
	name := keyName("undelete")
	sp := spec(name, 192)
	sp.Description, sp.Attributes = ptr("a zone"), map[string]string{"a": "b"}
	made := []claviger.KeyVersion{create(t, p, sp)}
	use := user(t, p, name, made[0].Name)
	want := use(t)
	made = append(made, roll(t, p, name))
	was := metadata(t, p, name)
	before := time.Now().Add(-s.Skew - time.Second)
	for range 2 { // a key may be deleted as often as one likes
		if err := p.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		list := deletedOf(t, p, name)
		if len(list) != 1 {
			t.Fatalf("%d deleted keys of the name, want 1", len(list))
		}
		d := list[0]
		if !slices.Equal(d.List, names(made)) || d.Versions != 2 || d.BitLength != 192 || d.Cipher != was.Cipher ||
			text(d.Description) != text(was.Description) || !sameAttributes(d.Attributes, was.Attributes) ||
			!d.Created.Equal(was.Created) {
			t.Errorf("deleted key: %+v; it was %+v with versions %q", d, *was, names(made))
		}
		if d.Since.Before(before) || d.Since.After(time.Now().Add(s.Skew+time.Second)) {
			t.Errorf("deleted at %v", d.Since)
		}
		if enc, ok := p.(provider.BlockEncrypter); ok {
			for _, v := range made {
				wantKind(t, "use of a deleted key", enc.EncryptBlocks(t.Context(), v.Name, make([]byte, 16)),
					claviger.VersionNotFound)
			}
		}
		wantKind(t, "Roll of a deleted key", second(p.Roll(t.Context(), name, nil)), claviger.KeyNotFound)
		wantKind(t, "Delete of a deleted key", p.Delete(t.Context(), name), claviger.KeyNotFound)
		if err := undelete(t, p, name); err != nil {
			t.Fatalf("Undelete: %v", err)
		}
		if n := len(deletedOf(t, p, name)); n != 0 {
			t.Errorf("%d deleted keys of the name that was undeleted", n)
		}
		back := versions(t, p, name)
		if !slices.EqualFunc(back, made, same) {
			t.Errorf("versions after Undelete: %q, want %q", names(back), names(made))
		}
		m := metadata(t, p, name)
		if m == nil || m.Versions != 2 || m.BitLength != 192 || text(m.Description) != text(was.Description) ||
			!sameAttributes(m.Attributes, was.Attributes) || !m.Created.Equal(was.Created) {
			t.Fatalf("metadata after Undelete: %+v, was %+v", m, *was)
		}
		if got := use(t); !got.Equal(want) {
			t.Error("after Undelete the version is another key")
		}
		if cur, err := p.Current(t.Context(), name); err != nil || cur.Name != made[1].Name {
			t.Errorf("current version after Undelete: %q, %v", cur.Name, err)
		}
	}
	made = append(made, roll(t, p, name))
	if back := versions(t, p, name); !slices.EqualFunc(back, made, same) {
		t.Errorf("versions after Undelete and Roll: %q, want %q", names(back), names(made))
	}
}

// testUndeleteTaken: the name of a deleted key is free, and then it can't come
// back; of two deleted ones the younger does.
func testUndeleteTaken(t *testing.T, s Suite) {
	p := s.open(t)
	soft := softDeleter(t, p)
	name := keyName("undelete-taken")
	older := create(t, p, spec(name, 128))
	if err := p.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	younger := create(t, p, spec(name, 256))
	use := user(t, p, name, younger.Name)
	want := use(t)
	wantKind(t, "Undelete where the name is taken", undelete(t, p, name), claviger.KeyExists)
	if cur, err := p.Current(t.Context(), name); err != nil || !same(cur, younger) {
		t.Errorf("the new key after a refused Undelete: %q, %v", cur.Name, err)
	}
	if err := p.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	list := deletedOf(t, p, name)
	if len(list) != 2 || !slices.Equal(list[0].List, []string{older.Name}) ||
		!slices.Equal(list[1].List, []string{younger.Name}) {
		t.Fatalf("deleted keys of the name: %+v", list)
	}
	if err := undelete(t, p, name); err != nil {
		t.Fatal(err)
	}
	if list := versions(t, p, name); len(list) != 1 || !same(list[0], younger) || !use(t).Equal(want) {
		t.Errorf("Undelete brought %q back, want the younger key %q", names(list), younger.Name)
	}
	// Purge takes the older one, and leaves the one that is back.
	if err := purgeAll(t.Context(), soft, name); err != nil {
		t.Fatal(err)
	}
	if list := deletedOf(t, p, name); len(list) != 0 {
		t.Errorf("deleted keys after Purge: %+v", list)
	}
	if got := use(t); !got.Equal(want) {
		t.Error("Purge of a deleted key has touched the key of the same name that is there")
	}
}

// testDeletedChosen: of several deleted keys of a name the one that has the version
// comes back, or is ended, be it the oldest, and no other.
func testDeletedChosen(t *testing.T, s Suite) {
	p := s.open(t)
	soft := softDeleter(t, p)
	name, other := keyName("chosen"), keyName("chosen-other")
	elsewhere := create(t, p, spec(other, 128))
	var made []claviger.KeyVersion
	for _, bits := range []int{128, 192, 256} {
		v := create(t, p, spec(name, bits))
		if slices.ContainsFunc(made, func(m claviger.KeyVersion) bool { return m.Name == v.Name }) {
			_ = p.Delete(t.Context(), name)
			t.Skip("the provider gives names of versions again")
		}
		made = append(made, v)
		if bits == 192 {
			roll(t, p, name)
		}
		if err := p.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Delete(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	for _, none := range []string{"", name, name + "@", elsewhere.Name, "x" + made[0].Name} {
		wantKind(t, "Undelete of "+none, soft.Undelete(t.Context(), name, none), claviger.KeyNotFound)
		wantKind(t, "Purge of "+none, soft.Purge(t.Context(), name, none), claviger.KeyNotFound)
	}
	wantKind(t, "Purge of nothing", soft.Purge(t.Context(), name), claviger.KeyNotFound)
	wantKind(t, "Undelete as another key", soft.Undelete(t.Context(), other, made[0].Name), claviger.KeyNotFound)
	if list := deletedOf(t, p, name); len(list) != 3 {
		t.Fatalf("deleted keys after refusals: %+v", list)
	}
	for _, i := range []int{0, 1, 2} {
		if err := soft.Undelete(t.Context(), name, made[i].Name); err != nil {
			t.Fatal(err)
		}
		if list := versions(t, p, name); len(list) == 0 || !same(list[0], made[i]) {
			t.Errorf("Undelete of %s brought %q back", made[i].Name, names(list))
		}
		if err := p.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := soft.Purge(t.Context(), name, made[1].Name); err != nil {
		t.Fatal(err)
	}
	if list := deletedOf(t, p, name); len(list) != 2 || list[0].List[0] != made[0].Name ||
		list[1].List[0] != made[2].Name {
		t.Errorf("deleted keys after Purge of the middle one: %+v", list)
	}
	wantKind(t, "Undelete of what was purged", soft.Undelete(t.Context(), name, made[1].Name), claviger.KeyNotFound)
	if err := soft.Undelete(t.Context(), name, made[0].Name); err != nil {
		t.Fatal(err)
	}
	if list := versions(t, p, name); len(list) != 1 || !same(list[0], made[0]) {
		t.Errorf("versions after Purge of another key of the name: %q", names(list))
	}
	if err := errors.Join(purgeAll(t.Context(), soft, name), purgeAll(t.Context(), soft, other),
		p.Delete(t.Context(), name)); err != nil {
		t.Error(err)
	}
}

func testPurge(t *testing.T, s Suite) {
	p := s.open(t)
	soft := softDeleter(t, p)
	count := func() int {
		if s.Objects == nil {
			return 0
		}
		return s.Objects(t, p)
	}
	objects := count()
	name := keyName("purge")
	create(t, p, spec(name, 128))
	wantKind(t, "Purge of a key that is not deleted", purgeAll(t.Context(), soft, name), claviger.KeyNotFound)
	roll(t, p, name)
	if err := p.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if n := count(); s.Objects != nil && n != objects+2 {
		t.Errorf("%d objects after Delete, want %d", n, objects+2)
	}
	create(t, p, spec(name, 128))
	if err := p.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := purgeAll(t.Context(), soft, name); err != nil {
		t.Fatalf("Purge: %v", err)
	}
	if n := count(); n != objects {
		t.Errorf("%d objects after Purge, want %d", n, objects)
	}
	if list := deletedOf(t, p, name); len(list) != 0 {
		t.Errorf("deleted keys after Purge: %+v", list)
	}
	wantKind(t, "second Purge", purgeAll(t.Context(), soft, name), claviger.KeyNotFound)
	wantKind(t, "Undelete after Purge", soft.Undelete(t.Context(), name, claviger.VersionName(name, "0")),
		claviger.KeyNotFound)
	create(t, p, spec(name, 256))
}

func testNoneDeleted(t *testing.T, s Suite) {
	p := s.open(t)
	soft := softDeleter(t, p)
	name := keyName("undelete-none")
	for _, n := range append(missing(name), "\xff", "a\x00b") {
		wantKind(t, "Undelete of what never was", soft.Undelete(t.Context(), n, claviger.VersionName(n, "0")),
			claviger.KeyNotFound)
		wantKind(t, "Purge of what never was", soft.Purge(t.Context(), n, claviger.VersionName(n, "0")),
			claviger.KeyNotFound)
	}
	create(t, p, spec(name, 128))
	err := soft.Undelete(t.Context(), name, claviger.VersionName(name, "0"))
	if !claviger.Is(err, claviger.KeyNotFound) && !claviger.Is(err, claviger.KeyExists) {
		t.Errorf("Undelete of a key that is there: %v", err)
	}
}

// testUndeleteTogether: of many who undelete, one does.
func testUndeleteTogether(t *testing.T, s Suite) {
	p := s.open(t)
	soft := softDeleter(t, p)
	name := keyName("undelete-race")
	v := create(t, p, spec(name, 128))
	if err := p.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	won := 0
	together(6, func(int) {
		err := soft.Undelete(t.Context(), name, v.Name)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			won++
		} else if !claviger.Is(err, claviger.KeyNotFound) && !claviger.Is(err, claviger.KeyExists) {
			t.Errorf("who came too late got %v", err)
		}
	})
	if list := versions(t, p, name); won != 1 || len(list) != 1 || !same(list[0], v) {
		t.Errorf("%d undeleted the key; its versions: %q", won, names(list))
	}
}

func testDeletedSurvives(t *testing.T, s Suite) {
	if s.Reopen == nil {
		return // nothing outlives the provider
	}
	p := s.New(t)
	name := keyName("undelete-reopen")
	v := create(t, p, spec(name, 128))
	want := user(t, p, name, v.Name)(t)
	if err := p.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	p = s.Reopen(t, p)
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	if list := deletedOf(t, p, name); len(list) != 1 || !slices.Equal(list[0].List, []string{v.Name}) {
		t.Fatalf("deleted keys after a restart: %+v", list)
	}
	if err := undelete(t, p, name); err != nil {
		t.Fatal(err)
	}
	if got := user(t, p, name, v.Name)(t); !got.Equal(want) {
		t.Error("after a restart and Undelete the version is another key")
	}
	if err := p.Delete(t.Context(), name); err != nil {
		t.Error(err)
	}
	if err := purgeAll(t.Context(), softDeleter(t, p), name); err != nil {
		t.Error(err)
	}
}
