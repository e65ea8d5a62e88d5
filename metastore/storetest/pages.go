package storetest

import (
	"slices"
	"testing"

	"claviger"
	"claviger/metastore"
)

// testPages: pages have each key once, also if keys are made and removed between two pages.
func testPages(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	page := func(from string, n int) (names []string, next string) {
		t.Helper()
		names, next, err := s.Page(ctx, from, n)
		must(t, err)
		return names, next
	}
	if names, next := page("", 10); len(names) != 0 || next != "" {
		t.Errorf("a page of a store without keys: %q, next %q", names, next)
	}
	want := []string{"g", "b", "B", "f", "schlüssel", "a b", "c"}
	for i, name := range want {
		must(t, s.Insert(ctx, key(name, "0"+string(rune('a'+i)))))
	}
	if names, next := page("", 10); len(names) != len(want) || next != "" {
		t.Errorf("one page of all keys: %q, next %q", names, next)
	}
	for n := 1; n <= len(want); n++ {
		var got []string
		names, next := page("", n)
		for got = names; next != ""; got = append(got, names...) {
			names, next = page(next, n)
			if len(names) > n {
				t.Errorf("a page of %d names: %q", n, names)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("pages of %d: %q", n, got)
		}
	}
	first, next := page("", 3)
	_, err := s.Remove(ctx, first[2])
	must(t, err)
	must(t, s.Drop(ctx, first[2]))
	must(t, s.Insert(ctx, key("made meanwhile", "10")))
	for next != "" {
		var names []string
		names, next = page(next, 3)
		first = append(first, names...)
	}
	for _, name := range want {
		if n := len(slices.DeleteFunc(slices.Clone(first), func(s string) bool { return s != name })); n != 1 {
			t.Errorf("%q is %d times on the pages %q", name, n, first)
		}
	}
	_, _, err = s.Page(ctx, "none", 1)
	wantKind(t, err, claviger.Invalid)
}
