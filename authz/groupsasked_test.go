package authz_test

import (
	"strings"
	"testing"

	"claviger/authz"
)

// TestGroupsAreAskedOnlyIfNamed: groups are looked up where a list names groups and nothing else has
// decided, and only there: a directory that is slow or away must not concern other rules.
func TestGroupsAreAskedOnlyIfNamed(t *testing.T) {
	for value, want := range map[string]int{"*": 0, "": 0, "bob": 0, "alice": 0, "alice staff": 0, " staff": 1,
		"bob staff": 1} {
		policy, _ := authz.Parse([]authz.Property{{Name: "hadoop.kms.acl.GET", Value: value}})
		asked := 0
		policy.May(authz.Get, user("alice"), func(string) []string { asked++; return []string{"staff"} })
		if asked != want {
			t.Errorf("%q: the groups were asked for %d times, want %d", value, asked, want)
		}
	}
}

// TestUnknownGroups: a user whose groups cannot be looked up is shut out by a blacklist that names groups,
// and by no other; an explanation says so, and what a list without the user's name is to such a user.
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

// TestDecidedByNothing: a decision without a step that decides has none.
func TestDecidedByNothing(t *testing.T) {
	for _, d := range []authz.Decision{{}, {Steps: []authz.Step{{Says: "not set"}}}} {
		if by, ok := d.DecidedBy(); ok {
			t.Errorf("%+v was decided by %+v", d, by)
		}
	}
}

// TestExplainWithoutRules: without rules the step that decides says so.
func TestExplainWithoutRules(t *testing.T) {
	var none *authz.Policy
	r, _, _ := authz.FindRequest("GET_KEYS")
	d := none.Explain(r, "", user("alice"), nil)
	if by, ok := d.DecidedBy(); d.Allowed || !ok || !strings.Contains(by.Says, "there are no rules") {
		t.Errorf("%+v", d)
	}
}
