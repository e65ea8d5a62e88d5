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
		t.Fatal("the suite is set to SoftDeletes, but the provider is not a SoftDeleter")
	}
	return soft
}

// deletedOf returns the deleted keys of that name, in the order of their deletion.
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
		t.Errorf("Deleted(%q): %+v; the keys of that name in Deleted(): %+v", name, list, all)
	}
	return list
}

// lastDeleted returns a version of the key that was deleted last among the keys of that name. Undelete finds the key
// by that version.
func lastDeleted(t *testing.T, p provider.Provider, name string) string {
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
	return softDeleter(t, p).Undelete(t.Context(), name, lastDeleted(t, p, name))
}

// purgeAll purges all deleted keys of that name.
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
	use := useOf(t, p, name, made[0].Name)
	want := use(t)
	made = append(made, roll(t, p, name))
	was := metadata(t, p, name)
	earliest := time.Now().Add(-s.Skew - time.Second)
	for range 2 { // a key can be deleted again after Undelete
		if err := p.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		wantDeleted(t, p, was, made, earliest, s.Skew)
		if err := undelete(t, p, name); err != nil {
			t.Fatalf("Undelete: %v", err)
		}
		if n := len(deletedOf(t, p, name)); n != 0 {
			t.Errorf("%d deleted keys of the name that was undeleted", n)
		}
		wantUndeleted(t, p, was, made)
		if got := use(t); !got.Equal(want) {
			t.Error("after Undelete the version has another key")
		}
	}
	made = append(made, roll(t, p, name))
	if back := versions(t, p, name); !slices.EqualFunc(back, made, sameVersion) {
		t.Errorf("versions after Undelete and Roll: %q, want %q", names(back), names(made))
	}
}

// wantDeleted demands that the key is deleted, once and not before earliest, and that Deleted returns it with the
// metadata that it had and these versions. No call may use the key.
func wantDeleted(t *testing.T, p provider.Provider, was *claviger.Metadata, made []claviger.KeyVersion,
	earliest time.Time, skew time.Duration) {
	t.Helper()
	list := deletedOf(t, p, was.Name)
	if len(list) != 1 {
		t.Fatalf("%d deleted keys of the name, want 1", len(list))
	}
	d := list[0]
	if !slices.Equal(d.List, names(made)) || !sameMetadata(&d.Metadata, was) {
		t.Errorf("deleted key: %+v; it was %+v with versions %q", d, *was, names(made))
	}
	if d.Since.Before(earliest) || d.Since.After(time.Now().Add(skew+time.Second)) {
		t.Errorf("deleted at %v", d.Since)
	}
	if enc, ok := p.(provider.BlockEncrypter); ok {
		for _, v := range made {
			wantKind(t, "use of a deleted key", enc.EncryptBlocks(t.Context(), v.Name, make([]byte, 16)),
				claviger.VersionNotFound)
		}
	}
	wantKind(t, "Roll of a deleted key", errorOf(p.Roll(t.Context(), was.Name, nil)), claviger.KeyNotFound)
	wantKind(t, "Delete of a deleted key", p.Delete(t.Context(), was.Name), claviger.KeyNotFound)
}

// wantUndeleted demands that the key exists with the metadata that it had and these versions.
func wantUndeleted(t *testing.T, p provider.Provider, was *claviger.Metadata, made []claviger.KeyVersion) {
	t.Helper()
	back := versions(t, p, was.Name)
	if !slices.EqualFunc(back, made, sameVersion) {
		t.Errorf("versions after Undelete: %q, want %q", names(back), names(made))
	}
	if m := metadata(t, p, was.Name); m == nil || !sameMetadata(m, was) {
		t.Fatalf("metadata after Undelete: %+v, was %+v", m, *was)
	}
	if cur, err := p.Current(t.Context(), was.Name); err != nil || cur.Name != made[len(made)-1].Name {
		t.Errorf("current version after Undelete: %q, %v", cur.Name, err)
	}
}

// sameMetadata reports whether a and b agree in everything, except in an ACL name that a KMS added by itself.
func sameMetadata(a, b *claviger.Metadata) bool {
	return a.Name == b.Name && a.Cipher == b.Cipher && a.BitLength == b.BitLength && a.Versions == b.Versions &&
		quoted(a.Description) == quoted(b.Description) && sameAttributes(a.Attributes, b.Attributes) &&
		a.Created.Equal(b.Created)
}

// testUndeleteTaken checks that a deleted key cannot be undeleted while another key has its name. Of two deleted keys,
// the test undeletes the newer one.
func testUndeleteTaken(t *testing.T, s Suite) {
	p := s.open(t)
	soft := softDeleter(t, p)
	name := keyName("undelete-taken")
	older := create(t, p, spec(name, 128))
	if err := p.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	newer := create(t, p, spec(name, 256))
	use := useOf(t, p, name, newer.Name)
	want := use(t)
	wantKind(t, "Undelete where the name is taken", undelete(t, p, name), claviger.KeyExists)
	if cur, err := p.Current(t.Context(), name); err != nil || !sameVersion(cur, newer) {
		t.Errorf("the new key after a refused Undelete: %q, %v", cur.Name, err)
	}
	if err := p.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	list := deletedOf(t, p, name)
	if len(list) != 2 || !slices.Equal(list[0].List, []string{older.Name}) ||
		!slices.Equal(list[1].List, []string{newer.Name}) {
		t.Fatalf("deleted keys of the name: %+v", list)
	}
	if err := undelete(t, p, name); err != nil {
		t.Fatal(err)
	}
	if list := versions(t, p, name); len(list) != 1 || !sameVersion(list[0], newer) || !use(t).Equal(want) {
		t.Errorf("Undelete brought %q back, want the newer key %q", names(list), newer.Name)
	}
	// Purge destroys the older key, and does not change the undeleted one.
	if err := purgeAll(t.Context(), soft, name); err != nil {
		t.Fatal(err)
	}
	if list := deletedOf(t, p, name); len(list) != 0 {
		t.Errorf("deleted keys after Purge: %+v", list)
	}
	if got := use(t); !got.Equal(want) {
		t.Error("Purge of a deleted key changed the existing key of the same name")
	}
}

// testDeletedChosen checks that Undelete and Purge choose one of several deleted keys of a name by a version of it.
func testDeletedChosen(t *testing.T, s Suite) {
	p := s.open(t)
	soft := softDeleter(t, p)
	name, other := keyName("chosen"), keyName("chosen-other")
	elsewhere := create(t, p, spec(other, 128))
	made := deleteThree(t, p, name)
	if err := p.Delete(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	for _, none := range []string{"", name, name + "@", elsewhere.Name, "x" + made[0].Name} {
		wantKind(t, "Undelete of "+none, soft.Undelete(t.Context(), name, none), claviger.KeyNotFound)
		wantKind(t, "Purge of "+none, soft.Purge(t.Context(), name, none), claviger.KeyNotFound)
	}
	wantKind(t, "Purge without a version", soft.Purge(t.Context(), name), claviger.KeyNotFound)
	wantKind(t, "Undelete as another key", soft.Undelete(t.Context(), other, made[0].Name), claviger.KeyNotFound)
	if list := deletedOf(t, p, name); len(list) != 3 {
		t.Fatalf("deleted keys after refused calls: %+v", list)
	}
	for _, i := range []int{0, 1, 2} {
		if err := soft.Undelete(t.Context(), name, made[i].Name); err != nil {
			t.Fatal(err)
		}
		if list := versions(t, p, name); len(list) == 0 || !sameVersion(list[0], made[i]) {
			t.Errorf("Undelete of %s brought %q back", made[i].Name, names(list))
		}
		if err := p.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	testPurgeChosen(t, p, name, made)
	if err := errors.Join(purgeAll(t.Context(), soft, name), purgeAll(t.Context(), soft, other),
		p.Delete(t.Context(), name)); err != nil {
		t.Error(err)
	}
}

// deleteThree makes and deletes three keys of that name, and returns the first version of each. It skips the test if
// two of them have the same version name.
func deleteThree(t *testing.T, p provider.Provider, name string) []claviger.KeyVersion {
	t.Helper()
	var made []claviger.KeyVersion
	for _, bits := range []int{128, 192, 256} {
		v := create(t, p, spec(name, bits))
		if slices.ContainsFunc(made, func(m claviger.KeyVersion) bool { return m.Name == v.Name }) {
			_ = p.Delete(t.Context(), name)
			t.Skip("the provider uses the names of versions again")
		}
		made = append(made, v)
		if bits == 192 {
			roll(t, p, name)
		}
		if err := p.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	return made
}

// testPurgeChosen purges the second of three deleted keys, and undeletes the first.
func testPurgeChosen(t *testing.T, p provider.Provider, name string, made []claviger.KeyVersion) {
	t.Helper()
	soft := softDeleter(t, p)
	if err := soft.Purge(t.Context(), name, made[1].Name); err != nil {
		t.Fatal(err)
	}
	if list := deletedOf(t, p, name); len(list) != 2 || list[0].List[0] != made[0].Name ||
		list[1].List[0] != made[2].Name {
		t.Errorf("deleted keys after Purge of the second one: %+v", list)
	}
	wantKind(t, "Undelete of a purged key", soft.Undelete(t.Context(), name, made[1].Name), claviger.KeyNotFound)
	if err := soft.Undelete(t.Context(), name, made[0].Name); err != nil {
		t.Fatal(err)
	}
	if list := versions(t, p, name); len(list) != 1 || !sameVersion(list[0], made[0]) {
		t.Errorf("versions after Purge of another key of the name: %q", names(list))
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
	for _, n := range append(missingVersions(name), "\xff", "a\x00b") {
		wantKind(t, "Undelete of a key that never existed", soft.Undelete(t.Context(), n, claviger.VersionName(n, "0")),
			claviger.KeyNotFound)
		wantKind(t, "Purge of a key that never existed", soft.Purge(t.Context(), n, claviger.VersionName(n, "0")),
			claviger.KeyNotFound)
	}
	create(t, p, spec(name, 128))
	err := soft.Undelete(t.Context(), name, claviger.VersionName(name, "0"))
	if !claviger.Is(err, claviger.KeyNotFound) && !claviger.Is(err, claviger.KeyExists) {
		t.Errorf("Undelete of an existing key: %v", err)
	}
}

// testUndeleteTogether checks that one of several parallel calls of Undelete succeeds.
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
	inParallel(6, func(int) {
		err := soft.Undelete(t.Context(), name, v.Name)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			won++
		} else if !claviger.Is(err, claviger.KeyNotFound) && !claviger.Is(err, claviger.KeyExists) {
			t.Errorf("an Undelete that came too late returned %v", err)
		}
	})
	if list := versions(t, p, name); won != 1 || len(list) != 1 || !sameVersion(list[0], v) {
		t.Errorf("%d calls undeleted the key, want 1; its versions: %q", won, names(list))
	}
}

func testDeletedSurvives(t *testing.T, s Suite) {
	if s.Reopen == nil {
		return // nothing outlives the provider
	}
	p := s.New(t)
	name := keyName("undelete-reopen")
	v := create(t, p, spec(name, 128))
	want := useOf(t, p, name, v.Name)(t)
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
	if got := useOf(t, p, name, v.Name)(t); !got.Equal(want) {
		t.Error("after a restart and Undelete the version has another key")
	}
	if err := p.Delete(t.Context(), name); err != nil {
		t.Error(err)
	}
	if err := purgeAll(t.Context(), softDeleter(t, p), name); err != nil {
		t.Error(err)
	}
}
