package hadoopconf

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// warningsOf loads a folder that sets the properties and all guards to 1, and returns the warnings.
func warningsOf(t *testing.T, names ...string) string {
	t.Helper()
	site := ""
	for _, name := range names {
		site += prop(name, "1")
	}
	for _, guard := range guards {
		if !slices.Contains(names, guard) {
			site += prop(guard, "1")
		}
	}
	c, err := LoadKMS(writeConf(t, map[string]string{"kms-site.xml": site}), env(nil))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(c.Warnings(), "\n")
}

// TestHadoopsNames: no name in the core-default.xml of Hadoop 3.4.2 causes a warning about a misspelt name.
func TestHadoopsNames(t *testing.T) {
	data, err := os.ReadFile("testdata/core-default.txt")
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(data))
	if len(names) < 450 {
		t.Fatalf("only %d names", len(names))
	}
	if w := warningsOf(t, names...); strings.Contains(w, "not known") {
		t.Error(w)
	}
}

// TestMisspelt: a misspelt name of a property with a meaning here causes a warning, also if Hadoop has other properties
// with the same prefix. Names of other programs cause no warning.
func TestMisspelt(t *testing.T) {
	const zkTokens = "hadoop.kms.authentication.zk-dt-secret-manager.enable"
	for wrong, right := range map[string]string{
		"clavigr.metastore.uri":                                  MetastoreURI,
		"claviger.metastore_uri":                                 MetastoreURI,
		"calviger.kms.hdfs.superuser":                            HDFSSuperusers,
		"hadoop.kmss.key.provider.uri":                           ProviderURI,
		"hadop.kms.key.provider.uri":                             ProviderURI,
		"hadoop.kmss.proxyuser.hive.hosts":                       "hadoop.kms.proxyuser.hive.hosts",
		"hadoop.secruity.auth_to_local":                          "hadoop.security.auth_to_local",
		"cloudra.hsmkp.initiatemigration":                        InitiateMigration,
		"cloudera.hsmpk.initiatemigration":                       InitiateMigration,
		"hadoop.security.auth_to_locl":                           "hadoop.security.auth_to_local",
		"hadoop.security.auth-to-local":                          "hadoop.security.auth_to_local",
		"hadoop.security.group.maping":                           GroupMapping,
		"hadoop.security.group.mapping.ldap.bind.usr":            "hadoop.security.group.mapping.ldap.bind.user",
		"hadoop.security.groups.cache.sec":                       "hadoop.security.groups.cache.secs",
		"hadoop.security.credential.provider.paths":              "hadoop.security.credential.provider.path",
		"hadoop.security.kms.client.timeout.s":                   "hadoop.security.kms.client.timeout",
		"hadoop.security.authorisation":                          "hadoop.security.authorization",
		"hadoop.ssl.enabled.protocol":                            "hadoop.ssl.enabled.protocols",
		"hadoop.ssl.server.config":                               "hadoop.ssl.server.conf",
		"hadoop.http.idle.timeout.ms":                            "hadoop.http.idle_timeout.ms",
		"hadoop.user.group.static.mapping.override":              "hadoop.user.group.static.mapping.overrides",
		"hadoop.prometheus.endpoint.enable":                      "hadoop.prometheus.endpoint.enabled",
		"hadoop.kms.authentication.kerberos.keytabx":             "hadoop.kms.authentication.kerberos.keytab",
		"hadoop.kms.authentication.kerberos.name.rule":           "hadoop.kms.authentication.kerberos.name.rules",
		"hadoop.kms.authentication.delegation-token.maxlife":     "",
		"hadoop.kms.authentication.delegation-token.scan.sec":    "",
		"hadoop.kms.authentication.zk-dt-secret-manager.enabled": zkTokens,
	} {
		w := warningsOf(t, wrong)
		if !strings.Contains(w, "kms-site.xml:2: property "+wrong+" is not known") {
			t.Errorf("%s: %q", wrong, w)
		}
		if right != "" && !strings.Contains(w, "did you mean "+right+"?") {
			t.Errorf("%s: %q, want %s", wrong, w, right)
		}
	}
	for _, other := range []string{"hadoop.security.acme.plugin", "hadoop.http.authentication.kerberos.name.rules",
		"fs.defaultFSX", "hadoop.proxyuser.hive.hosts", "hadoop.kmip.url", "claim.metastore.uri",
		"dfs.encryption.key.provider.uri",
		"hadoop.ssl.enabled", "hadoop.security.kms.client.encrypted.key.cache.size"} {
		if w := warningsOf(t, other); strings.Contains(w, "not known") {
			t.Errorf("%s: %q", other, w)
		}
	}
	// A known name must not be in the list of names without a meaning here.
	for _, k := range KMS {
		if hadoopHas(k.Name) || slices.Contains(hadoopOnly, k.Name) {
			t.Errorf("%s is in both lists", k.Name)
		}
	}
}
