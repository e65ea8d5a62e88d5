package authz_test

import (
	"strings"
	"testing"

	"claviger/authz"
)

// TestGroupLookups: groups are looked up only if a list names groups and its users do not decide. Otherwise a directory
// that is slow or down would affect other rules.
func TestGroupLookups(t *testing.T) {
	for value, want := range map[string]int{"*": 0, "": 0, "bob": 0, "alice": 0, "alice staff": 0, " staff": 1,
		"bob staff": 1} {
		policy, _ := authz.Parse([]authz.Property{{Name: "hadoop.kms.acl.GET", Value: value}})
		lookups := 0
		policy.May(authz.Get, user("alice"), func(string) []string { lookups++; return []string{"staff"} })
		if lookups != want {
			t.Errorf("%q: %d lookups of groups, want %d", value, lookups, want)
		}
	}
}

// TestUnknownGroups: if a user's groups cannot be looked up, a blacklist that names groups excludes the user, and
// another blacklist does not. An explanation says that the groups cannot be looked up.
func TestUnknownGroups(t *testing.T) {
	unknown := func(string) []string { return authz.GroupsUnknown }
	r, _, _ := authz.FindRequest("GET_KEYS")
	for black, want := range map[string]bool{"": true, "bob": true, "bob staff": false, " staff": false,
		"alice": false} {
		policy, _ := authz.Parse([]authz.Property{{Name: "hadoop.kms.acl.GET_KEYS", Value: "*"},
			{Name: "hadoop.kms.blacklist.GET_KEYS", Value: black}})
		if got := policy.May(authz.GetKeys, user("alice"), unknown); got != want {
			t.Errorf("blacklist %q: %t, want %t", black, got, want)
		}
		if got := policy.May(authz.GetKeys, user("alice"), nil); got != (black != "alice") {
			t.Errorf("blacklist %q, without groups: %t", black, got)
		}
	}
	for want, groups := range map[string]func(string) []string{
		"alice (groups cannot be looked up) is not in it": unknown,
		"alice (groups staff, ops) is not in it":          func(string) []string { return []string{"staff", "ops"} },
		"alice (in no group) is not in it":                nil,
	} {
		policy, _ := authz.Parse([]authz.Property{{Name: "hadoop.kms.acl.GET_KEYS", Value: "bob admins"}})
		d := policy.Explain(r, "", user("alice"), groups)
		if by, ok := d.DecidedBy(); d.Allowed || !ok || !strings.Contains(by.Says, want) {
			t.Errorf("%+v, want %q", d, want)
		}
	}
}

// TestDecidedByNothing: DecidedBy returns false if no step decides.
func TestDecidedByNothing(t *testing.T) {
	for _, d := range []authz.Decision{{}, {Steps: []authz.Step{{Says: "not set"}}}} {
		if by, ok := d.DecidedBy(); ok {
			t.Errorf("%+v was decided by %+v", d, by)
		}
	}
}

// TestExplainWithoutRules: without rules, the step that decides says that there are none.
func TestExplainWithoutRules(t *testing.T) {
	var none *authz.Policy
	r, _, _ := authz.FindRequest("GET_KEYS")
	d := none.Explain(r, "", user("alice"), nil)
	if by, ok := d.DecidedBy(); d.Allowed || !ok || !strings.Contains(by.Says, "there are no rules") {
		t.Errorf("%+v", d)
	}
}
