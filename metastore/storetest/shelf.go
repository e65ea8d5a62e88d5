package storetest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"claviger/metastore"
)

// testShelfByName: the deleted keys of one name are found without reading those of others,
// which any user can make many and long. The bound is wide, since machines differ: reading
// all of them takes a hundred times as long as one.
func testShelfByName(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	const others = 150
	for i := range others {
		k := key(fmt.Sprintf("other%d", i), fmt.Sprintf("%04d", i))
		k.Attributes = map[string]string{"fat": strings.Repeat("x", 30<<10)}
		must(t, s.Insert(ctx, k))
		must(t, s.Shelve(ctx, k.Name))
	}
	must(t, s.Insert(ctx, key("k", "a0")))
	must(t, s.Shelve(ctx, "k"))
	took := func(names ...string) time.Duration {
		least := time.Hour
		for range 20 {
			begun := time.Now()
			list, err := s.Shelved(ctx, names...)
			must(t, err)
			if want := max(1, len(names)); len(list) != want && len(list) != others+1 {
				t.Fatalf("%d keys of %q", len(list), names)
			}
			least = min(least, time.Since(begun))
		}
		return least
	}
	all, one, two := took(), took("k"), took("k", "other7")
	t.Logf("all %v, one %v, two %v", all, one, two)
	if one > all/8 || two > all/4 {
		t.Errorf("the deleted keys of one name took %v, of two %v, all %v: other users' are read", one, two, all)
	}
}
