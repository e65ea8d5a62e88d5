package main

import (
	"strings"
	"testing"

	"claviger/provider/hsm"
	"claviger/recovery"
)

// TestAdoptionSaysWhatIsNotKnown: the list that is to be confirmed says what the token
// does not tell, and where it does not tell which version is the newest.
func TestAdoptionSaysWhatIsNotKnown(t *testing.T) {
	object := func(label string) hsm.Object { return hsm.Object{ID: "00000000000000aa", Label: label, Bits: 128} }
	var b strings.Builder
	adoptionText(&b, &recovery.Adoption{Candidates: []hsm.Candidate{
		{Key: "numbered", Versions: []hsm.Object{object("numbered@0"), object("numbered@1")}},
		{Key: "old", Versions: []hsm.Object{object("old@00000000000000aa"), object("old@00000000000000bb")},
			Unordered: true},
	}})
	lines := strings.Split(b.String(), "\n")
	for i, want := range []string{"", "guarded by key.acl.numbered.*",
		"which of them is the newest is not known: roll the key afterwards",
		"Not told by the token: description, attributes (key.acl.name), cipher"} {
		if i >= len(lines) || !strings.Contains(lines[i], want) {
			t.Errorf("line %d of %q does not say %q", i, lines, want)
		}
	}
	b.Reset()
	step := &hsm.Step{Op: "create", Attributes: map[string]string{"key.acl.name": "finance"}}
	adoptionText(&b, &recovery.Adoption{Candidates: []hsm.Candidate{
		{Key: "pending", Versions: []hsm.Object{object("pending@0")}, Step: step}}})
	for _, want := range []string{"guarded by key.acl.finance.*, or the default rules; attributes, description and " +
		"time of creation are those of the step \"create\", which was broken off",
		"Not told by the token: cipher (taken to be AES/CTR/NoPadding), and which of them were deleted"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q does not say %q", b.String(), want)
		}
	}
}
