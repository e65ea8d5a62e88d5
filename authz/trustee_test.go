package authz_test

import (
	"strings"
	"testing"

	"claviger/authz"
)

// TestTrusteeRights: the rights over deleted keys are nobody's by default, also
// where all else is open, and have no blacklist.
func TestTrusteeRights(t *testing.T) {
	alice := user("alice")
	for _, tt := range []struct {
		name, value     string
		undelete, purge bool
	}{
		{"hadoop.kms.acl.DELETE", "*", false, false},
		{"keytrustee.kms.acl.UNDELETE", "", false, false},
		{"keytrustee.kms.acl.UNDELETE", " ", false, false},
		{"keytrustee.kms.acl.UNDELETE", "alice", true, false},
		{"keytrustee.kms.acl.PURGE", " ops", false, true},
		{"keytrustee.kms.acl.PURGE", "bob", false, false},
	} {
		p, warnings := authz.Parse([]authz.Property{{Name: tt.name, Value: tt.value, Where: "acls:1"}})
		if len(warnings) > 0 {
			t.Errorf("%s=%q: %q", tt.name, tt.value, warnings)
		}
		groups := func(string) []string { return []string{"ops"} }
		for op, want := range map[authz.Op]bool{authz.Undelete: tt.undelete, authz.Purge: tt.purge} {
			if got := p.May(op, alice, groups); got != want {
				t.Errorf("%s=%q: %s %v, want %v", tt.name, tt.value, op, got, want)
			}
			r, _, ok := authz.FindRequest(string(op))
			if !ok {
				t.Fatalf("no request %s", op)
			}
			if d := p.Explain(r, "", alice, groups); d.Allowed != want {
				t.Errorf("%s=%q: Explain %s says %v: %+v", tt.name, tt.value, op, d.Allowed, d.Steps)
			} else if by, ok := d.DecidedBy(); !ok || by.Property != "keytrustee.kms.acl."+string(op) {
				t.Errorf("%s: decided by %+v", op, by)
			}
		}
	}
	var none *authz.Policy
	if none.May(authz.Purge, alice, nil) {
		t.Error("no policy admits to PURGE")
	}
	for name, want := range map[string]string{
		"keytrustee.kms.acl.UNDELET":    "did you mean UNDELETE?",
		"hadoop.kms.acl.PURGE":          "there is no operation",
		"hadoop.kms.blacklist.UNDELETE": "there is no operation",
		"keytruste.kms.acl.PURGE":       "did you mean keytrustee.kms.acl.PURGE?",
		"default.key.acl.MIGRATE":       "no request of this server asks for MIGRATE",
		"key.acl.k.MIGRATE":             "no request of this server asks for MIGRATE",
	} {
		if _, warnings := authz.Parse([]authz.Property{{Name: name, Value: "*"}}); len(warnings) != 1 || !strings.Contains(warnings[0], want) {
			t.Errorf("%s: %q, want %q", name, warnings, want)
		}
	}
}
