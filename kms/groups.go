package kms

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"claviger/authn"
	"claviger/hadoopconf"
	"claviger/keystore"
	"claviger/secret"
)

// systemMappings are Hadoop's classes that look groups up in the operating system.
// This server has one lookup for all of them.
var systemMappings = []string{"ShellBasedUnixGroupsMapping", "JniBasedUnixGroupsMapping",
	"JniBasedUnixGroupsMappingWithFallback",
	"ShellBasedUnixGroupsNetgroupMapping", "JniBasedUnixGroupsNetgroupMapping",
	"JniBasedUnixGroupsNetgroupMappingWithFallback"}

// NewGroups opens the group mapping, which ACLs and proxy users' rules use.
func NewGroups(conf *hadoopconf.Conf, log *slog.Logger) (*authn.Groups, error) {
	stale, err := conf.Duration("claviger.groups.max.stale", time.Second)
	if err != nil {
		return nil, err
	}
	users, err := conf.Int("claviger.groups.max.users", 1, 1<<24)
	if err != nil {
		return nil, err
	}
	lookups, err := conf.Int("claviger.groups.max.lookups", 1, 1024)
	if err != nil {
		return nil, err
	}
	groups, err := openGroups(conf, log)
	if err != nil {
		return nil, err
	}
	groups.MaxStale(stale)
	groups.Limit(int(users), int(lookups))
	return groups, nil
}

// openGroups reads the mapping's properties.
func openGroups(conf *hadoopconf.Conf, log *slog.Logger) (*authn.Groups, error) {
	ttl, err := conf.Duration("hadoop.security.groups.cache.secs", time.Second)
	if err != nil {
		return nil, err
	}
	groups, err := authn.NewGroups(conf.String(authn.StaticMappingProperty), ttl, log)
	if err != nil {
		return nil, conf.RefuseFor(authn.StaticMappingProperty, err, "%v", err)
	}
	if mappingClass(conf, hadoopconf.GroupMapping) == "CompositeGroupsMapping" {
		d, err := compositeDirectory(conf, log)
		if err != nil {
			return nil, err
		}
		groups.SetDirectory(d)
		return groups, nil
	}
	d, err := groupDirectory(conf, hadoopconf.GroupMapping, log)
	if err != nil {
		return nil, err
	}
	groups.SetDirectory(d)
	return groups, nil
}

// mappingClass returns the class that a property names, without Hadoop's package
// name.
func mappingClass(conf *hadoopconf.Conf, property string) string {
	return strings.TrimPrefix(conf.String(property), "org.apache.hadoop.security.")
}

// compositeDirectory reads the providers of Hadoop's CompositeGroupsMapping.
func compositeDirectory(conf *hadoopconf.Conf, log *slog.Logger) (authn.Directory, error) {
	combined, err := conf.Bool(hadoopconf.GroupProviders + ".combined")
	if err != nil {
		return nil, err
	}
	// Hadoop takes blanks as a part of a name, and ignores a provider whose class it does not
	// find. This server refuses both: users could get the wrong groups.
	names := strings.Split(conf.WithPrefix(hadoopconf.GroupProviders)[""], ",")
	for i, name := range names {
		switch {
		case name == "" || strings.TrimSpace(name) != name:
			return nil, conf.Refuse(hadoopconf.GroupProviders, "it must be names of providers, separated by commas "+
				"without blanks, as in shell,ad")
		case slices.Contains(names[:i], name):
			return nil, conf.Refuse(hadoopconf.GroupProviders,
				fmt.Sprintf("it names %q twice; remove one of them", name))
		}
	}
	var parts []authn.NamedDirectory
	for _, name := range names {
		property := hadoopconf.GroupProviderPrefix + name
		if mappingClass(conf, property) == "" {
			return nil, conf.Refuse(hadoopconf.GroupProviderPrefix+secret.Value(name),
				fmt.Sprintf("%s names the provider %q; set this to its class, or remove it from the list",
					hadoopconf.GroupProviders, secret.Value(name)))
		}
		// Properties of this provider replace those of all providers.
		own := conf.CopyPrefix(property+".", hadoopconf.GroupMapping+".")
		d, err := groupDirectory(own, property, log)
		if err != nil {
			return nil, fmt.Errorf("group mapping provider %s, whose properties begin with %s: %w", name, property, err)
		}
		parts = append(parts, authn.NamedDirectory{Name: name, Directory: d})
	}
	return authn.CompositeGroups(parts, combined), nil
}

// groupDirectory opens the directory of the class that a property names.
func groupDirectory(conf *hadoopconf.Conf, property string, log *slog.Logger) (authn.Directory, error) {
	switch class := mappingClass(conf, property); {
	case class == "" || slices.Contains(systemMappings, class):
		return authn.SystemGroups, nil
	case class == "NullGroupsMapping": // users have only the groups of the static mapping
		return authn.NoGroups, nil
	case class == "LdapGroupsMapping", class == "RuleBasedLdapGroupsMapping":
		c, err := ldapConfig(conf, log)
		if err != nil {
			return nil, err
		}
		if class == "RuleBasedLdapGroupsMapping" {
			if c.Convert, err = conversionRule(conf); err != nil {
				return nil, err
			}
		}
		d, err := authn.LDAPGroups(c)
		if err != nil {
			if placed := conf.WithPlace(err); placed != nil {
				return nil, placed
			}
			return nil, fmt.Errorf("%s in %s: %w", property, conf.Dir(), err)
		}
		return d, nil
	}
	want := "it must be org.apache.hadoop.security.LdapGroupsMapping, RuleBasedLdapGroupsMapping, "
	if property == hadoopconf.GroupMapping {
		want += "CompositeGroupsMapping, "
	}
	return nil, conf.Refuse(property, want+"or one of the classes that use the operating system, such as "+
		"org.apache.hadoop.security.JniBasedUnixGroupsMappingWithFallback")
}

// conversionRule returns how RuleBasedLdapGroupsMapping changes the names of groups;
// nil if it does not.
func conversionRule(conf *hadoopconf.Conf) (func(string) string, error) {
	const property = authn.LDAPPrefix + "conversion.rule"
	switch strings.ToLower(conf.String(property)) {
	case "to_upper":
		return strings.ToUpper, nil
	case "to_lower":
		return strings.ToLower, nil
	case "none":
		return nil, nil
	}
	return nil, conf.Refuse(property, "it must be to_upper, to_lower or none")
}

// ldapConfig reads the properties of Hadoop's LdapGroupsMapping.
func ldapConfig(conf *hadoopconf.Conf, log *slog.Logger) (authn.LDAPConfig, error) {
	const p = authn.LDAPPrefix
	r := &reader{conf: conf}
	c := authn.LDAPConfig{
		URLs:        conf.Strings(p + "url"),
		BindUser:    conf.String(p + "bind.user"),
		Base:        conf.String(p + "base"),
		UserBase:    conf.String(p + "userbase"),
		GroupBase:   conf.String(p + "groupbase"),
		UserFilter:  conf.String(p + "search.filter.user"),
		GroupFilter: conf.String(p + "search.filter.group"),
		MemberAttr:  conf.String(p + "search.attr.member"),
		MemberOf:    conf.String(p + "search.attr.memberof"),
		GroupName:   conf.String(p + "search.attr.group.name"),
		Levels:      int(r.int(p+"search.group.hierarchy.levels", 0, 32)),
		PosixUID:    conf.String(p + "posix.attr.uid.name"),
		PosixGID:    conf.String(p + "posix.attr.gid.name"),
		Connect:     r.duration(p+"connection.timeout.ms", time.Millisecond),
		Timeout:     r.duration(p+"directory.search.timeout", time.Millisecond),
	}
	ssl := r.bool(p + "ssl")
	if r.err != nil {
		return c, r.err
	}
	for i, u := range c.URLs {
		if rest, ok := strings.CutPrefix(u, "ldap://"); ok && ssl {
			c.URLs[i] = "ldaps://" + rest // Hadoop uses TLS at any port
		}
	}
	for _, base := range []*string{&c.UserBase, &c.GroupBase} {
		if *base == "" {
			*base = c.Base
		}
	}
	var err error
	if c.BindPassword, err = passwordOrFile(conf, log, p+"bind.password"); err != nil {
		return c, err
	}
	quiet := slog.New(slog.DiscardHandler) // the start has logged the warnings
	c.Reread = func() (secret.Bytes, error) { return passwordOrFile(conf, quiet, p+"bind.password") }
	if c.BindUser != "" && len(c.BindPassword) == 0 {
		// An LDAP server treats a name without a password as an anonymous login, and accepts it.
		return c, conf.Refuse(p+"bind.user", "set the password of this user, in "+p+
			"bind.password.file or in a credential store")
	}
	c.TLS, err = ldapTLS(conf, log)
	return c, err
}

// ldapTLS trusts the truststore that a property names, or else the system's
// authorities.
func ldapTLS(conf *hadoopconf.Conf, log *slog.Logger) (*tls.Config, error) {
	const property = authn.LDAPPrefix + "ssl.truststore"
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	path, ok := conf.Path(property)
	if !ok {
		return c, nil
	}
	store := keystore.TLSFile{Path: path, PasswordProperty: property + ".password"}
	var err error
	if store.Password, err = passwordOrFile(conf, log, property+".password"); err != nil {
		return nil, err
	}
	if c.RootCAs, err = store.Roots(); err != nil {
		return nil, conf.BadFile(property, err, "")
	}
	return c, nil
}

// maxPasswordFile is the longest password file, in bytes. A password is one line.
const maxPasswordFile = 4096

// passwordOrFile reads a password from a credential store or the property, or else
// from the file that PROPERTY.file names.
func passwordOrFile(conf *hadoopconf.Conf, log *slog.Logger, property string) (secret.Bytes, error) {
	pw, err := password(conf, conf, log, property)
	if err != nil || len(pw) > 0 {
		return pw, err
	}
	path, ok := conf.Path(property + ".file")
	if !ok {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, conf.BadFile(property+".file", err, "")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPasswordFile+1))
	switch {
	case err != nil:
		return nil, conf.BadFile(property+".file", err, "")
	case len(b) > maxPasswordFile:
		return nil, conf.Refuse(property+".file", fmt.Sprintf("%s is longer than %d bytes; is it the right file?", path,
			maxPasswordFile))
	}
	return bytes.TrimSpace(b), nil
}
