package sqlite

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"claviger/trustee/server/storetest"
)

// TestFigures: deleted deposits are counted, but have no wrapped content that a server can open.
func TestFigures(t *testing.T) {
	ctx, s := t.Context(), newFilledStore(t)
	check(t, s.Delete(ctx, storetest.Owner, []string{"u4"}, s.place.opened.ModTime(), storetest.Request("f")))
	if live, deleted, err := s.Deposits(ctx); err != nil || live != 3 || deleted != 2 {
		t.Errorf("%d live and %d deleted deposits, %v", live, deleted, err)
	}
	heads := map[string]string{}
	check(t, s.Wrapped(ctx, 2, func(uuid string, head []byte) { heads[uuid] = string(head) }))
	if got := strings.Join(slices.Sorted(maps.Keys(heads)), " "); got != "u0 u2" || heads["u2"] != "\x00\x02" {
		t.Errorf("wrapped deposits: %q", heads)
	}
}
