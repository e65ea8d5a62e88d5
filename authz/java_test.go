package authz_test

import (
	"net/url"
	"os"
	"strings"
	"testing"

	"claviger"
	"claviger/authz"
)

// TestACLsAsJava compares, for each ACL string and each user, the result with that of Hadoop's AccessControlList.
func TestACLsAsJava(t *testing.T) {
	data, err := os.ReadFile("testdata/acl-java.txt")
	if err != nil {
		t.Fatal(err)
	}
	groups := func(u string) []string {
		return map[string][]string{"gina": {"staff"}, "olga": {"ops", "staff"}, "bobg": {"bob"}}[u]
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		n++
		encoded, admitted, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		text, err := url.QueryUnescape(encoded)
		if err != nil {
			t.Fatal(err)
		}
		acl := authz.ParseACL(text)
		var got []string
		for _, name := range []string{"alice", "bob", "carol", "gina", "olga", "bobg", "staff", "*"} {
			for _, real := range []string{"", "oozie", "hive"} {
				who, label := user(name), name
				if real != "" {
					who.Real, label = &claviger.Principal{Name: real, Short: real}, name+"/"+real
				}
				if acl.Admits(who, groups) {
					got = append(got, label)
				}
			}
		}
		if strings.Join(got, " ") != strings.TrimSpace(admitted) {
			t.Errorf("%q admits\n%s, want\n%s", text, got, admitted)
		}
	}
	if n < 35 {
		t.Errorf("only %d ACLs compared", n)
	}
}
