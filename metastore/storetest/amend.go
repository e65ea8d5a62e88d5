package storetest

import (
	"maps"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
)

// testAmend checks that Amend changes the description, attributes and creation time of one key, and nothing else.
func testAmend(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	must(t, s.Insert(ctx, key("k", "3", "4")))
	must(t, s.Insert(ctx, key("other", "0")))
	before, err := s.Get(ctx, "k", "other")
	must(t, err)
	text := ""
	want := claviger.Metadata{Name: "k", Cipher: "none", BitLength: 8, Description: &text,
		Attributes: map[string]string{"a": "b"}, Created: time.UnixMilli(1234567).UTC()}
	must(t, s.Amend(ctx, want))
	after, err := s.Get(ctx, "k", "other")
	must(t, err)
	k, old := after[0], before[0]
	if k.Description == nil || *k.Description != text || !maps.Equal(k.Attributes, want.Attributes) ||
		!k.Created.Equal(want.Created) {
		t.Errorf("the key is %+v", k.Metadata)
	}
	if k.Cipher != old.Cipher || k.BitLength != old.BitLength || k.Versions != old.Versions || len(k.List) != 2 ||
		k.List[0].ID != "3" || k.List[1].Object != old.List[1].Object {
		t.Errorf("the key is %+v, before Amend it was %+v", k, old)
	}
	if o, old := after[1], before[1]; !o.Created.Equal(old.Created) || !maps.Equal(o.Attributes, old.Attributes) {
		t.Errorf("another key is %+v, before Amend it was %+v", o, old)
	}
	want.Description, want.Attributes = nil, nil
	must(t, s.Amend(ctx, want))
	if m, _, err := s.ByVersion(ctx, "k@4"); err != nil || m.Description != nil || len(m.Attributes) != 0 {
		t.Errorf("without description and attributes: %+v, %v", m, err)
	}
	want.Name = "missing"
	wantKind(t, s.Amend(ctx, want), claviger.KeyNotFound)
}
