package authz_test

import (
	"strings"
	"testing"

	"claviger/authz"
)

// TestTrusteeRights: by default nobody has the rights over deleted keys, even if all other operations are open. There
// is no blacklist for them.
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
		t.Error("a nil policy allows PURGE")
	}
	for name, want := range map[string]string{
		"keytrustee.kms.acl.UNDELET":    "did you mean UNDELETE?",
		"hadoop.kms.acl.PURGE":          "there is no operation",
		"hadoop.kms.blacklist.UNDELETE": "there is no operation",
		"keytruste.kms.acl.PURGE":       "did you mean keytrustee.kms.acl.PURGE?",
		"default.key.acl.MIGRAT":        "did you mean MIGRATE?",
		"hadoop.kms.acl.MIGRATE":        "there is no operation",
		"key.acl.MIGRATE":               "names no key",
	} {
		if _, warnings := authz.Parse([]authz.Property{{Name: name, Value: "*"}}); len(warnings) != 1 ||
			!strings.Contains(warnings[0], want) {
			t.Errorf("%s: %q, want %q", name, warnings, want)
		}
	}
}

// TestMigrateRight tests each combination of the three properties. Each is not set, names the user, or names another
// user.
func TestMigrateRight(t *testing.T) {
	alice := user("alice")
	migrate, _, ok := authz.FindRequest("migrate")
	if !ok {
		t.Fatal("no request MIGRATE")
	}
	values := []string{"", "alice", "bob"} // "" is not set
	for _, own := range values {
		for _, def := range values {
			for _, white := range values {
				var props []authz.Property
				for name, value := range map[string]string{"key.acl.a.b.MIGRATE": own, "default.key.acl.MIGRATE": def,
					"whitelist.key.acl.MIGRATE": white} {
					if value != "" {
						props = append(props, authz.Property{Name: name, Value: value, Where: "acls:1"})
					}
				}
				p, warnings := authz.Parse(props)
				if len(warnings) > 0 {
					t.Errorf("%q %q %q: %q", own, def, white, warnings)
				}
				want := own == "alice" || own == "" && def == "alice" || white == "alice"
				if got := p.MayMigrate("a.b", alice, nil); got != want {
					t.Errorf("own %q, default %q, whitelist %q: %v, want %v", own, def, white, got, want)
				}
				d := p.Explain(migrate, "a.b", alice, nil)
				by, ok := d.DecidedBy()
				if d.Allowed != want || !ok || !strings.HasSuffix(by.Property, ".MIGRATE") {
					t.Errorf("own %q, default %q, whitelist %q: explained as %v by %+v, want %v", own, def,
						white, d.Allowed, by, want)
				}
				if want := def == "alice" || white == "alice"; p.MayMigrate("other", alice, nil) != want {
					t.Errorf("own %q, default %q, whitelist %q: another key: want %v", own, def, white, want)
				}
			}
		}
	}
	var none *authz.Policy
	if none.MayMigrate("k", alice, nil) || none.Explain(migrate, "k", alice, nil).Allowed {
		t.Error("a nil policy allows a migration")
	}
}

// TestMigrateIsIndependent: no other right contains MIGRATE, and a rule of MIGRATE changes no other right.
func TestMigrateIsIndependent(t *testing.T) {
	alice := user("alice")
	p, _ := authz.Parse([]authz.Property{
		{Name: "key.acl.k.ALL", Value: "*"}, {Name: "default.key.acl.READ", Value: "alice"},
		{Name: "key.acl.m.MIGRATE", Value: "bob"},
	})
	if p.MayMigrate("k", alice, nil) {
		t.Error("ALL contains MIGRATE")
	}
	if !p.MayKey("m", authz.KeyRead, alice, nil, nil) {
		t.Error("with key.acl.m.MIGRATE, the default for READ does not apply to m")
	}
	if d := p.Lint([]string{"k"}); len(d) > 0 {
		t.Errorf("findings about a rule for a key that does not exist yet: %q", d)
	}
}
