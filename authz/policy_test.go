package authz_test

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/authz"
)

// readACLs is a minimal reader of *-site.xml; the real one is in package hadoopconf.
func readACLs(path string) ([]authz.Property, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var conf struct {
		Property []struct {
			Name  string `xml:"name"`
			Value string `xml:"value"`
		} `xml:"property"`
	}
	if err := xml.Unmarshal(data, &conf); err != nil {
		return nil, err
	}
	var props []authz.Property
	for _, p := range conf.Property {
		props = append(props, authz.Property{Name: p.Name, Value: p.Value})
	}
	return props, nil
}

func user(name string) claviger.Principal { return claviger.Principal{Name: name, Short: name} }

func noGroups(string) []string { return nil }

// mayKey calls MayKey, and collects the rights that the rules refused.
func mayKey(p *authz.Policy, aclName string, op authz.KeyOp, who string) (may bool, refused []authz.KeyOp) {
	may = p.MayKey(aclName, op, user(who), noGroups, func(op authz.KeyOp) { refused = append(refused, op) })
	return may, refused
}

// opOf has the operation-level rights that Hadoop's KMS needs for an audited operation.
var opOf = map[string][]authz.Op{
	"CREATE_KEY": {authz.Create}, "DELETE_KEY": {authz.Delete}, "ROLL_NEW_VERSION": {authz.Rollover},
	"INVALIDATE_CACHE": {authz.Rollover, authz.Delete}, "GET_KEYS": {authz.GetKeys},
	"GET_METADATA":    {authz.GetMetadata},
	"GET_KEY_VERSION": {authz.Get}, "GET_CURRENT_KEY": {authz.Get}, "GET_KEY_VERSIONS": {authz.Get},
	"GENERATE_EEK": {authz.GenerateEEK}, "DECRYPT_EEK": {authz.DecryptEEK},
	"REENCRYPT_EEK": {authz.GenerateEEK}, "REENCRYPT_EEK_BATCH": {authz.GenerateEEK},
}

// keyOpOf has the key-level right for an audited operation.
var keyOpOf = map[string]authz.KeyOp{
	"CREATE_KEY": authz.KeyManagement, "DELETE_KEY": authz.KeyManagement, "ROLL_NEW_VERSION": authz.KeyManagement,
	"INVALIDATE_CACHE": authz.KeyManagement, "GET_METADATA": authz.KeyRead, "GET_KEY_VERSION": authz.KeyRead,
	"GET_CURRENT_KEY": authz.KeyRead, "GET_KEY_VERSIONS": authz.KeyRead, "GENERATE_EEK": authz.KeyGenerateEEK,
	"DECRYPT_EEK": authz.KeyDecryptEEK, "REENCRYPT_EEK": authz.KeyGenerateEEK,
	"REENCRYPT_EEK_BATCH": authz.KeyGenerateEEK,
}

// TestAsRecorded compares each decision in the audit log of a real Java KMS with our decision by the same
// kms-acls.xml.
func TestAsRecorded(t *testing.T) {
	props, err := readACLs("testdata/acl-kms-acls.xml")
	if err != nil {
		t.Fatal(err)
	}
	p, warnings := authz.Parse(props)
	if len(warnings) > 0 {
		t.Errorf("warnings: %q", warnings)
	}
	f, err := os.Open("testdata/acl-kms-audit.log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	line := regexp.MustCompile(`(OK|UNAUTHORIZED)\[op=(\w+)(?:, key=(\w+))?, user=(\w+)`)
	allowed, denied := 0, 0
	for s := bufio.NewScanner(f); s.Scan(); {
		m := line.FindStringSubmatch(s.Text())
		if m == nil {
			continue // an ERROR line
		}
		op, key, who := m[2], m[3], user(m[4])
		mayOp := slices.ContainsFunc(opOf[op], func(o authz.Op) bool { return p.May(o, who, noGroups) })
		switch {
		case m[1] == "OK" && key == "other":
			// The key other was created with key.acl.name=ka, so the rules of ka apply.
			key = "ka"
			fallthrough
		case m[1] == "OK":
			allowed++
			// The key-level rules are not applied for a missing key, or if there was nothing to re-encrypt.
			applied := key != "" && key != "nokey" && !strings.Contains(s.Text(), "reencrypted 0 keys")
			may := !applied || p.MayKey(key, keyOpOf[op], who, noGroups, nil)
			if !mayOp || !may {
				t.Errorf("denied (op level %v, key level %v): %s", mayOp, may, s.Text())
			}
		case op == "READ" || op == "MANAGEMENT" || op == "ALL" ||
			(op == "GENERATE_EEK" || op == "DECRYPT_EEK") && mayOp:
			denied++
			if _, refused := mayKey(p, key, authz.KeyOp(op), who.Short); !slices.Contains(refused, authz.KeyOp(op)) {
				t.Errorf("allowed at key level: %s", s.Text())
			}
		case strings.HasPrefix(op, "CREATE") || strings.HasPrefix(op, "ROLL"):
			denied++
			// The users mat and creator sent material, which needs a second right.
			if mayOp && p.May(authz.SetKeyMaterial, who, noGroups) {
				t.Errorf("allowed: %s", s.Text())
			}
		default:
			denied++
			if mayOp {
				t.Errorf("allowed: %s", s.Text())
			}
		}
	}
	if allowed < 15 || denied < 40 {
		t.Errorf("only %d allowed and %d denied decisions compared", allowed, denied)
	}
	// acl-create-unlisted-key: "User [alice] is not authorized to create key !!"
	if may, refused := mayKey(p, "unlisted", authz.KeyManagement, "alice"); may || len(refused) > 0 {
		t.Errorf("MANAGEMENT of an unlisted key: %v, refused %v", may, refused)
	}
}

// TestParse checks which users a rule's value admits.
func TestParse(t *testing.T) {
	groups := func(u string) []string {
		return map[string][]string{"gina": {"staff", "ops"}, "hdfs": {"hadoop"}}[u]
	}
	through := func(name, real string) claviger.Principal {
		p, r := user(name), user(real)
		p.Real = &r
		return p
	}
	type check struct {
		who  claviger.Principal
		want bool
	}
	for name, c := range map[string]struct {
		value  string
		checks []check
	}{
		"everybody":           {"*", []check{{user("x"), true}}},
		"everybody, padded":   {"  * ", []check{{user("x"), true}}},
		"everybody by groups": {"alice *", []check{{user("x"), true}}},
		"nobody":              {"", []check{{user("x"), false}, {user(""), false}}},
		"nobody, a space":     {" ", []check{{user("x"), false}, {user(""), false}}},
		"users": {"alice,bob", []check{{user("alice"), true}, {user("bob"), true}, {user("carol"), false},
			{user("Alice"), false}, {user("alice,bob"), false}}},
		"groups": {" staff", []check{{user("gina"), true}, {user("staff"), false}, {user("hdfs"), false}}},
		"both": {"alice ops,hadoop", []check{{user("alice"), true}, {user("gina"), true}, {user("hdfs"), true},
			{user("bob"), false}}},
		"space after comma": {"alice, hdfs", []check{{user("alice"), true}, {user("hdfs"), false}}},
		"* in a list":       {"alice,*", []check{{user("alice"), true}, {user("bob"), false}, {user("*"), true}}},
		"real user": {"alice,~oozie", []check{{through("bob", "oozie"), true}, {user("oozie"), false},
			{user("bob"), false}, {through("bob", "hive"), false}, {through("oozie", "hive"), false}}},
		"newlines in list": {"alice,\n\tbob\n", []check{{user("bob"), true}, {user("alice"), true}}},
	} {
		p, _ := authz.Parse([]authz.Property{{Name: "hadoop.kms.acl.GET", Value: c.value}})
		black, _ := authz.Parse([]authz.Property{{Name: "hadoop.kms.blacklist.GET", Value: c.value}})
		for _, a := range c.checks {
			if got := p.May(authz.Get, a.who, groups); got != a.want {
				t.Errorf("%s: %q as ACL for %q: %v", name, c.value, a.who.Short, got)
			}
			if got := black.May(authz.Get, a.who, groups); got == a.want {
				t.Errorf("%s: %q as blacklist for %q: %v", name, c.value, a.who.Short, got)
			}
		}
	}
}

// TestKeyRules: a key's own rules, the default rules and the whitelist: which of them decides.
func TestKeyRules(t *testing.T) {
	p, _ := authz.Parse([]authz.Property{
		{Name: "key.acl.a.b.c.READ", Value: "alice"}, // the key a.b.c
		{Name: "key.acl.shut.ALL", Value: ""},
		{Name: "key.acl.open.ALL", Value: "alice"},
		{Name: "default.key.acl.READ", Value: "*"},
		{Name: "default.key.acl.ALL", Value: "*"},
		{Name: "whitelist.key.acl.DECRYPT_EEK", Value: "spark"},
		{Name: "whitelist.key.acl.ALL", Value: "*"},
	})
	for _, c := range []struct {
		key           string
		op            authz.KeyOp
		who           string
		present, want bool
	}{
		{"a.b.c", authz.KeyRead, "alice", true, true},
		{"a.b.c", authz.KeyRead, "bob", true, false},             // the default does not apply
		{"a.b.c", authz.KeyManagement, "alice", true, false},     // other operations are closed
		{"a.b.c", authz.KeyDecryptEEK, "spark", true, true},      // the whitelist applies
		{"shut", authz.KeyRead, "alice", true, false},            //
		{"shut", authz.KeyDecryptEEK, "spark", true, true},       //
		{"a.b", authz.KeyRead, "bob", true, true},                // another name: the default applies
		{"a.b", authz.KeyDecryptEEK, "bob", true, false},         //
		{"a.b", authz.KeyManagement, "alice", false, false},      // denied without a rule
		{"a.b", authz.KeyAll, "alice", false, false},             // ALL is ignored in default and whitelist
		{"other", authz.KeyGenerateEEK, "alice", false, false},   //
		{"other", authz.KeyDecryptEEK, "spark", true, true},      //
		{"other", authz.KeyOp("NONSENSE"), "x", false, false},    //
		{"", authz.KeyRead, "anybody", true, true},               //
		{"a.b.c", authz.KeyOp("NONSENSE"), "alice", true, false}, //
	} {
		got, refused := mayKey(p, c.key, c.op, c.who)
		if got != c.want {
			t.Errorf("MayKey(%q, %s, %s) = %v", c.key, c.op, c.who, got)
		}
		// If there is no rule for a right, it is denied without a refusal by a rule.
		var want []authz.KeyOp
		if c.present && !c.want {
			want = []authz.KeyOp{c.op, authz.KeyAll}
		}
		if !slices.Equal(refused, want) {
			t.Errorf("MayKey(%q, %s, %s) refused %v, want %v", c.key, c.op, c.who, refused, want)
		}
	}
	// The rule of ALL admits a user whom the right's own rule refuses. MayKey reports that refusal.
	may, refused := mayKey(p, "open", authz.KeyRead, "alice")
	if !may || !slices.Equal(refused, []authz.KeyOp{authz.KeyRead}) {
		t.Errorf("by ALL: %v, refused %v", may, refused)
	}
}

// TestDefaults: an empty file admits all users to operations and none to keys. Without a policy, nothing is allowed.
func TestDefaults(t *testing.T) {
	empty, warnings := authz.Parse(nil)
	if len(warnings) != 0 {
		t.Errorf("warnings: %q", warnings)
	}
	all := []authz.Op{authz.Create, authz.Delete, authz.Rollover, authz.Get, authz.GetKeys, authz.GetMetadata,
		authz.SetKeyMaterial, authz.GenerateEEK, authz.DecryptEEK}
	for _, op := range all {
		if !empty.May(op, user("x"), nil) {
			t.Errorf("%s is closed with an empty file", op)
		}
		for _, none := range []*authz.Policy{nil, {}} {
			if none.May(op, user("x"), nil) {
				t.Errorf("%s is open without a policy", op)
			}
		}
	}
	if empty.May(authz.Op("NONSENSE"), user("x"), nil) {
		t.Error("an operation that does not exist is open")
	}
	for _, p := range []*authz.Policy{nil, {}, empty} {
		if may, refused := mayKey(p, "k", authz.KeyRead, "x"); may || len(refused) > 0 {
			t.Errorf("a key without a rule: %v, refused %v", may, refused)
		}
	}
	// If a name is given twice, the later value counts.
	twice, _ := authz.Parse([]authz.Property{{Name: "hadoop.kms.acl.GET", Value: "alice"},
		{Name: "hadoop.kms.acl.GET", Value: "bob"}})
	if twice.May(authz.Get, user("alice"), nil) || !twice.May(authz.Get, user("bob"), nil) {
		t.Error("the earlier of two values counts")
	}
}

// TestWarnings: the warning for each kind of doubtful rule.
func TestWarnings(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"hadoop.kms.acl.DECRYPT", "*", "did you mean DECRYPT_EEK?"},
		{"hadoop.kms.acl.Create", "*", "did you mean CREATE?"},
		{"hadoop.kms.blacklist.DECRYPTEEK", "hdfs", "did you mean DECRYPT_EEK?"},
		{"hadoop.kms.blacklists.DECRYPT_EEK", "hdfs", "did you mean hadoop.kms.blacklist.DECRYPT_EEK?"},
		{"key.acl.k.RAED", "alice", "did you mean READ?"},
		{"key.acl.READ", "alice", "names no key"},
		{"key.acl..READ", "alice", "names no key"},
		{"keys.acl.k.READ", "alice", "did you mean key.acl.k.READ?"},
		{"default.key.acl.ALL", "*", "ALL is not allowed here"},
		{"whitelist.key.acl.ALL", "*", "ALL is not allowed here"},
		{"default.key.acl.MANAGE", "*", "did you mean MANAGEMENT?"},
		{"defaults.key.acl.READ", "*", "did you mean default.key.acl.READ?"},
		{"hadoop.kms.http.port", "9600", "is not a property of kms-acls.xml"},
		{"hadoop.kms.acl.GET", "alice, bob", "(bob) are groups"},
		{"hadoop.kms.acl.GET", "alice bob carol", `"bob carol" is taken as the name of one group`},
		{"hadoop.kms.acl.GET", "\n   alice", "begins on a new line"},
		{"hadoop.kms.acl.GET", "alice,*", "* inside a list admits nobody"},
		{"hadoop.kms.acl.GET", "alice staff,*", "* inside a list admits nobody"},
		{"hadoop.kms.acl.GET", "bob,alice@EXAMPLE.COM",
			`"alice@EXAMPLE.COM" is a principal, but rules need the short names that auth_to_local makes; ` +
				`write alice`},
		{"hadoop.kms.acl.GET", "~hive/h1@EXAMPLE.COM", `"hive/h1@EXAMPLE.COM" is a principal`},
		{"key.acl.k.ALL", `EXAMPLE\bob`, "has a domain, but rules need short names of users; write bob"},
		{"hadoop.kms.acl.GET", "@ops",
			`groups come after the first space of the value, without @ or %: write "USER,USER ops"`},
		{"hadoop.kms.acl.GET", "alice @ops",
			`"@ops" is taken as a group's name, with its first character; write ops`},
		{"hadoop.kms.acl.GET", "svc_*", `"svc_*" is taken as the name of one user: there are no wildcards`},
		{"hadoop.kms.acl.GET", "alice ops*", `"ops*" is taken as the name of one group: there are no wildcards`},
		{"key.acl.fin*.ALL", "alice", `applies only to the key "fin*": there are no wildcards in the names of keys`},
		{"key.acl.fin*.MIGRATE", "alice", `applies only to the key "fin*"`},
		{"hadoop.kms.acl.GET", "${admins}", "the variable is not set"},
		{"hadoop.kms.acl.GET", "alice,bob staff,ops", ""},
		{"hadoop.kms.acl.GET", " staff", ""},
		{"hadoop.kms.acl.GET", "*", ""},
		{"hadoop.kms.acl.GET", " ", ""},
	} {
		_, warnings := authz.Parse([]authz.Property{{Name: c.name, Value: c.value}})
		switch {
		case c.want == "" && len(warnings) == 0:
		case c.want != "" && len(warnings) == 1 && strings.Contains(warnings[0], c.want) &&
			strings.HasPrefix(warnings[0], c.name+": "):
		default:
			t.Errorf("%s=%q: warnings %q, want %q", c.name, c.value, warnings, c.want)
		}
	}
	// In a file with many other properties, the warning about a misspelt one comes first.
	var many []authz.Property
	for i := range 1500 {
		many = append(many, authz.Property{Name: fmt.Sprintf("dfs.setting%d", i), Value: "1"})
	}
	many = append(many, authz.Property{Name: "hadoop.kms.blacklist.DECRYPTEEK", Value: "hdfs"})
	_, warnings := authz.Parse(many)
	if len(warnings) != 12 || !strings.Contains(warnings[0], "did you mean DECRYPT_EEK?") ||
		!strings.HasPrefix(warnings[11], "1490 more are not") {
		t.Errorf("of 1500 foreign properties: %q", warnings)
	}
	// A misspelt rule admits nobody.
	p, _ := authz.Parse([]authz.Property{{Name: "key.acl.k.read", Value: "*"},
		{Name: "default.key.acl.READS", Value: "*"}})
	if may, refused := mayKey(p, "k", authz.KeyRead, "x"); may || len(refused) > 0 {
		t.Errorf("a misspelt operation has a rule: %v, refused %v", may, refused)
	}
}
