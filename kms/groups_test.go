package kms

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/authn"
	"claviger/hadoopconf"
	"claviger/kms/kmstest"
)

const compositeClass = "org.apache.hadoop.security.CompositeGroupsMapping"

const (
	ldapClass   = "org.apache.hadoop.security.LdapGroupsMapping"
	systemClass = "org.apache.hadoop.security.ShellBasedUnixGroupsMapping"
)

// groupMapping is the configuration of a group mapping, and a part of the error of NewGroups; "" means no error.
type groupMapping struct {
	props map[string]string
	want  string
}

// bindPassword writes a file with a password.
func bindPassword(t *testing.T, dir string) (file string) {
	t.Helper()
	file = filepath.Join(dir, "bind.password")
	kmstest.WriteFile(t, file, "s3cret\n")
	return file
}

// groupsConf loads a configuration with properties of a group mapping.
func groupsConf(t *testing.T, dir string, mapping map[string]string) *hadoopconf.Conf {
	t.Helper()
	props := map[string]string{hadoopconf.ProviderURI: "jceks://file@/k.jceks"}
	for k, v := range mapping {
		props[k] = v
	}
	kmstest.WriteSite(t, dir, props)
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// wantGroupMappings opens each mapping and compares the error.
func wantGroupMappings(t *testing.T, dir string, mappings map[string]groupMapping) {
	t.Helper()
	for name, test := range mappings {
		t.Run(name, func(t *testing.T) {
			_, err := NewGroups(groupsConf(t, dir, test.props), slog.New(slog.DiscardHandler))
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(),
				test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// TestCompositeMappingErrors: a composite mapping that cannot be used stops the start, and
// the error names the property.
func TestCompositeMappingErrors(t *testing.T) {
	composite := func(own map[string]string) map[string]string {
		props := map[string]string{hadoopconf.GroupMapping: compositeClass, hadoopconf.GroupProviders: "shell"}
		for name, value := range own {
			props[hadoopconf.GroupProviderPrefix+name] = value
		}
		return props
	}
	wantGroupMappings(t, t.TempDir(), map[string]groupMapping{
		"composite":       {composite(map[string]string{"shell": systemClass, "shell.ldap.url": "ldap://h"}), ""},
		"composite, ldap": {composite(map[string]string{"shell": ldapClass, "shell.ldap.url": "ldap://h"}), ""},
		"no provider":     {map[string]string{hadoopconf.GroupMapping: compositeClass}, hadoopconf.GroupProviders},
		"blank provider": {map[string]string{hadoopconf.GroupMapping: compositeClass,
			hadoopconf.GroupProviders: "shell, ad"}, "without blanks"},
		"provider twice": {map[string]string{hadoopconf.GroupMapping: compositeClass,
			hadoopconf.GroupProviders: "shell,shell", hadoopconf.GroupProviderPrefix + "shell": systemClass}, "twice"},
		"no class": {composite(nil), hadoopconf.GroupProviderPrefix + "shell is not set"},
		"composite in composite": {composite(map[string]string{"shell": compositeClass}),
			hadoopconf.GroupProviderPrefix + "shell has the value"},
		"combined": {map[string]string{hadoopconf.GroupMapping: compositeClass, hadoopconf.GroupProviders +
			".combined": "yes"}, "true or false"},
		"provider's error": {composite(map[string]string{"shell": ldapClass, "shell.ldap.url": "h:389"}),
			"group mapping provider shell"},
		"provider's rule": {composite(map[string]string{"shell": ldapClass, "shell.ldap.url": "ldap://h",
			"shell.ldap.search.group.hierarchy.levels": "x"}), hadoopconf.GroupProviderPrefix +
			"shell.ldap.search.group"},
	})
}

// TestGroupMappingErrors: a group mapping that cannot be used stops the start, and the
// error names the property.
func TestGroupMappingErrors(t *testing.T) {
	dir := t.TempDir()
	file := bindPassword(t, dir)
	wantGroupMappings(t, dir, map[string]groupMapping{
		"none": {nil, ""},
		"static only": {map[string]string{hadoopconf.GroupMapping: "org.apache.hadoop.security.NullGroupsMapping",
			authn.StaticMappingProperty: "alice=staff"}, ""},
		"bad static mapping": {map[string]string{
			hadoopconf.GroupMapping:     "org.apache.hadoop.security.NullGroupsMapping",
			authn.StaticMappingProperty: "=staff"}, authn.StaticMappingProperty},
		"system": {map[string]string{
			hadoopconf.GroupMapping: "org.apache.hadoop.security.JniBasedUnixGroupsMappingWithFallback"}, ""},
		"ldap": {map[string]string{hadoopconf.GroupMapping: ldapClass, authn.LDAPPrefix + "url": "ldap://h",
			authn.LDAPPrefix + "bind.user": "cn=r", authn.LDAPPrefix + "bind.password.file": file}, ""},
		"rule-based ldap": {map[string]string{
			hadoopconf.GroupMapping: "org.apache.hadoop.security.RuleBasedLdapGroupsMapping", authn.LDAPPrefix +
				"url": "ldap://h", authn.LDAPPrefix + "conversion.rule": "to_Upper"}, ""},
		"no such rule": {map[string]string{
			hadoopconf.GroupMapping: "org.apache.hadoop.security.RuleBasedLdapGroupsMapping", authn.LDAPPrefix +
				"url": "ldap://h", authn.LDAPPrefix + "conversion.rule": "upper"}, "to_upper, to_lower or none"},
		"unknown class": {map[string]string{hadoopconf.GroupMapping: "com.example.Mapping"}, "com.example.Mapping"},
		"no url":        {map[string]string{hadoopconf.GroupMapping: ldapClass}, "ldap.url: it is empty"},
		"filter": {map[string]string{hadoopconf.GroupMapping: ldapClass, authn.LDAPPrefix + "url": "ldap://h",
			authn.LDAPPrefix + "search.filter.user": "(uid={0}"}, "search.filter.user"},
		"levels": {map[string]string{hadoopconf.GroupMapping: ldapClass, authn.LDAPPrefix +
			"search.group.hierarchy.levels": "many"}, "hierarchy.levels"},
		"no password": {map[string]string{hadoopconf.GroupMapping: ldapClass, authn.LDAPPrefix + "url": "ldap://h",
			authn.LDAPPrefix + "bind.user": "cn=r"}, "bind.password.file"},
		"missing password file": {map[string]string{hadoopconf.GroupMapping: ldapClass,
			authn.LDAPPrefix + "url":       "ldap://h",
			authn.LDAPPrefix + "bind.user": "cn=r", authn.LDAPPrefix + "bind.password.file": file + "x"}, file + "x"},
		"missing truststore": {map[string]string{hadoopconf.GroupMapping: ldapClass,
			authn.LDAPPrefix + "url":            "ldaps://h",
			authn.LDAPPrefix + "ssl.truststore": file + "x"}, file + "x"},
	})
}

// TestLDAPConfig: Hadoop's properties of LDAP become an LDAP configuration, and a changed password file is read again.
func TestLDAPConfig(t *testing.T) {
	dir := t.TempDir()
	file := bindPassword(t, dir)
	conf := groupsConf(t, dir, map[string]string{
		hadoopconf.GroupMapping: ldapClass, authn.LDAPPrefix + "url": "ldap://a:1,ldap://b",
		authn.LDAPPrefix + "ssl": "true", authn.LDAPPrefix + "base": "dc=x",
		authn.LDAPPrefix + "groupbase": "ou=g", authn.LDAPPrefix + "bind.user": "cn=r",
		authn.LDAPPrefix + "bind.password.file": file,
	})
	c, err := ldapConfig(conf, slog.New(slog.DiscardHandler))
	if err != nil || strings.Join(c.URLs, " ") != "ldaps://a:1 ldaps://b" || c.UserBase != "dc=x" ||
		c.GroupBase != "ou=g" || string(c.BindPassword) != "s3cret" || c.MemberAttr != "member" {
		t.Errorf("%v: %v %q %q %q", err, c.URLs, c.UserBase, c.GroupBase, c.MemberAttr)
	}
	if err := os.WriteFile(file, []byte("changed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if now, err := c.Reread(); err != nil || string(now) != "changed" {
		t.Errorf("the password of the next connection: %q, %v", string(now), err)
	}
}
