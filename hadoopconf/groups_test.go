package hadoopconf

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestGroupProviders: a provider's property overrides the property of all providers, errors have its own name, and a
// property without an effect causes a warning.
func TestGroupProviders(t *testing.T) {
	const m = GroupMapping
	dir := writeConf(t, map[string]string{"kms-site.xml": prop(m+".providers", "ad,ad2") +
		prop(m+".ldap.url", "ldap://all") + prop(m+".ldap.base", "dc=all") +
		prop(m+".provider.ad", "LdapGroupsMapping") + prop(m+".provider.ad.ldap.url", "ldap://${ad.host}") +
		prop("ad.host", "h1") +
		prop(m+".provider.ad.ldap.search.group.hierarchy.levels", "x") +
		prop(m+".provider.ad2.ldap.url", "ldap://two") +
		prop(m+".provider.ad.ldap.ulr", "y") + prop(m+".provider.old.ldap.url", "z")})
	c, err := LoadKMS(dir, env(nil))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "kms-site.xml")
	want := []string{
		file + ":10: property " + m + ".provider.ad.ldap.ulr is not known and has no effect; did you mean " + m +
			".provider.ad.ldap.url?",
		file + ":11: property " + m + ".provider.old.ldap.url has no effect: " + m +
			".providers does not list its provider",
	}
	if got := c.Warnings(); !slices.Equal(got, want) {
		t.Errorf("warnings\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	own := c.CopyPrefix(GroupProviderPrefix+"ad.", m+".")
	for name, want := range map[string]string{m + ".ldap.url": "ldap://h1", m + ".ldap.base": "dc=all"} {
		if got := own.String(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := c.String(m + ".ldap.url"); got != "ldap://all" {
		t.Errorf("the original was changed to %q", got)
	}
	if _, err := own.Int(m+".ldap.search.group.hierarchy.levels", 0, 9); err == nil ||
		!strings.Contains(err.Error(), "provider.ad.ldap.search") {
		t.Errorf("%v does not have the property's name in the file", err)
	}
}
