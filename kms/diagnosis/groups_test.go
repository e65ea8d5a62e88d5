package diagnosis

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"os"
	"strings"
	"testing"

	"claviger/doctor"
	"claviger/hadoopconf"
	"claviger/internal/ldaptest"
	"claviger/kms"
	"claviger/kms/kmstest"
)

const directoryLDIF = `dn: dc=example,dc=com
objectClass: domain
dc: example

dn: uid=alice,dc=example,dc=com
objectClass: inetOrgPerson
uid: alice
cn: Alice
sn: A

dn: uid=bob,dc=example,dc=com
objectClass: inetOrgPerson
uid: bob
cn: Bob
sn: B

dn: cn=analysts,dc=example,dc=com
objectClass: groupOfNames
cn: analysts
member: uid=alice,dc=example,dc=com
`

// directory gives the site a group mapping by LDAP, and properties in addition.
func directory(s *ldaptest.Server, asUser string, pairs ...string) func(*lab) {
	return func(l *lab) {
		const m = hadoopconf.GroupMapping
		l.o.AsUser = asUser
		kmstest.WriteFile(l.t, l.path("bind.password"), ldaptest.Password+"\n")
		maps.Copy(l.props, map[string]string{m: "org.apache.hadoop.security.LdapGroupsMapping",
			m + ".ldap.url": s.URL, m + ".ldap.bind.user": ldaptest.User, m + ".ldap.base": "dc=example,dc=com",
			m + ".ldap.bind.password.file":  l.path("bind.password"),
			m + ".ldap.search.filter.user":  "(&amp;(objectClass=inetOrgPerson)(uid={0}))",
			m + ".ldap.search.filter.group": "(objectClass=groupOfNames)"})
		for i := 0; i < len(pairs); i += 2 {
			l.props[m+pairs[i]] = pairs[i+1]
		}
		l.write()
	}
}

// groupFailures returns failures of the group mapping.
func groupFailures(s *ldaptest.Server) []failure {
	return []failure{
		{"no directory", "D-groups-user", false, directory(s, "alice", ".ldap.url", "ldap://127.0.0.1:1")},
		{"a wrong password", "D-groups-user", false, directory(s, "alice",
			".ldap.bind.user", "cn=other,dc=example,dc=com")},
		{"another base", "D-groups-user", false, directory(s, "alice", ".ldap.base", "dc=example,dc=org")},
		{"an unknown user", "D-groups-user", false, directory(s, "carol")},
		{"a user without groups", "D-groups-user", false, directory(s, "bob")},
		{"an unknown user of the name service", "D-groups-user", false, func(l *lab) {
			l.o.AsUser = "no.such-user"
		}},
		{"no URL", "D-groups-user", false, directory(s, "alice", ".ldap.url", "")},
		{"slow", "D-groups-user", false, func(l *lab) {
			directory(s, "alice")(l)
			replace(l.t, &groupsLatency, 0)
		}},
	}
}

// TestGroupFailures provokes each finding about groups at a real LDAP server.
func TestGroupFailures(t *testing.T) {
	provokeAll(t, "groups.golden", groupFailures(ldaptest.Start(t, directoryLDIF)))
}

// TestLateDirectory: a directory that accepts a connection and does not answer is a failure at the end of the check's
// time, with the properties that bound a lookup.
func TestLateDirectory(t *testing.T) {
	late, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = late.Close() }) // it ends the lookup, too
	l := newLab(t)
	directory(&ldaptest.Server{URL: "ldap://" + late.Addr().String()}, "alice")(l)
	conf, err := hadoopconf.LoadKMS(l.dir, os.LookupEnv)
	l.must(err)
	s := &site{options: &l.o, conf: conf, service: &kms.Service{Conf: conf, Log: slog.New(slog.DiscardHandler)}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	list := s.groupsUser(ctx)
	if len(list) != 1 || list[0].Status != doctor.Failure || !strings.Contains(list[0].Measured, "in time") ||
		!strings.Contains(list[0].Cure, hadoopconf.GroupMapping+".ldap.connection.timeout.ms and ") {
		t.Errorf("%+v", list)
	}
}

// TestHealthyGroups: the groups of a user are found in LDAP.
func TestHealthyGroups(t *testing.T) {
	l := newLab(t)
	directory(ldaptest.Start(t, directoryLDIF), "alice")(l)
	text, err := l.check("D-groups-user")
	if err != nil || !strings.Contains(text, "ok       D-groups-user  alice is in analysts; the lookup took") {
		t.Errorf("%v\n%s", err, text)
	}
}
