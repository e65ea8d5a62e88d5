package authz_test

import (
	"strings"
	"testing"

	"claviger/authz"
)

// TestAdmitsToKeys: a rule at key level, of any kind, counts only if it admits a user.
func TestAdmitsToKeys(t *testing.T) {
	for _, c := range []struct {
		name, value string
		want        bool
	}{
		{"hadoop.kms.acl.GET", "*", false}, // at operation level
		{"key.acl.k.READ", "", false},
		{"key.acl.k.READ", "alice", true},
		{"key.acl.k.READ", " staff", true},
		{"key.acl.k.READ", "*", true},
		{"default.key.acl.READ", "", false},
		{"default.key.acl.READ", "alice", true},
		{"whitelist.key.acl.READ", "", false},
		{"whitelist.key.acl.READ", " staff", true},
	} {
		policy, warnings := authz.Parse([]authz.Property{{Name: c.name, Value: c.value}})
		if got := policy.AdmitsToKeys(); got != c.want || len(warnings) > 0 {
			t.Errorf("%s=%q: %t, want %t; %q", c.name, c.value, got, c.want, warnings)
		}
	}
}

// TestMayMigrateAny: a caller may migrate some key only if a rule of MIGRATE names the caller.
func TestMayMigrateAny(t *testing.T) {
	nobody := func(string) []string { return nil }
	for _, name := range []string{"key.acl.k.MIGRATE", "default.key.acl.MIGRATE", "whitelist.key.acl.MIGRATE"} {
		policy, _ := authz.Parse([]authz.Property{{Name: name, Value: "alice"}, {Name: "key.acl.k.ALL", Value: "bob"}})
		if !policy.MayMigrateAny(user("alice"), nobody) {
			t.Errorf("%s: alice may not", name)
		}
		if policy.MayMigrateAny(user("bob"), nobody) {
			t.Errorf("%s: bob may", name)
		}
	}
	var none *authz.Policy
	if none.MayMigrateAny(user("alice"), nobody) {
		t.Error("without rules alice may")
	}
}

// TestLintSaysWhere: a finding about a default has the file and line of the default, or says that it is not in a file.
func TestLintSaysWhere(t *testing.T) {
	for where, want := range map[string]string{"acls:7": "(acls:7)", "": "(not in a file)"} {
		policy, _ := authz.Parse([]authz.Property{
			{Name: "key.acl.k.MANAGEMENT", Value: "alice", Where: "acls:1"},
			{Name: "default.key.acl.READ", Value: "*", Where: where},
		})
		if got := strings.Join(policy.Lint([]string{"k"}), "\n"); !strings.Contains(got, want) {
			t.Errorf("%q: %q does not contain %s", where, got, want)
		}
	}
}

// TestExplainBlacklist: the steps say whether a blacklist is set, and that it does not exclude the caller.
func TestExplainBlacklist(t *testing.T) {
	r, _, _ := authz.FindRequest("DECRYPT_EEK")
	for value, want := range map[string]string{"": "not set: nobody is excluded",
		"hdfs": "alice (in no group) is not in it"} {
		props := []authz.Property{{Name: "key.acl.k.DECRYPT_EEK", Value: "alice"}}
		if value != "" {
			props = append(props, authz.Property{Name: "hadoop.kms.blacklist.DECRYPT_EEK", Value: value})
		}
		policy, _ := authz.Parse(props)
		d := policy.Explain(r, "k", user("alice"), func(string) []string { return nil })
		says := ""
		for _, s := range d.Steps {
			if s.Property == "hadoop.kms.blacklist.DECRYPT_EEK" {
				says += s.Says
			}
		}
		if !d.Allowed || !strings.Contains(says, want) {
			t.Errorf("with the blacklist %q: %t, %q, want %q", value, d.Allowed, says, want)
		}
	}
}

// TestMigrateNames: MIGRATE is the last word of a property, after a key's name and a dot.
func TestMigrateNames(t *testing.T) {
	nobody := func(string) []string { return nil }
	for name, want := range map[string]bool{
		"key.acl.k.MIGRATE": true, "key.acl.a.b.MIGRATE": true, "key.acl.kMIGRATE": false, "key.acl..MIGRATE": false,
		"key.acl.MIGRATE": false, "keyMIGRATE": false,
	} {
		policy, warnings := authz.Parse([]authz.Property{{Name: name, Value: "alice"}})
		if got := policy.MayMigrateAny(user("alice"), nobody); got != want || (len(warnings) == 0) != want {
			t.Errorf("%s: %t, %q, want %t", name, got, warnings, want)
		}
	}
}

// TestPrincipalInAList: a principal in a list of users causes a warning. A name that begins with a slash does not,
// because there is no short name to suggest.
func TestPrincipalInAList(t *testing.T) {
	for value, want := range map[string]string{"nn/host@R": "write nn unless", "a@R": "write a unless", "/alice": "",
		`\alice`: "write alice", `R\alice`: "write alice"} {
		_, warnings := authz.Parse([]authz.Property{{Name: "hadoop.kms.acl.GET", Value: value}})
		if got := strings.Join(warnings, "\n"); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%s: %q, want %q", value, got, want)
		}
	}
}
