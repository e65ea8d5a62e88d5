package storetest

import (
	"slices"
	"testing"

	"claviger"
	"claviger/metastore"
)

// testRemoveVersion checks that RemoveVersion removes one old version, never the newest, and leaves an intent to delete
// its object. The number of the version is never given again.
func testRemoveVersion(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	must(t, s.Insert(ctx, key("k", "3", "4", "5")))
	must(t, s.Insert(ctx, key("other", "0", "1")))
	must(t, s.RecordUses(ctx, []metastore.LastUse{{Version: "k@4", Last: at(0)}, {Version: "k@3", Last: at(0)}}))
	in, err := s.RemoveVersion(ctx, "k", "4")
	must(t, err)
	if in.Key != "k" || in.Op != "delete" || !slices.Equal(in.Refs, refs("4")) || in.Begun.IsZero() {
		t.Errorf("RemoveVersion returned %+v", in)
	}
	if p, err := s.Pending(ctx); err != nil || len(p) != 1 || !p[0].Same(in) {
		t.Errorf("Pending %+v, %v; want %+v", p, err, in)
	}
	wantVersions := func(ids ...string) {
		t.Helper()
		got, err := s.Get(ctx, "k", "other")
		must(t, err)
		want := key("k", ids...)
		var have []string
		for _, v := range got[0].List {
			have = append(have, v.ID)
		}
		if !slices.Equal(have, ids) || got[0].Versions != want.Versions || len(got[1].List) != 2 {
			t.Errorf("versions %v, counted as %d; want %v and %d; other key %+v", have, got[0].Versions, ids,
				want.Versions, got[1])
		}
	}
	wantVersions("3", "5")
	_, _, err = s.ByVersion(ctx, "k@4")
	wantKind(t, err, claviger.VersionNotFound)
	if m, v, err := s.ByVersion(ctx, "k@5"); err != nil || v.Object != object("5") || m.Versions != 6 {
		t.Errorf("the newest version: %+v of %+v, %v", v, m, err)
	}
	last, _, err := s.LastUses(ctx, "k@4", "k@3")
	if err != nil || !last[0].IsZero() || last[1].IsZero() {
		t.Errorf("last uses %v, %v", last, err)
	}

	// A second removal before the objects are gone adds to the intent.
	in, err = s.RemoveVersion(ctx, "k", "3")
	must(t, err)
	if !slices.Equal(in.Refs, refs("4", "3")) {
		t.Errorf("the second intent has refs %v", in.Refs)
	}
	must(t, s.Drop(ctx, "k"))
	wantVersions("5")

	// The number stays given, and a roll takes the next one.
	if given, err := s.Numbered(ctx, "k", 4); err != nil || !given {
		t.Errorf("Numbered of a removed version: %t, %v", given, err)
	}
	roll, err := s.Begin(ctx, metastore.Intent{Key: "k", Op: "roll", Refs: []metastore.Ref{{Object: "0b6"}}})
	if err != nil || roll.Refs[0].ID != "6" {
		t.Fatalf("a roll after the removal: %+v, %v", roll, err)
	}
	refuseVersions(t, s)
	wantVersions("5")
}

// refuseVersions checks that RemoveVersion refuses the newest version, unknown ones, and a key with another unfinished
// step.
func refuseVersions(t *testing.T, s metastore.Store) {
	t.Helper()
	ctx := t.Context()
	_, err := s.RemoveVersion(ctx, "k", "5") // a roll is pending, and 5 is the newest
	wantKind(t, err, claviger.Invalid)
	_, err = s.RemoveVersion(ctx, "k", "4")
	wantKind(t, err, claviger.VersionNotFound)
	_, err = s.RemoveVersion(ctx, "other", "9")
	wantKind(t, err, claviger.VersionNotFound)
	_, err = s.RemoveVersion(ctx, "missing", "0")
	wantKind(t, err, claviger.KeyNotFound)
	_, err = s.Begin(ctx, metastore.Intent{Key: "other", Op: "roll", Refs: refs("2")})
	must(t, err)
	_, err = s.RemoveVersion(ctx, "other", "0")
	wantKind(t, err, claviger.Unavailable)
}
