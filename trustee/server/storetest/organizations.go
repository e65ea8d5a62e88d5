package storetest

import (
	"reflect"
	"testing"

	"claviger"
	"claviger/trustee/server"
)

// orgs: an organization is read back as it was added, names are unique, and lists are in the order of bytes.
func orgs(t *testing.T, s server.Organizations) {
	ctx := t.Context()
	if all, err := s.Orgs(ctx); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	for _, name := range []string{"b", "a", "B"} {
		check(t, s.AddOrg(ctx, server.Org{Name: name, UUID: "u-" + name, Contacts: []string{"x@" + name, "y"},
			Auth: "s", Created: at}))
	}
	wants(t, "a used name", s.AddOrg(ctx, server.Org{Name: "a", UUID: "other"}), claviger.KeyExists)
	all, err := s.Orgs(ctx)
	if err != nil || len(all) != 3 || all[0].Name != "B" || all[1].Name != "a" || all[2].Name != "b" {
		t.Errorf("%+v, %v: not in the order of bytes", all, err)
	}
	got, err := s.Org(ctx, "a")
	if err != nil || !got.Created.Equal(at) || got.UUID != "u-a" || got.Auth != "s" ||
		!reflect.DeepEqual(got.Contacts, []string{"x@a", "y"}) {
		t.Errorf("%+v, %v", got, err)
	}
	check(t, s.SetAuth(ctx, "a", ""))
	if got, err := s.Org(ctx, "a"); err != nil || got.Auth != "" {
		t.Errorf("%+v, %v", got, err)
	}
	wants(t, "auth of none", s.SetAuth(ctx, "c", "x"), claviger.KeyNotFound)
	_, err = s.Org(ctx, "c")
	wants(t, "no org", err, claviger.KeyNotFound)
}
