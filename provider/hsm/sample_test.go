package hsm

import (
	"fmt"
	"slices"
	"testing"
)

// TestWatchReachesEveryKey: the periodic checks reach every key in turn, and each time the keys that have lost a
// version.
func TestWatchReachesEveryKey(t *testing.T) {
	p := &Provider{}
	p.fit.holdings.Lost = []string{"key3@0", "key3@1"}
	var names, seen []string
	for i := range 3 * watchSample / 2 {
		names = append(names, fmt.Sprintf("key%d", i))
	}
	for range 2 {
		list := p.sampleNames(slices.Clone(names), nextKeys)
		if len(list) > watchSample+1 || !slices.Contains(list, "key3") {
			t.Errorf("a check of %q", list)
		}
		seen = append(seen, list...)
	}
	for _, n := range names {
		if !slices.Contains(seen, n) {
			t.Errorf("two checks have not reached %s", n)
		}
	}
}
