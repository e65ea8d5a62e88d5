package recovery

import (
	"strings"
	"testing"

	"claviger/provider/hsm"
)

// TestAdoptionNamesMissingFacts: the list of keys to adopt says which facts the token lacks, also if it lacks the
// order of the versions.
func TestAdoptionNamesMissingFacts(t *testing.T) {
	object := func(label string) hsm.Object { return hsm.Object{ID: "00000000000000aa", Label: label, Bits: 128} }
	var b strings.Builder
	(&Adoption{Candidates: []hsm.Candidate{
		{Key: "numbered", Versions: []hsm.Object{object("numbered@0"), object("numbered@1")}},
		{Key: "old", Versions: []hsm.Object{object("old@00000000000000aa"), object("old@00000000000000bb")},
			Unordered: true},
	}}).WriteText(&b)
	lines := strings.Split(b.String(), "\n")
	for i, want := range []string{"", "guarded by key.acl.numbered.*",
		"it is not known which version is the newest: roll the key afterwards",
		"Not on the token: description, attributes (key.acl.name), cipher"} {
		if i >= len(lines) || !strings.Contains(lines[i], want) {
			t.Errorf("line %d of %q lacks %q", i, lines, want)
		}
	}
	b.Reset()
	step := &hsm.Step{Op: "create", Attributes: map[string]string{"key.acl.name": "finance"}}
	(&Adoption{Candidates: []hsm.Candidate{
		{Key: "pending", Versions: []hsm.Object{object("pending@0")}, Step: step}}}).WriteText(&b)
	for _, want := range []string{"guarded by key.acl.finance.*, or the default rules; attributes, description and " +
		"time of creation come from the interrupted step \"create\"",
		"Not on the token: cipher (assumed: AES/CTR/NoPadding), and which keys were deleted"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q lacks %q", b.String(), want)
		}
	}
}
