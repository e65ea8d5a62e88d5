package hadoop

import (
	"path/filepath"
	"testing"
)

// Security is the realm of a secured cluster and its clients.
type Security struct {
	Realm    string
	Krb5Conf string   // file of the realm's configuration
	Env      []string // of its processes
	// Keytab holds the keys of nn/localhost, dn/localhost and HTTP/localhost.
	Keytab string
	// Keystore is a PKCS#12 file, with KeystorePassword, with the certificate of the web servers of the NameNode
	// and the DataNode, for localhost.
	Keystore, KeystorePassword string
	SSLClient                  Conf     // ssl-client.xml, where the key provider is behind https
	Flags                      []string // of every JVM
}

// AuthToLocal are the rules of a secured cluster: its servers become the superuser, and every other principal of
// the realm becomes its first name.
const AuthToLocal = "RULE:[2:$1/$2](nn/localhost)s/.*/" + HDFSUser + "/\n" +
	"RULE:[2:$1/$2](dn/localhost)s/.*/" + HDFSUser + "/\n" +
	"DEFAULT"

// NewSecureCluster is like NewCluster, with Kerberos everywhere, service authorization, block access tokens, and a
// DataNode without privileged ports, which starts only if it authenticates its clients with SASL and uses no plain
// HTTP.
func NewSecureCluster(t testing.TB, keyProvider string, s *Security, extra Conf) *Cluster {
	t.Helper()
	const host = "localhost" // as in the principals
	principal := func(service string) string { return service + "/" + host + "@" + s.Realm }
	return newCluster(t, host, keyProvider, Conf{
		"hadoop.security.authentication":            "kerberos",
		"hadoop.security.authorization":             "true",
		"hadoop.security.auth_to_local":             AuthToLocal,
		"dfs.namenode.kerberos.principal":           principal("nn"),
		"dfs.namenode.keytab.file":                  s.Keytab,
		"dfs.datanode.kerberos.principal":           principal("dn"),
		"dfs.datanode.keytab.file":                  s.Keytab,
		"dfs.web.authentication.kerberos.principal": principal("HTTP"),
		"dfs.web.authentication.kerberos.keytab":    s.Keytab,
		"dfs.block.access.token.enable":             "true",
		"dfs.data.transfer.protection":              "authentication",
		"dfs.http.policy":                           "HTTPS_ONLY",
		"dfs.namenode.https-address":                host + ":0",
		"dfs.datanode.https.address":                host + ":0",
	}.With(extra), s)
}

// sslServer returns the ssl-server.xml of the web servers.
func (s *Security) sslServer() Conf {
	return Conf{
		"ssl.server.keystore.location":    s.Keystore,
		"ssl.server.keystore.type":        "pkcs12",
		"ssl.server.keystore.password":    s.KeystorePassword,
		"ssl.server.keystore.keypassword": s.KeystorePassword,
	}
}

// flags returns the flags of every JVM in the realm.
func (s *Security) flags() []string {
	return append([]string{"-Djava.security.krb5.conf=" + s.Krb5Conf}, s.Flags...)
}

// env returns the environment of a process without tickets, in particular without those of the user who runs the
// test.
func (s *Security) env() []string {
	return append(append([]string{}, s.Env...),
		"KRB5CCNAME=FILE:"+filepath.Join(filepath.Dir(s.Krb5Conf), "no-tickets"))
}

// SecureClient starts a client of a secured cluster with the tickets in a file, or without tickets. env is added
// to the environment of the realm.
func (c *Cluster) SecureClient(name, tickets string, env ...string) *Client {
	c.t.Helper()
	env = append(c.security.env(), env...)
	if tickets != "" {
		env = append(env, "KRB5CCNAME=FILE:"+tickets)
	}
	return StartClient(c.t, name, ProgramOptions{Conf: c.Conf(), SSL: c.security.SSLClient, Flags: c.security.flags(),
		Env: env})
}
