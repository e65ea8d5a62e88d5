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
	URLs         []string     // url, several are tried in turn: ldap://host[:port] or ldaps://
	TLS          *tls.Config  // of ldaps://
	BindUser     string       // bind.user; "" binds anonymously
	BindPassword secret.Bytes // bind.password, or of its file or credential store
	// Reread reads the password anew for each connection; nil, an error or an empty one
	// leaves the last one.
	Reread      func() (secret.Bytes, error)
	Base        string              // base
	UserBase    string              // userbase, else base
	GroupBase   string              // groupbase, else base
	UserFilter  string              // search.filter.user; {0} is the user's name
	GroupFilter string              // search.filter.group
	MemberAttr  string              // search.attr.member, of a group
	GroupName   string              // search.attr.group.name, of a group
	MemberOf    string              // search.attr.memberof, of a user; "": groups are searched
	Convert     func(string) string // of a group's name, nil: none (conversion.rule)
	Levels      int                 // search.group.hierarchy.levels: how far groups of groups count
	PosixUID    string              // posix.attr.uid.name
	PosixGID    string              // posix.attr.gid.name
	Connect     time.Duration
	Timeout     time.Duration // of one search
}

// maxLDAPGroups is how many groups one search may bring. Nobody is in as many.
const maxLDAPGroups = 10_000

// Check refuses what can't be searched with.
func (c *LDAPConfig) Check() error {
	if len(c.URLs) == 0 {
		return claviger.BadProperty(LDAPPrefix+"url", nil,
			"it is empty; it must name a server, as in ldaps://ldap.example.com")
	}
	for _, u := range c.URLs {
		if !strings.HasPrefix(u, "ldap://") && !strings.HasPrefix(u, "ldaps://") {
			return claviger.BadProperty(LDAPPrefix+"url", nil,
				"%q is no LDAP server; write ldap://HOST:PORT or ldaps://HOST:PORT", u)
		}
	}
	for name, filter := range map[string]string{"search.filter.user": strings.ReplaceAll(c.UserFilter, "{0}", "x"),
		"search.filter.group": c.GroupFilter} {
		if _, err := ldap.CompileFilter(filter); err != nil {
			return claviger.BadProperty(LDAPPrefix+name, err, "%q is no LDAP filter: %v", filter, err)
		}
	}
	if !strings.Contains(c.UserFilter, "{0}") {
		return claviger.BadProperty(LDAPPrefix+"search.filter.user", nil,
			"%q has no {0}, which stands for the user's name: it would find the same entry for everybody", c.UserFilter)
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

// ldapDirectory asks LDAP servers for groups. It keeps one connection, and asks
// one question after the other on it: answers are kept by Groups.
type ldapDirectory struct {
	conf  LDAPConfig
	posix bool // the filters speak of RFC 2307's classes

	mu   sync.Mutex
	conn *ldap.Conn
	next int // the URL to begin with
}

// LDAPGroups is the directory of LDAP servers. The connection is made when it is first
// needed.
func LDAPGroups(conf LDAPConfig) (Directory, error) {
	if err := conf.Check(); err != nil {
		return nil, err
	}
	d := &ldapDirectory{
		conf:  conf,
		posix: strings.Contains(conf.GroupFilter, "posixGroup") && strings.Contains(conf.UserFilter, "posixAccount"),
		next:  rand.IntN(len(conf.URLs)), //nolint:gosec // nodes are to begin with different servers
	}
	return d.groups, nil
}

// groups asks, a second time over a new connection where the first is broken.
func (d *ldapDirectory) groups(name string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fresh := d.conn == nil
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
		_ = d.conn.Close() // it may be what is broken
		d.conn = nil
		if fresh {
			return nil, err
		}
		fresh = true
	}
}

// connect takes the first server that answers.
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
	return fmt.Errorf("no LDAP server of %surl serves: %w", LDAPPrefix, errors.Join(errs...))
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
		if now, err := d.conf.Reread(); err == nil && len(now) > 0 {
			d.conf.BindPassword = now
		}
	}
	if err := conn.Bind(d.conf.BindUser, string(d.conf.BindPassword)); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("binding as %sbind.user: %w", LDAPPrefix, err)
	}
	return conn, nil
}

// search finds entries below a base. What the filter holds of others' making has
// been escaped.
func (d *ldapDirectory) search(base, filter string, limit int, attrs ...string) ([]*ldap.Entry, error) {
	seconds := int((d.conf.Timeout + time.Second - 1) / time.Second)
	res, err := d.conn.Search(ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree,
		ldap.NeverDerefAliases, limit, seconds,
		false, filter, attrs, nil))
	if err != nil {
		if ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) && res != nil && limit == 1 {
			return res.Entries, nil // one was asked for
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
	who := entries[0]
	if d.conf.MemberOf != "" {
		return d.named(who.GetAttributeValues(d.conf.MemberOf))
	}
	clause := memberClause(d.conf.MemberAttr, who.DN)
	if d.posix {
		clause = "(|" + memberClause(d.conf.PosixGID, who.GetAttributeValue(d.conf.PosixGID)) +
			memberClause(d.conf.MemberAttr, who.GetAttributeValue(d.conf.PosixUID)) + ")"
	}
	return d.climb(clause)
}

func memberClause(attr, value string) string {
	return "(" + attr + "=" + ldap.EscapeFilter(value) + ")"
}

// climb collects the groups that a clause finds, then the groups of these, as many
// levels up as are configured.
func (d *ldapDirectory) climb(clause string) ([]string, error) {
	seen := make(map[string]bool) // DNs
	var names []string
	for level := 0; clause != "" && level <= d.conf.Levels; level++ {
		entries, err := d.search(d.conf.GroupBase, "(&"+d.conf.GroupFilter+clause+")", maxLDAPGroups, d.conf.GroupName)
		if err != nil {
			return nil, err
		}
		var above strings.Builder
		for _, e := range entries {
			if seen[e.DN] {
				continue
			}
			seen[e.DN] = true
			if n := e.GetAttributeValue(d.conf.GroupName); n != "" && !slices.Contains(names, n) {
				names = append(names, n)
			}
			above.WriteString(memberClause(d.conf.MemberAttr, e.DN))
		}
		if clause = ""; above.Len() > 0 {
			clause = "(|" + above.String() + ")"
		}
	}
	return names, nil
}

// named takes the names out of the DNs of groups, as LdapGroupsMapping does with
// search.attr.memberof: the part of the first RDN that search.attr.group.name
// says.
func (d *ldapDirectory) named(dns []string) ([]string, error) {
	var names []string
	for _, text := range dns {
		dn, err := ldap.ParseDN(text)
		if err != nil {
			return nil, fmt.Errorf("the group %q is no distinguished name: %w", text, err)
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
