package secured

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/internal/certtest"
	"claviger/internal/kdctest"
	"claviger/internal/softhsm"
	"claviger/pkcs11"
	"claviger/test/hadoop"
)

const (
	realm    = "EXAMPLE.COM"
	keyAdmin = "keyadmin" // makes and rolls keys
	alice    = "alice"    // owns the files in the zone
	yarn     = "yarn"     // renews and cancels the tokens of jobs
	keyName  = "fin.key"
	zone     = "/finance"
)

// site is a secured HDFS, with our KMS as its key provider.
type site struct {
	t       *testing.T
	kdc     *kdctest.KDC
	users   string // keytab of the people
	kms     *hadoop.KMS
	audit   string // file
	cluster *hadoop.Cluster
}

func newSite(t *testing.T) *site {
	t.Helper()
	hadoop.Require(t)
	s := &site{t: t, kdc: kdctest.StartRealm(t, realm)}
	s.users = s.kdc.Keytab("users.keytab", keyAdmin, alice, yarn, hadoop.HDFSUser)
	s.startKMS(s.kdc.Keytab("http.keytab", "HTTP/localhost"))
	// The web servers of HDFS share the KMS's principal: all are on one host.
	servers := filepath.Join(s.kdc.Dir, "http.keytab")
	s.kdc.Keytab("http.keytab", "nn/localhost", "dn/localhost")
	s.cluster = hadoop.NewSecureCluster(t, s.kms.ProviderURI(), &hadoop.Security{
		Realm: realm, Krb5Conf: s.kdc.Krb5Conf, Env: s.kdc.Env(), Keytab: servers,
		Keystore: certtest.New(t, t.TempDir()).Keystore("hdfs", "localhost"), KeystorePassword: certtest.Password,
	}, nil)
	s.cluster.Start()
	return s
}

// startKMS runs the program with keys in an HSM and the ACLs of a site.
func (s *site) startKMS(keytab string) {
	s.t.Helper()
	dir := s.t.TempDir()
	token, err := softhsm.Create(filepath.Join(dir, "token"), "secured")
	if err != nil {
		s.t.Fatal(err)
	}
	keystore := filepath.Join(dir, "hsm.keystore")
	if err := pkcs11.WriteKeystoreFile(keystore, pkcs11.FileConfig{Module: token.Module, Token: token.Label, PINFile: token.PINFile}); err != nil {
		s.t.Fatal(err)
	}
	s.audit = filepath.Join(dir, "audit.log")
	hadoop.Conf{
		"hadoop.kms.http.host":                          "127.0.0.1",
		"hadoop.kms.key.provider.uri":                   "cloudera.hsmkp://file@" + keystore,
		"hadoop.kms.authentication.type":                "kerberos",
		"hadoop.kms.authentication.kerberos.keytab":     keytab,
		"hadoop.kms.authentication.kerberos.principal":  "HTTP/localhost",
		"hadoop.kms.authentication.kerberos.name.rules": hadoop.AuthToLocal,
		"claviger.metastore.uri":                        "sqlite://" + filepath.Join(dir, "claviger.db"),
		"claviger.audit.file":                           s.audit,
	}.Write(s.t, filepath.Join(dir, "kms-site.xml"))
	hadoop.SiteACLs(keyAdmin, alice).Write(s.t, filepath.Join(dir, "kms-acls.xml"))
	s.kms = hadoop.StartClaviger(s.t, hadoop.ClavigerOptions{Conf: dir, Env: append(s.kdc.Env(), token.Env...)})
	s.kms.URL = strings.Replace(s.kms.URL, "127.0.0.1", "localhost", 1) // as in the principal
}

// login starts a client of somebody who has just logged in.
func (s *site) login(user string) *hadoop.Client {
	s.t.Helper()
	return s.cluster.SecureClient(user, s.kdc.Login(s.users, user))
}

// local writes a file to be put into HDFS, of which its text is all over.
func (s *site) local(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(strings.Repeat(text, 5000)), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// has reads a file of HDFS and compares it with one that local wrote.
func (s *site) has(c *hadoop.Client, path, local string) {
	s.t.Helper()
	want, err := os.ReadFile(local)
	if err != nil {
		s.t.Fatal(err)
	}
	if got := c.FsShell("-cat", path); got != string(want) {
		s.t.Errorf("%s reads differently: %d bytes, want %d", path, len(got), len(want))
	}
}

func TestSecuredCluster(t *testing.T) {
	s := newSite(t)
	s.login(keyAdmin).KeyShell("create", keyName, "-size", "256")
	super := s.login(hadoop.HDFSUser)
	super.FsShell("-mkdir", zone)
	super.CryptoAdmin("-createZone", "-keyName", keyName, "-path", zone)
	super.FsShell("-chown", alice, zone)
	user := s.login(alice)
	books := s.local("books", "assets and liabilities\n")
	user.FsShell("-put", books, zone+"/books")
	s.has(user, zone+"/books", books)
}
