package authn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/user"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"

	"claviger"
	"claviger/secret"
)

// LDAPPrefix is the prefix of the properties of Hadoop's LdapGroupsMapping.
const LDAPPrefix = "hadoop.security.group.mapping.ldap."

// LDAPConfig is Hadoop's LdapGroupsMapping, by its properties under LDAPPrefix.
type LDAPConfig struct {
	URLs         []string     // url: ldap://host[:port] or ldaps://; several are tried in turn
	TLS          *tls.Config  // for ldaps://
	BindUser     string       // bind.user; "" binds anonymously
	BindPassword secret.Bytes // bind.password, or the content of its file or credential store
	// Reread reads the password again for each connection. If Reread is nil, fails, or returns an empty password, the
	// earlier password is used.
	Reread      func() (secret.Bytes, error)
	Base        string              // base
	UserBase    string              // userbase, else base
	GroupBase   string              // groupbase, else base
	UserFilter  string              // search.filter.user; {0} is the user's name
	GroupFilter string              // search.filter.group
	MemberAttr  string              // search.attr.member, of a group
	GroupName   string              // search.attr.group.name, of a group
	MemberOf    string              // search.attr.memberof, of a user; "": search for groups
	Convert     func(string) string // conversion.rule, of a group's name; nil: no conversion
	Levels      int                 // search.group.hierarchy.levels: how many levels of groups of groups count
	PosixUID    string              // posix.attr.uid.name
	PosixGID    string              // posix.attr.gid.name
	Connect     time.Duration       // timeout of a connection
	Timeout     time.Duration       // of one search
}

// maxLDAPGroups is the maximum number of groups in the result of one search. It is larger than the number of
// groups of any user.
const maxLDAPGroups = 10_000

// Check refuses a configuration that cannot work.
func (c *LDAPConfig) Check() error {
	if len(c.URLs) == 0 {
		return claviger.BadProperty(LDAPPrefix+"url", nil,
			"it is empty; it must name a server, as in ldaps://ldap.example.com")
	}
	for _, u := range c.URLs {
		if !strings.HasPrefix(u, "ldap://") && !strings.HasPrefix(u, "ldaps://") {
			return claviger.BadProperty(LDAPPrefix+"url", nil,
				"%q is not an LDAP server; write ldap://HOST:PORT or ldaps://HOST:PORT", u)
		}
	}
	for name, filter := range map[string]string{"search.filter.user": strings.ReplaceAll(c.UserFilter, "{0}", "x"),
		"search.filter.group": c.GroupFilter} {
		if _, err := ldap.CompileFilter(filter); err != nil {
			return claviger.BadProperty(LDAPPrefix+name, err, "%q is not an LDAP filter: %v", filter, err)
		}
	}
	if !strings.Contains(c.UserFilter, "{0}") {
		return claviger.BadProperty(LDAPPrefix+"search.filter.user", nil,
			"%q has no {0}, so it would find the same entry for each user; write {0} in the place of the user's name",
			c.UserFilter)
	}
	for _, base := range []struct{ name, dn string }{{"base", c.Base}, {"userbase", c.UserBase},
		{"groupbase", c.GroupBase}} {
		if _, err := ldap.ParseDN(base.dn); err != nil {
			return claviger.BadProperty(LDAPPrefix+base.name, err,
				"it must be a distinguished name, as in dc=example,dc=com: %v", err)
		}
	}
	return nil
}

// ldapDirectory searches LDAP servers for groups. It has one connection, and does one search at a time. That is
// enough, because Groups remembers the answers.
type ldapDirectory struct {
	conf  LDAPConfig
	posix bool // the filters name the classes of RFC 2307

	mu   sync.Mutex
	conn *ldap.Conn
	next int // index of the URL to try first
}

// LDAPGroups returns the directory of LDAP servers. The first lookup makes the connection.
func LDAPGroups(conf LDAPConfig) (Directory, error) {
	if err := conf.Check(); err != nil {
		return nil, err
	}
	d := &ldapDirectory{
		conf:  conf,
		posix: strings.Contains(conf.GroupFilter, "posixGroup") && strings.Contains(conf.UserFilter, "posixAccount"),
		next:  rand.IntN(len(conf.URLs)), //nolint:gosec // only spreads the nodes over the servers
	}
	return d.groups, nil
}

// groups returns the groups of a user. If a search fails on an old connection, groups repeats it on a new one.
func (d *ldapDirectory) groups(name string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	newConn := d.conn == nil
	for {
		if d.conn == nil {
			if err := d.connect(); err != nil {
				return nil, err
			}
		}
		groups, err := d.query(name)
		if d.conf.Convert != nil {
			for i, g := range groups {
				groups[i] = d.conf.Convert(g)
			}
		}
		var unknown user.UnknownUserError
		if err == nil || errors.As(err, &unknown) {
			return groups, err
		}
		_ = d.conn.Close() // the connection may be broken
		d.conn = nil
		if newConn {
			return nil, err
		}
		newConn = true
	}
}

// connect connects to the first server that answers, beginning with next.
func (d *ldapDirectory) connect() error {
	var errs []error
	for range d.conf.URLs {
		url := d.conf.URLs[d.next]
		conn, err := d.dial(url)
		if err == nil {
			d.conn = conn
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", url, err))
		d.next = (d.next + 1) % len(d.conf.URLs)
	}
	return fmt.Errorf("no LDAP server in %surl can be used: %w", LDAPPrefix, errors.Join(errs...))
}

// LDAPCure says which property to correct after an error of a lookup; "" if the error is of no such kind.
func LDAPCure(err error) string {
	const p = LDAPPrefix
	if cure := claviger.CertificateCure(err, "the truststore of "+p+"ssl.truststore"); cure != "" {
		return cure
	}
	var of *ldap.Error
	if !errors.As(err, &of) {
		return ""
	}
	switch of.ResultCode {
	case ldap.LDAPResultInvalidCredentials:
		return fmt.Sprintf("correct %sbind.user, or the password in the file of %[1]sbind.password.file", p)
	case ldap.LDAPResultNoSuchObject, ldap.LDAPResultInvalidDNSyntax, ldap.LDAPResultReferral:
		return fmt.Sprintf("correct %sbase, or %[1]suserbase and %[1]sgroupbase: the server has no such entry", p)
	case ldap.LDAPResultInsufficientAccessRights, ldap.LDAPResultStrongAuthRequired, ldap.LDAPResultOperationsError:
		return fmt.Sprintf("let the user of %sbind.user search there; the server may refuse a search without a bind, "+
			"or without TLS (ldaps:// in %[1]surl)", p)
	case ldap.LDAPResultTimeLimitExceeded, ldap.LDAPResultSizeLimitExceeded, ldap.LDAPResultAdminLimitExceeded:
		return fmt.Sprintf("narrow %sbase or the filters %[1]ssearch.filter.user and %[1]ssearch.filter.group, or "+
			"raise %[1]sdirectory.search.timeout", p)
	case ldap.ErrorNetwork:
		return fmt.Sprintf("correct host and port in %surl, and check that the server runs and that this host "+
			"reaches it", p)
	}
	return ""
}

func (d *ldapDirectory) dial(url string) (*ldap.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d.conf.Connect)
	defer cancel()
	deadline, _ := ctx.Deadline()
	conn, err := ldap.DialURL(url, ldap.DialWithDialer(&net.Dialer{Deadline: deadline}),
		ldap.DialWithTLSConfig(d.conf.TLS))
	if err != nil {
		return nil, err
	}
	conn.SetTimeout(d.conf.Timeout)
	if d.conf.BindUser == "" {
		return conn, nil
	}
	if d.conf.Reread != nil {
		if password, err := d.conf.Reread(); err == nil && len(password) > 0 {
			d.conf.BindPassword = password
		}
	}
	if err := conn.Bind(d.conf.BindUser, string(d.conf.BindPassword)); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("binding as %sbind.user: %w", LDAPPrefix, err)
	}
	return conn, nil
}

// search finds entries below a base. The caller has escaped all values in the filter.
func (d *ldapDirectory) search(base, filter string, limit int, attrs ...string) ([]*ldap.Entry, error) {
	seconds := int((d.conf.Timeout + time.Second - 1) / time.Second)
	res, err := d.conn.Search(ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, limit,
		seconds, false, filter, attrs, nil))
	if err != nil {
		if ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) && res != nil && limit == 1 {
			return res.Entries, nil // the caller wants one entry, even if there are more
		}
		return nil, fmt.Errorf("searching %s below %q: %w", filter, base, err)
	}
	return res.Entries, nil
}

// query finds the user, then the user's groups, as LdapGroupsMapping.doGetGroups does.
func (d *ldapDirectory) query(name string) ([]string, error) {
	attrs := []string{"1.1"} // no attribute
	switch {
	case d.conf.MemberOf != "":
		attrs = []string{d.conf.MemberOf}
	case d.posix:
		attrs = []string{d.conf.PosixUID, d.conf.PosixGID}
	}
	entries, err := d.search(d.conf.UserBase, strings.ReplaceAll(d.conf.UserFilter, "{0}", ldap.EscapeFilter(name)), 1,
		attrs...)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, user.UnknownUserError(name)
	}
	entry := entries[0]
	if d.conf.MemberOf != "" {
		return d.groupNames(entry.GetAttributeValues(d.conf.MemberOf))
	}
	clause := memberClause(d.conf.MemberAttr, entry.DN)
	if d.posix {
		clause = "(|" + memberClause(d.conf.PosixGID, entry.GetAttributeValue(d.conf.PosixGID)) +
			memberClause(d.conf.MemberAttr, entry.GetAttributeValue(d.conf.PosixUID)) + ")"
	}
	return d.searchGroups(clause)
}

func memberClause(attr, value string) string {
	return "(" + attr + "=" + ldap.EscapeFilter(value) + ")"
}

// searchGroups collects the groups that a clause finds, then the groups that contain those, up to conf.Levels levels.
func (d *ldapDirectory) searchGroups(clause string) ([]string, error) {
	seen := make(map[string]bool) // DNs
	var names []string
	for level := 0; clause != "" && level <= d.conf.Levels; level++ {
		entries, err := d.search(d.conf.GroupBase, "(&"+d.conf.GroupFilter+clause+")", maxLDAPGroups, d.conf.GroupName)
		if err != nil {
			return nil, err
		}
		var parents strings.Builder
		for _, e := range entries {
			if seen[e.DN] {
				continue
			}
			seen[e.DN] = true
			if n := e.GetAttributeValue(d.conf.GroupName); n != "" && !slices.Contains(names, n) {
				names = append(names, n)
			}
			parents.WriteString(memberClause(d.conf.MemberAttr, e.DN))
		}
		if clause = ""; parents.Len() > 0 {
			clause = "(|" + parents.String() + ")"
		}
	}
	return names, nil
}

// groupNames returns the names in the DNs of groups, as LdapGroupsMapping does with search.attr.memberof: from the
// first RDN, the value of the attribute search.attr.group.name.
func (d *ldapDirectory) groupNames(dns []string) ([]string, error) {
	var names []string
	for _, text := range dns {
		dn, err := ldap.ParseDN(text)
		if err != nil {
			return nil, fmt.Errorf("the group %q is not a distinguished name: %w", text, err)
		}
		if len(dn.RDNs) == 0 {
			continue
		}
		for _, a := range dn.RDNs[0].Attributes {
			if strings.EqualFold(a.Type, d.conf.GroupName) {
				names = append(names, a.Value)
			}
		}
	}
	return names, nil
}
