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

// What can't be a group mapping is refused at start, in words that name the
// property.
func TestGroupMapping(t *testing.T) {
	const (
		ldap   = "org.apache.hadoop.security.LdapGroupsMapping"
		system = "org.apache.hadoop.security.ShellBasedUnixGroupsMapping"
	)
	composite := func(own map[string]string) map[string]string {
		props := map[string]string{hadoopconf.GroupMapping: compositeClass, hadoopconf.GroupProviders: "shell"}
		for name, value := range own {
			props[hadoopconf.GroupProviderPrefix+name] = value
		}
		return props
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "bind.password")
	if err := os.WriteFile(file, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		props map[string]string
		want  string // of the error; "": none
	}{
		"none": {nil, ""},
		"nobody's": {map[string]string{hadoopconf.GroupMapping: "org.apache.hadoop.security.NullGroupsMapping",
			authn.StaticMappingProperty: "alice=staff"}, ""},
		"no mapping": {map[string]string{hadoopconf.GroupMapping: "org.apache.hadoop.security.NullGroupsMapping",
			authn.StaticMappingProperty: "=staff"}, authn.StaticMappingProperty},
		"system": {map[string]string{
			hadoopconf.GroupMapping: "org.apache.hadoop.security.JniBasedUnixGroupsMappingWithFallback"}, ""},
		"ldap": {map[string]string{hadoopconf.GroupMapping: ldap, authn.LDAPPrefix + "url": "ldap://h",
			authn.LDAPPrefix + "bind.user": "cn=r", authn.LDAPPrefix + "bind.password.file": file}, ""},
		"rule-based ldap": {map[string]string{
			hadoopconf.GroupMapping: "org.apache.hadoop.security.RuleBasedLdapGroupsMapping", authn.LDAPPrefix +
				"url": "ldap://h", authn.LDAPPrefix + "conversion.rule": "to_Upper"}, ""},
		"composite":       {composite(map[string]string{"shell": system, "shell.ldap.url": "ldap://h"}), ""},
		"composite, ldap": {composite(map[string]string{"shell": ldap, "shell.ldap.url": "ldap://h"}), ""},
		"no provider":     {map[string]string{hadoopconf.GroupMapping: compositeClass}, hadoopconf.GroupProviders},
		"blank provider": {map[string]string{hadoopconf.GroupMapping: compositeClass,
			hadoopconf.GroupProviders: "shell, ad"}, "without blanks"},
		"twice": {map[string]string{hadoopconf.GroupMapping: compositeClass,
			hadoopconf.GroupProviders: "shell,shell", hadoopconf.GroupProviderPrefix + "shell": system}, "twice"},
		"no class": {composite(nil), hadoopconf.GroupProviderPrefix + "shell is not set"},
		"in each other": {composite(map[string]string{"shell": compositeClass}), hadoopconf.GroupProviderPrefix +
			"shell has the value"},
		"combined": {map[string]string{hadoopconf.GroupMapping: compositeClass, hadoopconf.GroupProviders +
			".combined": "yes"}, "true or false"},
		"provider's own": {composite(map[string]string{"shell": ldap, "shell.ldap.url": "h:389"}),
			"group mapping provider shell"},
		"provider's rule": {composite(map[string]string{"shell": ldap, "shell.ldap.url": "ldap://h",
			"shell.ldap.search.group.hierarchy.levels": "x"}), hadoopconf.GroupProviderPrefix +
			"shell.ldap.search.group"},
		"no such rule": {map[string]string{
			hadoopconf.GroupMapping: "org.apache.hadoop.security.RuleBasedLdapGroupsMapping", authn.LDAPPrefix +
				"url": "ldap://h", authn.LDAPPrefix + "conversion.rule": "upper"}, "to_upper, to_lower or none"},
		"class":  {map[string]string{hadoopconf.GroupMapping: "com.example.Mapping"}, "com.example.Mapping"},
		"no url": {map[string]string{hadoopconf.GroupMapping: ldap}, "ldap.url: it is empty"},
		"filter": {map[string]string{hadoopconf.GroupMapping: ldap, authn.LDAPPrefix + "url": "ldap://h",
			authn.LDAPPrefix + "search.filter.user": "(uid={0}"}, "search.filter.user"},
		"levels": {map[string]string{hadoopconf.GroupMapping: ldap, authn.LDAPPrefix +
			"search.group.hierarchy.levels": "many"}, "hierarchy.levels"},
		"no password": {map[string]string{hadoopconf.GroupMapping: ldap, authn.LDAPPrefix + "url": "ldap://h",
			authn.LDAPPrefix + "bind.user": "cn=r"}, "bind.password.file"},
		"no password yet": {map[string]string{hadoopconf.GroupMapping: ldap, authn.LDAPPrefix + "url": "ldap://h",
			authn.LDAPPrefix + "bind.user": "cn=r", authn.LDAPPrefix + "bind.password.file": file + "x"}, file + "x"},
		"no trust": {map[string]string{hadoopconf.GroupMapping: ldap, authn.LDAPPrefix + "url": "ldaps://h",
			authn.LDAPPrefix + "ssl.truststore": file + "x"}, file + "x"},
	} {
		t.Run(name, func(t *testing.T) {
			props := map[string]string{hadoopconf.ProviderURI: "jceks://file@/k.jceks"}
			for k, v := range test.props {
				props[k] = v
			}
			kmstest.WriteSite(t, dir, props)
			conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
			if err != nil {
				t.Fatal(err)
			}
			_, err = NewGroups(conf, slog.New(slog.DiscardHandler))
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(),
				test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI: "jceks://file@/k.jceks", hadoopconf.GroupMapping: ldap, authn.LDAPPrefix +
			"url": "ldap://a:1,ldap://b", authn.LDAPPrefix + "ssl": "true", authn.LDAPPrefix + "base": "dc=x",
		authn.LDAPPrefix + "groupbase": "ou=g", authn.LDAPPrefix + "bind.user": "cn=r", authn.LDAPPrefix +
			"bind.password.file": file,
	})
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
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
