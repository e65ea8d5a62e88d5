package kms

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger/authz"
	"claviger/hadoopconf"
	"claviger/internal/ldaptest"
	"claviger/kms/kmstest"
)

const groupsLDIF = `dn: dc=example,dc=com
objectClass: domain
dc: example

dn: ou=people,dc=example,dc=com
objectClass: organizationalUnit
ou: people

dn: uid=root,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
uid: root
cn: Root
sn: R

dn: uid=alice,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
uid: alice
cn: Alice
sn: A

dn: ou=staff,dc=example,dc=com
objectClass: organizationalUnit
ou: staff

dn: cn=analysts,ou=staff,dc=example,dc=com
objectClass: groupOfNames
cn: analysts
member: uid=alice,ou=people,dc=example,dc=com
member: uid=root,ou=people,dc=example,dc=com

dn: cn=all,ou=staff,dc=example,dc=com
objectClass: groupOfNames
cn: all
member: cn=analysts,ou=staff,dc=example,dc=com

dn: ou=projects,dc=example,dc=com
objectClass: organizationalUnit
ou: projects

dn: cn=apollo,ou=projects,dc=example,dc=com
objectClass: groupOfNames
cn: apollo
member: uid=alice,ou=people,dc=example,dc=com
`

// hadoopGroups runs Hadoop's own group mapping.
type hadoopGroups struct{ jars, classes string }

// newHadoopGroups compiles the program that prints Hadoop's groups. Without Hadoop's jars
// it skips the test.
func newHadoopGroups(t *testing.T) hadoopGroups {
	t.Helper()
	jars := os.Getenv("CLAVIGER_HADOOP_JARS")
	if jars == "" {
		if os.Getenv("CLAVIGER_REQUIRE_HADOOP") == "1" {
			t.Fatal("CLAVIGER_HADOOP_JARS is not set: name the folder with Hadoop's jars")
		}
		t.Skip("CLAVIGER_HADOOP_JARS does not name a folder with Hadoop's jars")
	}
	h := hadoopGroups{jars, t.TempDir()}
	if out, err := exec.CommandContext(t.Context(), "javac", "-cp", jars+"/*", "-d", h.classes,
		"testdata/java/GroupsOf.java").CombinedOutput(); err != nil {
		t.Fatalf("javac: %v\n%s", err, out)
	}
	return h
}

// of returns the groups of users by the core-site.xml in dir, a line for each user.
func (h hadoopGroups) of(t *testing.T, dir string, users ...string) string {
	t.Helper()
	args := append([]string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", dir + ":" + h.classes + ":" +
		h.jars + "/*", "GroupsOf"}, users...)
	cmd := exec.CommandContext(t.Context(), "java", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("java: %v\n%s", err, stderr.String())
	}
	return string(out)
}

// ourGroups returns the groups of users by the kms-site.xml in dir, in the form of
// hadoopGroups; "?" if they are not known.
func ourGroups(t *testing.T, dir string, users ...string) string {
	t.Helper()
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := NewGroups(conf, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, u := range users {
		of := groups.Of(u)
		if slices.Equal(of, authz.GroupsUnknown) {
			of = []string{"?"}
		}
		fmt.Fprintf(&b, "%s: %s\n", u, strings.Join(slices.Sorted(slices.Values(of)), " "))
	}
	return b.String()
}

// TestCompositeGroupsMapping: a composite mapping gives the same groups as Hadoop's own class
// for the same file, unless a provider fails: Hadoop then leaves out its groups.
func TestCompositeGroupsMapping(t *testing.T) {
	hadoop := newHadoopGroups(t)
	s := ldaptest.Start(t, groupsLDIF)
	password := filepath.Join(t.TempDir(), "bind.password")
	kmstest.WriteFile(t, password, ldaptest.Password+"\n")
	const m = hadoopconf.GroupMapping
	common := map[string]string{
		hadoopconf.ProviderURI: "jceks://file@/k.jceks", m: compositeClass,
		m + ".ldap.url": s.URL, m + ".ldap.bind.user": ldaptest.User, m + ".ldap.bind.password.file": password,
		m + ".ldap.base": "dc=example,dc=com", m +
			".ldap.search.filter.user": "(&amp;(objectClass=inetOrgPerson)(uid={0}))",
		m + ".ldap.search.filter.group": "(objectClass=groupOfNames)", m +
			".ldap.groupbase": "ou=staff,dc=example,dc=com",
		m + ".provider.shell":              "org.apache.hadoop.security.ShellBasedUnixGroupsMapping",
		m + ".provider.staff":              "org.apache.hadoop.security.LdapGroupsMapping",
		m + ".provider.projects":           "org.apache.hadoop.security.RuleBasedLdapGroupsMapping",
		m + ".provider.projects.ldap.base": "dc=example,dc=com", m +
			".provider.projects.ldap.groupbase": "ou=projects,dc=example,dc=com",
		m + ".provider.projects.ldap.conversion.rule": "to_upper",
	}
	users := []string{"alice", "root", "mallory"}
	for name, test := range map[string]struct {
		own          map[string]string
		want, hadoop string // of alice, root and mallory; hadoop is empty if it is the same
	}{
		"combined": {
			map[string]string{m + ".providers": "shell,staff,projects", m +
				".provider.staff.ldap.search.group.hierarchy.levels": "1"},
			"alice: APOLLO all analysts\nroot: all analysts root\nmallory: \n", "",
		},
		"first": {map[string]string{m + ".providers": "projects,shell,staff", m +
			".providers.combined": "false"}, "alice: APOLLO\nroot: root\nmallory: \n", ""},
		"first, other order": {map[string]string{m + ".providers": "staff,projects", m +
			".providers.combined": "false"},
			"alice: analysts\nroot: analysts\nmallory: \n", ""},
		"provider fails": {
			map[string]string{m + ".providers": "staff,projects", m +
				".provider.projects.ldap.url": "ldap://127.0.0.1:1"},
			"alice: ?\nroot: ?\nmallory: ?\n", "alice: analysts\nroot: analysts\nmallory: \n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			props := maps.Clone(common)
			maps.Copy(props, test.own)
			kmstest.WriteSite(t, dir, props)
			if got := ourGroups(t, dir, users...); got != test.want {
				t.Errorf("groups\n%swant\n%s", got, test.want)
			}
			if err := os.Rename(filepath.Join(dir, "kms-site.xml"), filepath.Join(dir, "core-site.xml")); err != nil {
				t.Fatal(err)
			}
			want := test.hadoop
			if want == "" {
				want = test.want
			}
			if got := hadoop.of(t, dir, users...); got != want {
				t.Errorf("Hadoop's groups\n%swant\n%s", got, want)
			}
		})
	}
}
