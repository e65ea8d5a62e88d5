package authn

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"claviger"
	"claviger/authz"
	"claviger/internal/ldaptest"
	"claviger/secret"
)

// directory is the content of the tests' LDAP server: users, groups with members, a group of groups, and POSIX groups.
// As in Active Directory, a user's entry can name the user's groups; here the attribute is seeAlso.
const directory = `dn: dc=example,dc=com
objectClass: domain
dc: example

dn: ou=people,dc=example,dc=com
objectClass: organizationalUnit
ou: people

dn: ou=groups,dc=example,dc=com
objectClass: organizationalUnit
ou: groups

dn: uid=alice,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
objectClass: posixAccount
uid: alice
cn: Alice
sn: A
uidNumber: 1001
gidNumber: 2001
homeDirectory: /home/alice
seeAlso: cn=analysts,ou=groups,dc=example,dc=com

dn: uid=o\2Cdd (\2A),ou=people,dc=example,dc=com
objectClass: inetOrgPerson
uid: o,dd (*)
cn: Odd
sn: O

dn: cn=analysts,ou=groups,dc=example,dc=com
objectClass: groupOfNames
cn: analysts
member: uid=alice,ou=people,dc=example,dc=com
member: uid=o\2Cdd (\2A),ou=people,dc=example,dc=com

dn: cn=staff,ou=groups,dc=example,dc=com
objectClass: groupOfNames
cn: staff
member: cn=analysts,ou=groups,dc=example,dc=com
member: cn=everybody,ou=groups,dc=example,dc=com

dn: cn=everybody,ou=groups,dc=example,dc=com
objectClass: groupOfNames
cn: everybody
member: cn=staff,ou=groups,dc=example,dc=com

dn: cn=primary,ou=groups,dc=example,dc=com
objectClass: posixGroup
cn: primary
gidNumber: 2001

dn: cn=extra,ou=groups,dc=example,dc=com
objectClass: posixGroup
cn: extra
gidNumber: 2002
memberUid: 1001
`

func ldapConfig(s *ldaptest.Server) LDAPConfig {
	return LDAPConfig{
		URLs: []string{s.URL}, BindUser: ldaptest.User, BindPassword: []byte(ldaptest.Password),
		UserBase: "ou=people,dc=example,dc=com", GroupBase: "ou=groups,dc=example,dc=com",
		UserFilter: "(&(objectClass=inetOrgPerson)(uid={0}))", GroupFilter: "(objectClass=groupOfNames)",
		MemberAttr: "member", GroupName: "cn", PosixUID: "uidNumber", PosixGID: "gidNumber",
		Connect: 10 * time.Second, Timeout: 10 * time.Second,
	}
}

func ldapGroups(t *testing.T, c LDAPConfig, log *slog.Logger) *Groups {
	t.Helper()
	d, err := LDAPGroups(c)
	if err != nil {
		t.Fatal(err)
	}
	return groupsOf(t, d, log)
}

func groupsOf(t *testing.T, d Directory, log *slog.Logger) *Groups {
	t.Helper()
	g, err := NewGroups("fixed=one,two", time.Minute, log)
	if err != nil {
		t.Fatal(err)
	}
	g.SetDirectory(d)
	return g
}

// TestLDAPGroups: the groups of a user in slapd, for each kind of directory. A user name cannot change the filter.
func TestLDAPGroups(t *testing.T) {
	s := ldaptest.Start(t, directory)
	nested, all, memberOf := ldapConfig(s), ldapConfig(s), ldapConfig(s)
	posix, top, upper := ldapConfig(s), ldapConfig(s), ldapConfig(s)
	mixed, nameless := ldapConfig(s), ldapConfig(s)
	mixed.UserFilter = "(&(objectClass=posixAccount)(uid={0}))"
	nameless.GroupName = "description"
	upper.Convert = strings.ToUpper
	nested.Levels, all.Levels = 1, 10
	memberOf.MemberOf = "seeAlso" // slapd has memberOf only with an overlay
	posix.UserFilter, posix.GroupFilter, posix.MemberAttr = "(&(objectClass=posixAccount)(uid={0}))",
		"(objectClass=posixGroup)", "memberUid"
	top.UserBase, top.GroupBase = "dc=example,dc=com", "dc=example,dc=com"
	for name, test := range map[string]struct {
		conf LDAPConfig
		user string
		want string
	}{
		"direct":          {ldapConfig(s), "alice", "analysts"},
		"one level up":    {nested, "alice", "analysts staff"},
		"a cycle":         {all, "alice", "analysts everybody staff"},
		"by seeAlso":      {memberOf, "alice", "analysts"},
		"posix":           {posix, "alice", "extra primary"},
		"posix user":      {mixed, "alice", "analysts"},
		"nameless groups": {nameless, "alice", ""},
		"converted":       {upper, "alice", "ANALYSTS"},
		"one base":        {top, "alice", "analysts"},
		"unknown":         {ldapConfig(s), "mallory", ""},
		"odd name":        {ldapConfig(s), "o,dd (*)", "analysts"},
		"injection":       {ldapConfig(s), "*", ""},
		"injection, more": {ldapConfig(s), "alice)(objectClass=*", ""},
		"static":          {ldapConfig(s), "fixed", "one two"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			got := slices.Sorted(slices.Values(ldapGroups(t, test.conf,
				slog.New(slog.NewTextHandler(&log, nil))).Of(test.user)))
			if !slices.Equal(got, strings.Fields(test.want)) {
				t.Errorf("groups %q, want %q; log: %s", got, test.want, log.String())
			}
			if log.Len() > 0 {
				t.Errorf("unexpected log: %s", log.String())
			}
		})
	}
}

// TestLDAPFaults: after a restart, the server is searched on a new connection. While the server is down, the last
// groups stay. If another server is in the list, it is used.
func TestLDAPFaults(t *testing.T) {
	s := ldaptest.Start(t, directory)
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	g := ldapGroups(t, ldapConfig(s), logger)
	now := time.Now()
	g.now = func() time.Time { return now }
	want := func(when string) {
		t.Helper()
		if got := g.Of("alice"); !slices.Equal(got, []string{"analysts"}) {
			t.Errorf("%s: %q; log: %s", when, got, log.String())
		}
		now = now.Add(time.Hour)
	}
	want("at first")
	s.Stop()
	s.Start(t)
	want("after a restart")
	if log.Len() > 0 {
		t.Errorf("a restart must not be logged: %s", log.String())
	}
	s.Stop()
	want("while it is down")
	if !strings.Contains(log.String(), s.URL) {
		t.Errorf("the log does not name the server: %s", log.String())
	}
	s.Start(t)
	want("up again")

	// One URL has a port without a server. Four rounds, because the first URL is chosen at random.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	for range 4 {
		c := ldapConfig(s)
		c.URLs = []string{"ldap://127.0.0.1:" + strconv.Itoa(port), s.URL}
		g = ldapGroups(t, c, logger)
		want("with a dead server in the list")
	}

	// A blacklist with a group excludes the user while the group cannot be looked up.
	policy, _ := authz.Parse([]authz.Property{{Name: "hadoop.kms.blacklist.DECRYPT_EEK", Value: " analysts"}})
	alice := claviger.Principal{Name: "alice", Short: "alice"}
	s.Stop()
	g = ldapGroups(t, ldapConfig(s), logger)
	if policy.May(authz.DecryptEEK, alice, g.Of) {
		t.Error("a blacklist with alice's group does not exclude alice while LDAP is down")
	}
	if st := g.Stats(); st.Failed == 0 || st.Err == nil {
		t.Errorf("figures of a directory that is down: %+v", st)
	}
	s.Start(t)

	// The password has changed after the start: Reread returns the new one.
	changed := ldapConfig(s)
	changed.BindPassword = []byte("the old password")
	changed.Reread = func() (secret.Bytes, error) { return []byte(ldaptest.Password), nil }
	if got := ldapGroups(t, changed, logger).Of("alice"); len(got) == 0 || slices.Equal(got, authz.GroupsUnknown) {
		t.Errorf("with a password that was changed: %q, %s", got, log.String())
	}
	for _, fault := range []error{nil, errStore} { // no password can be read: the earlier one stays in use
		unread := ldapConfig(s)
		unread.Reread = func() (secret.Bytes, error) { return nil, fault }
		if got := ldapGroups(t, unread, logger).Of("alice"); !slices.Equal(got, []string{"analysts"}) {
			t.Errorf("with a password that cannot be read (%v): %q", fault, got)
		}
	}
	wrong := ldapConfig(s)
	wrong.BindPassword = []byte("wrong password")
	log.Reset()
	if got := ldapGroups(t, wrong, logger).Of("alice"); !slices.Equal(got, authz.GroupsUnknown) {
		t.Errorf("with a wrong password: %q", got)
	}
	if !strings.Contains(log.String(), "bind.user") || strings.Contains(log.String(), "wrong password") {
		t.Errorf("with a wrong password, the log says: %s", log.String())
	}
}

// TestLDAPErrors: a user who does not exist, and groups that cannot be searched, are different errors.
func TestLDAPErrors(t *testing.T) {
	s := ldaptest.Start(t, directory)
	for name, c := range map[string]struct {
		user   string
		change func(*LDAPConfig)
		want   string
	}{
		"unknown user":        {"mallory", func(*LDAPConfig) {}, user.UnknownUserError("mallory").Error()},
		"groups are nowhere":  {"alice", func(c *LDAPConfig) { c.GroupBase = "ou=x,dc=example,dc=com" }, "searching "},
		"users are nowhere":   {"alice", func(c *LDAPConfig) { c.UserBase = "ou=x,dc=example,dc=com" }, "searching "},
		"names are no groups": {"alice", func(c *LDAPConfig) { c.MemberOf = "cn" }, "is not a distinguished name"},
	} {
		conf := ldapConfig(s)
		c.change(&conf)
		groups, err := LDAPGroups(conf)
		if err != nil {
			t.Fatal(err)
		}
		list, err := groups(c.user)
		if len(list) > 0 || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v, want %q", name, list, err, c.want)
		}
	}
}

// TestLDAPRefused: a wrong configuration is refused with the name of its property.
func TestLDAPRefused(t *testing.T) {
	good := LDAPConfig{URLs: []string{"ldaps://h"}, UserFilter: "(uid={0})", GroupFilter: "(objectClass=group)"}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*LDAPConfig){
		"url: it is empty":       func(c *LDAPConfig) { c.URLs = nil },
		`"h:389" is not an LDAP`: func(c *LDAPConfig) { c.URLs = []string{"h:389"} },
		"has no {0}":             func(c *LDAPConfig) { c.UserFilter = "(uid=x)" },
		"search.filter.user: ":   func(c *LDAPConfig) { c.UserFilter = "(uid={0}" },
		"search.filter.group: ":  func(c *LDAPConfig) { c.GroupFilter = "objectClass=" },
		"ldap.base: it must be":  func(c *LDAPConfig) { c.Base = "example.com" },
		"userbase: it must be":   func(c *LDAPConfig) { c.UserBase = "example.com" },
		"groupbase: it must be":  func(c *LDAPConfig) { c.GroupBase = "example.com" },
	} {
		c := good
		change(&c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		if _, err := LDAPGroups(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("LDAPGroups: %v, want %s", err, want)
		}
	}
}

// TestLDAPCure: each error of a lookup that a property causes has a cure, which names the property.
func TestLDAPCure(t *testing.T) {
	result := func(code uint16) error { return ldap.NewError(code, errors.New("refused")) }
	for _, c := range []struct {
		err  error
		want string // "": no cure
	}{
		{x509.UnknownAuthorityError{}, "put the certificate of its authority, or its own if it is self-signed, into " +
			"the truststore of " + LDAPPrefix + "ssl.truststore"},
		{result(ldap.LDAPResultInvalidCredentials), LDAPPrefix + "bind.password.file"},
		{result(ldap.LDAPResultNoSuchObject), LDAPPrefix + "userbase"},
		{result(ldap.LDAPResultInsufficientAccessRights), LDAPPrefix + "bind.user"},
		{result(ldap.LDAPResultSizeLimitExceeded), LDAPPrefix + "directory.search.timeout"},
		{result(ldap.ErrorNetwork), "host and port in " + LDAPPrefix + "url"},
		{result(ldap.LDAPResultBusy), ""},
		{errors.New("another error"), ""},
	} {
		got := LDAPCure(fmt.Errorf("a lookup: %w", c.err))
		if !strings.Contains(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}
