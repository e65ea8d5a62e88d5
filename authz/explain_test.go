package authz_test

import (
	"strings"
	"testing"

	"claviger"
	"claviger/authz"
)

// TestExplain: an explanation names the rule that decides, its place, and why it applies to the user.
func TestExplain(t *testing.T) {
	props := []authz.Property{
		{Name: "hadoop.kms.acl.GET", Value: "alice ops", Where: "acls:1"},
		{Name: "hadoop.kms.acl.ROLLOVER", Value: "alice", Where: "acls:2"},
		{Name: "hadoop.kms.acl.DELETE", Value: "bob", Where: "acls:3"},
		{Name: "hadoop.kms.blacklist.DECRYPT_EEK", Value: "hdfs", Where: "acls:4"},
		{Name: "key.acl.k.1.DECRYPT_EEK", Value: "alice,~oozie", Where: "acls:5"},
		{Name: "key.acl.all.ALL", Value: " ops", Where: "acls:6"},
		{Name: "default.key.acl.READ", Value: "*", Where: "acls:7"},
		{Name: "whitelist.key.acl.MANAGEMENT", Value: "root", Where: "acls:8"},
	}
	policy, warnings := authz.Parse(props)
	if len(warnings) > 0 {
		t.Fatal(warnings)
	}
	groups := func(u string) []string { return map[string][]string{"olga": {"staff", "ops"}}[u] }
	for _, c := range []struct {
		user, real, request, acl string
		allowed                  bool
		where, says              string
	}{
		{"alice", "", "get", "", true, "acls:1", "alice is named"},
		{"olga", "", "GET_KEY_VERSIONS", "k", true, "acls:7", "* is everybody"},
		{"bob", "", "get-current-key", "k", false, "acls:1", "bob (in no group) is not in it"},
		{"hdfs", "", "decrypt_eek", "k.1", false, "acls:4", "hdfs is named: excluded"},
		{"alice", "", "DECRYPT_EEK", "k.1", true, "acls:5", "alice is named"},
		{"bob", "oozie", "DECRYPT_EEK", "k.1", true, "acls:5", "impersonated by oozie"},
		{"bob", "", "DECRYPT_EEK", "k.1", false, "acls:5", "is not in it"},
		{"bob", "", "DECRYPT_EEK", "k", false, "",
			"neither a key.acl.k.* nor default.key.acl.DECRYPT_EEK nor whitelist"},
		{"olga", "", "DECRYPT_EEK", "all", true, "acls:6", "olga is in the group ops"},
		{"alice", "", "GET_METADATA", "k.1", false, "", "the defaults do not apply"},
		{"bob", "", "INVALIDATE_CACHE", "k", false, "", "not set"},
		{"carol", "", "INVALIDATE_CACHE", "k", false, "acls:3", "is not in it"},
		{"root", "", "CREATE", "k.1", true, "acls:8", "root is named"},
		{"olga", "", "GET_KEYS", "k", true, "", "not set: open to everybody"},
	} {
		who := user(c.user)
		if c.real != "" {
			who.Real = &claviger.Principal{Name: c.real, Short: c.real}
		}
		r, _, ok := authz.FindRequest(c.request)
		if !ok {
			t.Fatalf("no request %q", c.request)
		}
		d := policy.Explain(r, c.acl, who, groups)
		by, found := d.DecidedBy()
		if d.Allowed != c.allowed || !found || by.Where != c.where || !strings.Contains(by.Says, c.says) {
			t.Errorf("%s %s %s: %t by %+v, want %t by %q %q; all: %+v", c.user, c.request, c.acl,
				d.Allowed, by, c.allowed, c.where, c.says, d.Steps)
		}
		n := 0
		for _, s := range d.Steps {
			if s.Decides {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s %s %s: %d steps decide: %+v", c.user, c.request, c.acl, n, d.Steps)
		}
	}
	var none *authz.Policy
	get, _, _ := authz.FindRequest("GET")
	if none.Explain(get, "k", user("x"), nil).Allowed {
		t.Error("no policy allows")
	}
}

// TestExplainSteps: an explanation has the rules that could decide, in the order of evaluation, and no rule that cannot
// exist.
func TestExplainSteps(t *testing.T) {
	policy, _ := authz.Parse([]authz.Property{
		{Name: "keytrustee.kms.acl.PURGE", Value: "*"},
		{Name: "key.acl.k.READ", Value: "bob"},
		{Name: "default.key.acl.MANAGEMENT", Value: "bob"},
	})
	for _, c := range []struct {
		request, acl string
		want         string
	}{
		// UNDELETE and PURGE have no blacklist. ALL has no default and no whitelist.
		{"PURGE_KEY", "z", "keytrustee.kms.acl.PURGE default.key.acl.MANAGEMENT whitelist.key.acl.MANAGEMENT"},
		{"GET_METADATA", "k", "hadoop.kms.acl.GET_METADATA hadoop.kms.blacklist.GET_METADATA " +
			"key.acl.k.READ whitelist.key.acl.READ key.acl.k.ALL"},
		{"INVALIDATE_CACHE", "", "hadoop.kms.acl.ROLLOVER hadoop.kms.blacklist.ROLLOVER"},
	} {
		r, _, _ := authz.FindRequest(c.request)
		var got []string
		for _, s := range policy.Explain(r, c.acl, user("alice"), nil).Steps {
			got = append(got, s.Property)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s of %q: %q, want %q", c.request, c.acl, got, c.want)
		}
	}
}

// TestFindRequest: a request is found by its name in any case; for a misspelt name the nearest one is suggested.
func TestFindRequest(t *testing.T) {
	if _, near, ok := authz.FindRequest("decrypt_ek"); ok || near != "DECRYPT_EEK" {
		t.Errorf("near %q, %t", near, ok)
	}
	for _, name := range authz.RequestNames() {
		if r, _, ok := authz.FindRequest(strings.ToLower(name)); !ok || r.Name != name {
			t.Errorf("%s: %+v %t", name, r, ok)
		}
	}
}

// TestWithDefaults: a built-in rule applies only if the file has no rule of that name.
func TestWithDefaults(t *testing.T) {
	defaults := []authz.Property{{Name: "hadoop.kms.blacklist.DECRYPT_EEK", Value: "hdfs", Where: "built in"}}
	for _, c := range []struct {
		props []authz.Property
		may   bool
	}{
		{nil, false},
		{[]authz.Property{{Name: "hadoop.kms.acl.DECRYPT_EEK", Value: "hdfs"}}, false},
		{[]authz.Property{{Name: "hadoop.kms.blacklist.DECRYPT_EEK", Value: ""}}, true},
		{[]authz.Property{{Name: "hadoop.kms.blacklist.DECRYPT_EEK", Value: "yarn"}}, true},
	} {
		p, _ := authz.Parse(authz.WithDefaults(c.props, defaults))
		if got := p.May(authz.DecryptEEK, user("hdfs"), nil); got != c.may {
			t.Errorf("%v: hdfs decrypts: %t", c.props, got)
		}
	}
}

// TestLint: the finding for each kind of rule that has probably another effect than was meant.
func TestLint(t *testing.T) {
	for _, c := range []struct {
		props []authz.Property
		known []string
		want  string // the beginning of the only finding, or "" for none
	}{
		{nil, nil, ""},
		{[]authz.Property{{Name: "hadoop.kms.blacklist.GET", Value: "*", Where: "acls:7"}}, nil,
			"acls:7: hadoop.kms.blacklist.GET: * excludes everybody"},
		{[]authz.Property{{Name: "hadoop.kms.acl.GET", Value: "a,b"}, {Name: "hadoop.kms.blacklist.GET", Value: "b"}},
			nil, "hadoop.kms.acl.GET: names b, but hadoop.kms.blacklist.GET excludes that user"},
		{[]authz.Property{{Name: "hadoop.kms.acl.GET", Value: "a"}, {Name: "hadoop.kms.blacklist.GET", Value: "b"}},
			nil, ""},
		{[]authz.Property{{Name: "key.acl.k.ALL", Value: "a"}}, nil, ""},
		{[]authz.Property{{Name: "key.acl.k.ALL", Value: "a"}}, []string{"k"}, ""},
		{[]authz.Property{{Name: "key.acl.keyy.ALL", Value: "a"}}, []string{"key"},
			"key.acl.keyy.ALL: no key has the ACL name \"keyy\"; did you mean key?"},
		{[]authz.Property{{Name: "key.acl.k.READ", Value: "a"}, {Name: "default.key.acl.DECRYPT_EEK", Value: "*"}}, nil,
			"key.acl.k.READ: key \"k\" has its own rule"},
		{[]authz.Property{{Name: "key.acl.k.READ", Value: "a"}, {Name: "default.key.acl.DECRYPT_EEK", Value: " "}},
			nil, ""},
		{[]authz.Property{{Name: "key.acl.k.READ", Value: "a"}, {Name: "default.key.acl.READ", Value: "*"}}, nil, ""},
	} {
		p, _ := authz.Parse(c.props)
		got := p.Lint(c.known)
		switch {
		case c.want == "" && len(got) > 0, c.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], c.want)):
			t.Errorf("%v: %q, want %q", c.props, got, c.want)
		}
	}
}
