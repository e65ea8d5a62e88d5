package storetest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"claviger/metastore"
)

// testDeletedByName checks that DeletedKeys reads only the deleted keys of the given names. Otherwise many large
// deleted keys of one user would slow down the requests of other users. The test compares durations, with wide limits:
// reading all keys takes about a hundred times as long as reading one.
func testDeletedByName(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	const others = 150
	for i := range others {
		k := key(fmt.Sprintf("other%d", i), fmt.Sprintf("%04d", i))
		k.Attributes = map[string]string{"fat": strings.Repeat("x", 30<<10)}
		must(t, s.Insert(ctx, k))
		must(t, s.SoftDelete(ctx, k.Name))
	}
	must(t, s.Insert(ctx, key("k", "a0")))
	must(t, s.SoftDelete(ctx, "k"))
	// fastest returns the shortest of 20 durations, because other processes may delay some of the calls.
	fastest := func(names ...string) time.Duration {
		shortest := time.Hour
		for range 20 {
			begun := time.Now()
			list, err := s.DeletedKeys(ctx, names...)
			must(t, err)
			if want := max(1, len(names)); len(list) != want && len(list) != others+1 {
				t.Fatalf("%d keys of %q", len(list), names)
			}
			shortest = min(shortest, time.Since(begun))
		}
		return shortest
	}
	all, one, two := fastest(), fastest("k"), fastest("k", "other7")
	t.Logf("all %v, one %v, two %v", all, one, two)
	if one > all/8 || two > all/4 {
		t.Errorf("DeletedKeys reads the keys of other names: it took %v for one name, %v for two, %v for all", one, two,
			all)
	}
}
