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

// The nodes' names, which only Java's clients and curl are told of, and where they
// are. A kms:// URI has one port for all.
var hosts = []struct{ name, address string }{
	{"kms1.example.test", "127.0.0.1"},
	{"kms2.example.test", "127.0.0.2"},
}

// site is a cluster's key management.
type site struct {
	t     *testing.T
	kdc   *kdctest.KDC
	users string // keytab of alice, who uses keys, keyadmin, who makes them, and yarn, who renews
	certs *certtest.Authority
	hsm   hadoop.HSM
	port  int
	nodes [2]*node
	flags []string // of JVMs
}

// node is one of the two.
type node struct {
	*hadoop.KMS
	s           *site
	name, audit string
	conf        string // folder
}

// newSite starts both nodes with what more says of each.
func newSite(t *testing.T, kdc *kdctest.KDC, more hadoop.Conf) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, kdc: kdc, users: filepath.Join(kdc.Dir, "users.keytab"), certs: certtest.New(t, dir),
		hsm: hadoop.NewHSM(t), port: hadoop.FreePorts(t, 1)[0]}
	store := pgtest.Database(t)
	// With a file, Java asks nothing else for names: it has to know this machine's own.
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

// start starts a node, again too.
func (n *node) start() {
	n.s.t.Helper()
	n.KMS = hadoop.StartClaviger(n.s.t, hadoop.ClavigerOptions{Conf: n.conf, Port: n.s.port,
		Env: append(n.s.kdc.Env(), n.s.hsm.Env...)})
}

// base is the node's URL for those who know its name.
func (n *node) base() string { return fmt.Sprintf("https://%s:%d/kms", n.name, n.s.port) }

// uri is both nodes for Hadoop's clients.
func (s *site) uri() string {
	return fmt.Sprintf("kms://https@%s;%s:%d/kms", hosts[0].name, hosts[1].name, s.port)
}

// client is what a program of Hadoop's needs for both nodes.
func (s *site) client() hadoop.ProgramOptions {
	return hadoop.ProgramOptions{
		Conf: hadoop.Conf{
			"hadoop.security.authentication":    "kerberos",
			"hadoop.security.key.provider.path": s.uri(),
			// Each EDEK is asked for when it is needed.
			"hadoop.security.kms.client.encrypted.key.cache.size":          "2",
			"hadoop.security.kms.client.encrypted.key.cache.low-watermark": "0.5",
			"hadoop.security.kms.client.timeout":                           "3", // seconds, for a node that hangs
		},
		SSL:   s.sslClient(),
		Flags: append(s.flags, "-Djava.security.krb5.conf="+s.kdc.Krb5Conf),
	}
}

// sslClient is the ssl-client.xml of those who trust the nodes.
func (s *site) sslClient() hadoop.Conf {
	return hadoop.Conf{
		"ssl.client.truststore.location": s.certs.Truststore(),
		"ssl.client.truststore.type":     "pkcs12",
		"ssl.client.truststore.password": certtest.Password,
	}
}

// shell is the command line of keyadmin, who has run kinit.
func (s *site) shell() *hadoop.Client {
	s.t.Helper()
	o := s.client()
	o.Env = []string{"KRB5CCNAME=" + s.kdc.Login(s.users, "keyadmin")}
	return hadoop.StartClient(s.t, "keyadmin", o)
}

// job is a program of alice's, yarn's and nobody's.
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

// startKDC makes a realm with all who take part.
func startKDC(t *testing.T) *kdctest.KDC {
	t.Helper()
	kdc := kdctest.Start(t)
	kdc.Keytab("users.keytab", "alice", "keyadmin", "yarn", hadoop.HDFSUser)
	kdc.Keytab("http.keytab", "HTTP/"+hosts[0].name, "HTTP/"+hosts[1].name)
	kdc.Keytab("hdfs.keytab", "nn/localhost", "dn/localhost", "HTTP/localhost")
	return kdc
}

// zookeeper starts ZooKeeper, which lets in whom Kerberos names, and says how the
// nodes share by it.
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
