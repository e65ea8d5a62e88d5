package twonodes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/internal/certtest"
	"claviger/internal/kdctest"
	"claviger/internal/pgtest"
	"claviger/internal/zktest"
	"claviger/test/hadoop"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }

// The names of the nodes, which only Java's clients and curl resolve, and their addresses. A kms:// URI has one
// port for all nodes.
var hosts = []struct{ name, address string }{
	{"kms1.example.test", "127.0.0.1"},
	{"kms2.example.test", "127.0.0.2"},
}

// site is the key management of a cluster.
type site struct {
	t     *testing.T
	kdc   *kdctest.KDC
	users string // keytab of alice, who uses keys, keyadmin, who makes keys, and yarn, who renews tokens
	certs *certtest.Authority
	hsm   hadoop.HSM
	port  int
	nodes [2]*node
	flags []string // of JVMs
}

// node is one of the two nodes.
type node struct {
	*hadoop.KMS
	s           *site
	name, audit string
	conf        string // folder
	binary      string // "" is this release
}

// newSite starts both nodes with further properties.
func newSite(t *testing.T, kdc *kdctest.KDC, more hadoop.Conf) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, kdc: kdc, users: filepath.Join(kdc.Dir, "users.keytab"), certs: certtest.New(t, dir),
		hsm: hadoop.NewHSM(t), port: hadoop.FreePorts(t, 1)[0]}
	store := pgtest.Database(t)
	// With this file, Java uses no other source of names, so the file must have the name of this machine, too.
	self, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	names := "127.0.0.1 localhost " + self + "\n"
	for i, h := range hosts {
		n := &node{s: s, name: h.name, conf: t.TempDir()}
		n.audit = filepath.Join(n.conf, "audit.log")
		s.nodes[i] = n
		hadoop.Conf{"hadoop.security.authentication": "kerberos"}.Write(t, filepath.Join(n.conf, "core-site.xml"))
		hadoop.Conf{
			"hadoop.kms.http.host":                          h.address,
			"hadoop.kms.ssl.enabled":                        "true",
			"hadoop.kms.authentication.type":                "kerberos",
			"hadoop.kms.authentication.kerberos.keytab":     filepath.Join(kdc.Dir, "http.keytab"),
			"hadoop.kms.authentication.kerberos.principal":  "*",
			"hadoop.kms.authentication.kerberos.name.rules": hadoop.AuthToLocal,
			"hadoop.kms.key.provider.uri":                   s.hsm.URI,
			"hadoop.kms.audit.aggregation.window.ms":        "100",
			"claviger.metastore.uri":                        store,
			"claviger.audit.file":                           n.audit,
		}.With(more).Write(t, filepath.Join(n.conf, "kms-site.xml"))
		hadoop.OpenACLs().Write(t, filepath.Join(n.conf, "kms-acls.xml"))
		hadoop.Conf{"ssl.server.keystore.location": s.certs.Issue(h.name, h.name)}.Write(
			t, filepath.Join(n.conf, "ssl-server.xml"))
		names += h.address + " " + h.name + "\n"
	}
	file := filepath.Join(dir, "hosts")
	if err := os.WriteFile(file, []byte(names), 0o600); err != nil {
		t.Fatal(err)
	}
	s.flags = []string{"-Xmx192m", "-Djdk.net.hosts.file=" + file}
	for _, n := range s.nodes {
		n.start()
	}
	return s
}

// start starts a node, also after it has ended.
func (n *node) start() {
	n.s.t.Helper()
	n.KMS = hadoop.StartClaviger(n.s.t, hadoop.ClavigerOptions{Conf: n.conf, Port: n.s.port, Binary: n.binary,
		Env: append(n.s.kdc.Env(), n.s.hsm.Env...)})
}

// base returns the URL of the node, with its name.
func (n *node) base() string { return fmt.Sprintf("https://%s:%d/kms", n.name, n.s.port) }

// uri returns the URI of both nodes for Hadoop's clients.
func (s *site) uri() string {
	return fmt.Sprintf("kms://https@%s;%s:%d/kms", hosts[0].name, hosts[1].name, s.port)
}

// client returns the options of a Hadoop program that uses both nodes.
func (s *site) client() hadoop.ProgramOptions {
	return hadoop.ProgramOptions{
		Conf: hadoop.Conf{
			"hadoop.security.authentication":    "kerberos",
			"hadoop.security.key.provider.path": s.uri(),
			// Each EDEK is requested when it is needed.
			"hadoop.security.kms.client.encrypted.key.cache.size":          "2",
			"hadoop.security.kms.client.encrypted.key.cache.low-watermark": "0.5",
			"hadoop.security.kms.client.timeout":                           "3", // seconds
		},
		SSL:   s.sslClient(),
		Flags: append(s.flags, "-Djava.security.krb5.conf="+s.kdc.Krb5Conf),
	}
}

// sslClient returns the ssl-client.xml of a client that trusts the nodes.
func (s *site) sslClient() hadoop.Conf {
	return hadoop.Conf{
		"ssl.client.truststore.location": s.certs.Truststore(),
		"ssl.client.truststore.type":     "pkcs12",
		"ssl.client.truststore.password": certtest.Password,
	}
}

// shell returns the command line of keyadmin, who has run kinit.
func (s *site) shell() *hadoop.Client {
	s.t.Helper()
	o := s.client()
	o.Env = []string{"KRB5CCNAME=" + s.kdc.Login(s.users, "keyadmin")}
	return hadoop.StartClient(s.t, "keyadmin", o)
}

// job starts a program that can act as alice, as yarn, and without a user.
func (s *site) job() *hadoop.Program {
	s.t.Helper()
	o := s.client()
	src, err := filepath.Abs("java")
	if err != nil {
		s.t.Fatal(err)
	}
	o.Sources, o.Main, o.Args = src, "Job", []string{s.users}
	return hadoop.StartProgram(s.t, o)
}

// startKDC makes a realm with all principals.
func startKDC(t *testing.T) *kdctest.KDC {
	t.Helper()
	kdc := kdctest.Start(t)
	kdc.Keytab("users.keytab", "alice", "keyadmin", "yarn", hadoop.HDFSUser)
	kdc.Keytab("http.keytab", "HTTP/"+hosts[0].name, "HTTP/"+hosts[1].name)
	kdc.Keytab("hdfs.keytab", "nn/localhost", "dn/localhost", "HTTP/localhost")
	return kdc
}

// zookeeper starts a ZooKeeper that requires Kerberos, and returns the properties with which the nodes share data
// there.
func zookeeper(t *testing.T, kdc *kdctest.KDC) hadoop.Conf {
	t.Helper()
	server := zktest.Start(t, zktest.Options{Jars: hadoop.Jars(t), SASL: &zktest.SASL{
		Krb5Conf: kdc.Krb5Conf, Keytab: kdc.Keytab("zookeeper.keytab", "zookeeper/localhost"),
		Principal: "zookeeper/localhost@" + kdctest.Realm, Enforce: true,
	}})
	const auth = "hadoop.kms.authentication."
	const secrets = auth + "signer.secret.provider"
	return hadoop.Conf{
		secrets:                                   "zookeeper",
		secrets + ".zookeeper.connection.string":  strings.Replace(server.Addr, "127.0.0.1", "localhost", 1),
		secrets + ".zookeeper.auth.type":          "sasl",
		secrets + ".zookeeper.kerberos.keytab":    kdc.Keytab("kms.keytab", "kms/localhost"),
		secrets + ".zookeeper.kerberos.principal": "kms/localhost",
		auth + "zk-dt-secret-manager.enable":      "true",
		auth + "zk-dt-secret-manager.zkAuthType":  "sasl",
	}
}
