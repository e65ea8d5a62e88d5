package keyring

import (
	"testing"

	"claviger"
	"claviger/provider/memory"
)

// TestDescribe: Describe returns the live key first, then the deleted keys. Only users who may undelete or purge
// deleted keys see the deleted keys. Describe needs the same rights as Metadata, and never returns material.
func TestDescribe(t *testing.T) {
	l := newSoftDeleteRing(t, func(c *Config) {
		c.Policy = rules(t, trusteeRules("key.acl.hidden.MANAGEMENT", "u")...)
	})
	ctx := t.Context()
	create(t, l.primary, "k")
	if err := l.Delete(ctx, caller("u"), "k"); err != nil {
		t.Fatal(err)
	}
	create(t, l.primary, "k")
	if _, err := l.Roll(ctx, caller("u"), "k", nil); err != nil {
		t.Fatal(err)
	}
	create(t, l.primary, "hidden")
	got, err := l.Describe(ctx, caller("u"), "k")
	if err != nil || len(got) != 1 || !got[0].Deleted.IsZero() || len(got[0].List) != 2 {
		t.Fatalf("for u: %+v, %v", got, err)
	}
	vs, err := l.primary.Versions(ctx, "k")
	if err != nil || vs[0].Name != got[0].List[0].Name || vs[1].Name != got[0].List[1].Name {
		t.Errorf("versions %+v, %v", got[0].List, err)
	}
	got, err = l.Describe(ctx, caller("restorer"), "k")
	if err != nil || len(got) != 2 || !got[0].Deleted.IsZero() || got[1].Deleted.IsZero() || len(got[1].List) != 1 {
		t.Fatalf("for restorer: %+v, %v", got, err)
	}
	_, err = l.Describe(ctx, caller("u"), "none")
	wantKind(t, err, claviger.KeyNotFound)
	_, err = l.Describe(ctx, caller("u"), "hidden")
	wantKind(t, err, claviger.KeyDenied)
	if err := l.Delete(ctx, caller("u"), "hidden"); err != nil {
		t.Fatal(err)
	}
	_, err = l.Describe(ctx, caller("restorer"), "hidden")
	wantKind(t, err, claviger.KeyDenied)

	closed := newTestRing(t, func(c *Config) { c.Policy = rules(t, "hadoop.kms.acl.GET_METADATA", "u") })
	_, err = closed.Describe(ctx, caller("other"), "k")
	wantKind(t, err, claviger.Denied)
}

// TestDescribeNamesOnly: Describe works with a provider that knows only the names of versions.
func TestDescribeNamesOnly(t *testing.T) {
	plain := memory.New(memory.Config{})
	t.Cleanup(func() { _ = plain.Close() })
	create(t, plain, "k")
	l := newTestRing(t, func(c *Config) { c.Primary = plain })
	got, err := l.Describe(t.Context(), caller("u"), "k")
	if err != nil || len(got) != 1 || len(got[0].List) != 1 || got[0].List[0].Label != "" ||
		!got[0].UsesSince.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
}
