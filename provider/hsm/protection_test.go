package hsm_test

import (
	"testing"

	"claviger/provider/hsm"
)

// TestProtection: the token is asked for each version; a deleted version is marked, and a version that nothing records
// has no attributes.
func TestProtection(t *testing.T) {
	b := newSite(t)
	b.soft = "true"
	kept, deleted := b.create(t, "kept"), b.create(t, "deleted")
	p := b.mustOpen(t)
	defer mustClose(t, p)
	if err := p.Delete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	list, err := p.Protection(t.Context(), []string{kept, deleted, "kept@99"})
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	for i, want := range []hsm.VersionProtection{{Version: kept, Key: "kept", Record: hsm.InUse},
		{Version: deleted, Key: "deleted", Record: hsm.Deleted}, {Version: "kept@99", Key: "kept"}} {
		got := list[i]
		if got.Version != want.Version || got.Key != want.Key || got.Record != want.Record ||
			(len(got.OnToken) == 1) != (want.Record != "") || (len(got.ID) == 16) != (want.Record != "") {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if on := list[0].OnToken; on[0].NeverExtractable == nil || !*on[0].NeverExtractable {
		t.Errorf("%+v", on)
	}
}
