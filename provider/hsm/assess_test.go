package hsm_test

import (
	"strings"
	"testing"

	"claviger/provider/hsm"
)

// TestAssess: on a token that is older than the metastore, or that is not bound to it, one wrong check value is a
// misfit. On other tokens, most of the compared values must be wrong.
func TestAssess(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	p := b.mustOpen(t)
	const wrongValues = "another check value"
	for i, c := range []struct {
		bound, older                    bool
		versions, lost, compared, wrong int
		misfit                          string
	}{
		{true, false, 4, 0, 4, 0, ""},
		{true, false, 4, 0, 4, 1, ""},
		{true, false, 4, 0, 4, 3, wrongValues},
		{true, true, 4, 0, 4, 0, ""},
		{true, true, 4, 0, 4, 1, wrongValues},
		{false, false, 4, 0, 4, 1, wrongValues},
		{true, true, 4, 1, 3, 1, "is older than metastore"},
		{true, false, 4, 1, 3, 1, ""},
		{true, false, 4, 3, 1, 1, "lacks 3 of 4 key versions"},
	} {
		err := p.Assess(t.Context(), c.bound, c.older, c.versions, c.lost, c.compared, c.wrong)
		if (err != nil) != (c.misfit != "") || err != nil && (!hsm.IsMisfit(err) ||
			!strings.Contains(err.Error(), c.misfit)) {
			t.Errorf("case %d: %v", i, err)
		}
	}
	mustClose(t, p)
}
