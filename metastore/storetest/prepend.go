package storetest

import (
	"slices"
	"testing"

	"claviger"
	"claviger/metastore"
)

// testPrepend checks that Prepend writes versions before all others, and that a later Append still writes the newest.
func testPrepend(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	must(t, s.Insert(ctx, key("k", "3", "4")))
	for i, id := range []string{"1", "0"} {
		must(t, s.Prepend(ctx, "k", version(id, int64(10+i))))
	}
	must(t, s.Append(ctx, "k", version("5", 20)))
	k, err := s.Get(ctx, "k")
	must(t, err)
	var ids []string
	for _, v := range k[0].List {
		ids = append(ids, v.ID)
	}
	if !slices.Equal(ids, []string{"0", "1", "3", "4", "5"}) || k[0].Versions != 6 {
		t.Errorf("versions %v, counted as %d", ids, k[0].Versions)
	}
	m, v, err := s.ByVersion(ctx, "k@1")
	if err != nil || v.Object != object("1") || m.Versions != 6 {
		t.Errorf("%+v of %+v, %v", v, m, err)
	}
	if next, err := s.NextNumber(ctx, "k"); err != nil || next != 6 {
		t.Errorf("the next number is %d, %v", next, err)
	}
	if given, err := s.Numbered(ctx, "k", 1); err != nil || !given {
		t.Errorf("Numbered of the version that Prepend wrote: %t, %v; want true", given, err)
	}
	wantKind(t, s.Prepend(ctx, "missing", version("7", 1)), claviger.KeyNotFound)
	if err := s.Prepend(ctx, "k", version("4", 1)); err == nil {
		t.Error("Prepend accepted a version that the key has already")
	}
}
