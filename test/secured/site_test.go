package secured

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/internal/certtest"
	"claviger/internal/kdctest"
	"claviger/test/hadoop"
)

const (
	realm    = "EXAMPLE.COM"
	keyAdmin = "keyadmin" // makes and rolls keys
	alice    = "alice"    // owns the files in the zone
	yarn     = "yarn"     // renews and cancels the tokens of jobs
	hive     = "hive"     // a service that works for alice; its principal is hive/localhost
	keyName  = "fin.key"
	zone     = "/finance"
)

// migrator is the name of our KMS at the source of a migration. Its principal is claviger/localhost.
const migrator = "claviger"

// site is a secured HDFS, with a KMS as its key provider.
type site struct {
	t       *testing.T
	kdc     *kdctest.KDC
	users   string // keytab of the users
	servers string // keytab of the servers
	options hadoop.ClavigerOptions
	kms     *hadoop.KMS // our KMS
	audit   string      // audit log of our KMS
	cluster *hadoop.Cluster

	nameNode string      // address of the NameNode's web server
	trust    hadoop.Conf // ssl-client.xml with its truststore
}

func newSite(t *testing.T) *site {
	t.Helper()
	hadoop.Require(t)
	s := &site{t: t, kdc: kdctest.StartRealm(t, realm)}
	s.users = s.kdc.Keytab("users.keytab", keyAdmin, alice, yarn, hive+"/localhost", hadoop.HDFSUser)
	s.servers = s.kdc.Keytab("servers.keytab", "HTTP/localhost", "nn/localhost", "dn/localhost", migrator+"/localhost")
	return s
}

// startHDFS starts an HDFS with a key provider.
func (s *site) startHDFS(keyProvider string) {
	s.t.Helper()
	ca, address := certtest.New(s.t, s.t.TempDir()), fmt.Sprintf("localhost:%d", hadoop.FreePorts(s.t, 1)[0])
	s.nameNode = "https://" + address
	s.trust = hadoop.Conf{"ssl.client.truststore.location": ca.Truststore(),
		"ssl.client.truststore.password": certtest.Password, "ssl.client.truststore.type": "pkcs12"}
	s.cluster = hadoop.NewSecureCluster(s.t, keyProvider, &hadoop.Security{
		Realm: realm, Krb5Conf: s.kdc.Krb5Conf, Env: s.kdc.Env(), Keytab: s.servers,
		Keystore: ca.Keystore("hdfs", "localhost"), KeystorePassword: certtest.Password,
	}, hadoop.Conf{
		"dfs.namenode.https-address": address,
		// The NameNode gives its image only to a user who has logged in.
		"hadoop.http.authentication.type":                     "kerberos",
		"hadoop.http.authentication.kerberos.principal":       "HTTP/localhost@" + realm,
		"hadoop.http.authentication.kerberos.keytab":          s.servers,
		"hadoop.http.authentication.simple.anonymous.allowed": "false",
		"hadoop.proxyuser." + hive + ".users":                 alice,
		"hadoop.proxyuser." + hive + ".hosts":                 "127.0.0.1",
	})
	s.cluster.Start()
}

// kerberos returns the properties that make a KMS, Hadoop's or ours, require Kerberos.
func (s *site) kerberos() hadoop.Conf {
	return hadoop.Conf{
		"hadoop.kms.authentication.type":                "kerberos",
		"hadoop.kms.authentication.kerberos.keytab":     s.servers,
		"hadoop.kms.authentication.kerberos.principal":  "HTTP/localhost",
		"hadoop.kms.authentication.kerberos.name.rules": hadoop.AuthToLocal,
	}
}

// configureKMS configures our KMS with keys in an HSM and the ACLs of a site. more has further properties for
// kms-site.xml.
func (s *site) configureKMS(more hadoop.Conf) {
	s.t.Helper()
	dir, token := s.t.TempDir(), hadoop.NewHSM(s.t)
	s.audit = filepath.Join(dir, "audit.json")
	hadoop.Conf{
		"hadoop.kms.http.host":                    "127.0.0.1",
		"hadoop.kms.key.provider.uri":             token.URI,
		"claviger.metastore.uri":                  "sqlite://" + filepath.Join(dir, "claviger.db"),
		"claviger.audit.json.file":                s.audit,
		"hadoop.kms.proxyuser." + hive + ".users": alice,
		"hadoop.kms.proxyuser." + hive + ".hosts": "127.0.0.1",
		// In production these times are a day or ten hours. Here, cookies expire while a process runs, and tokens
		// are valid longer than the key that signed them.
		"hadoop.kms.authentication.token.validity":                             "3",
		"hadoop.kms.authentication.delegation-token.update-interval.sec":       "3",
		"hadoop.kms.authentication.delegation-token.removal-scan-interval.sec": "1",
	}.With(s.kerberos(), more).Write(s.t, filepath.Join(dir, "kms-site.xml"))
	hadoop.SiteACLs(keyAdmin, alice).Write(s.t, filepath.Join(dir, "kms-acls.xml"))
	s.options = hadoop.ClavigerOptions{Conf: dir, Env: append(s.kdc.Env(), token.Env...),
		Port: hadoop.FreePorts(s.t, 1)[0]}
}

func (s *site) startKMS() {
	s.t.Helper()
	s.kms = hadoop.StartClaviger(s.t, s.options)
	s.kms.URL = strings.Replace(s.kms.URL, "127.0.0.1", "localhost", 1) // as in the principal
}

// login starts a client of a user who has just logged in.
func (s *site) login(user string) *hadoop.Client {
	s.t.Helper()
	return s.cluster.SecureClient(user, s.kdc.Login(s.users, user))
}

// local writes a local file that contains text many times, to copy it into HDFS.
func (s *site) local(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(strings.Repeat(text, 5000)), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// has reads a file of HDFS, and compares it with a file that local wrote.
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

// job starts a client with the tokens in a file, and without tickets.
func (s *site) job(name, tokens string) *hadoop.Client {
	s.t.Helper()
	return s.cluster.SecureClient(name, "", "HADOOP_TOKEN_FILE_LOCATION="+tokens)
}

// event is a record of the audit log.
type event struct {
	Status, Op, User, RealUser, Message string
	EDEKs, Token                        int
}

// settled returns the audit log after no record was added for a while. Records are written a few milliseconds
// after the answer, or later on a busy machine.
func (s *site) settled() []byte {
	s.t.Helper()
	for last := -1; ; time.Sleep(100 * time.Millisecond) {
		b, err := os.ReadFile(s.audit)
		if err != nil {
			s.t.Fatal(err)
		}
		if len(b) == last {
			return b
		}
		last = len(b)
	}
}

// events calls do, and returns the new records of the audit log, without the EDEKs that the NameNode requests at
// any time.
func (s *site) events(do func()) []event {
	s.t.Helper()
	before := len(s.settled())
	do()
	var all []event
	for line := range bytes.Lines(s.settled()[before:]) {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			s.t.Fatalf("audit record %s: %v", line, err)
		}
		if e.Status == "UNAUTHENTICATED" && (strings.HasSuffix(e.Message, "AuthenticationToken expired") ||
			strings.HasSuffix(e.Message, "Invalid signature")) {
			continue // the client logs in again, because its cookie or the secret of the cookie has expired
		}
		if e.Op == "GENERATE_EEK" {
			continue
		}
		if strings.HasSuffix(e.Op, "DELEGATIONTOKEN") {
			if !strings.HasPrefix(e.Message, fmt.Sprintf("kms-dt owner=%s, renewer=%s, ", alice, yarn)) {
				s.t.Errorf("the record does not say which token: %s", line)
			}
			e.Message = "" // it contains times
		}
		all = append(all, e)
	}
	return all
}

// checkAudit fails the test unless do adds these records to the audit log.
func (s *site) checkAudit(what string, do func(), want ...event) {
	s.t.Helper()
	if got := s.events(do); !slices.Equal(got, want) {
		s.t.Errorf("%s: the audit log says\n%+v\nwant\n%+v", what, got, want)
	}
}

// refused fails the test unless a command fails for a reason.
func (s *site) refused(c *hadoop.Client, reason, tool string, args ...string) {
	s.t.Helper()
	if out := c.MustFail(tool, args...); !strings.Contains(out, reason) {
		s.t.Errorf("%s %s: refused, but not with %q:\n%s", tool, strings.Join(args, " "), reason, out)
	}
}

// decrypt returns the record of a decrypted EDEK. user is the full name of the user, and token the number of the
// delegation token, or 0 for none.
func decrypt(user, realUser string, token int) event {
	return event{Status: "OK", Op: "DECRYPT_EEK", User: user, RealUser: realUser, EDEKs: 1, Token: token}
}

// about returns the record of an operation on a delegation token.
func about(op, by, realUser string, token int) event {
	return event{Status: "OK", Op: op, User: by, RealUser: realUser, Token: token}
}

// collect collects tokens, like the submitter of a job.
func (s *site) collect(c *hadoop.Client, want event) (tokens string) {
	s.t.Helper()
	tokens = filepath.Join(s.t.TempDir(), "tokens")
	s.checkAudit("tokens are collected", func() {
		if out := c.Must("tokens", tokens, yarn); !strings.Contains(out, "HDFS_DELEGATION_TOKEN ") ||
			!strings.Contains(out, "kms-dt "+s.kms.ProviderURI()) {
			s.t.Fatalf("tokens of HDFS and KMS are wanted, collected are\n%s", out)
		}
	}, want)
	return tokens
}

// makeZone makes the key, as the key administrator, and a zone with the key. It returns the clients of the key
// administrator and the superuser.
func (s *site) makeZone() (admin, super *hadoop.Client) {
	s.t.Helper()
	admin, super = s.login(keyAdmin), s.login(hadoop.HDFSUser)
	admin.KeyShell("create", keyName, "-size", "256")
	super.FsShell("-mkdir", zone)
	super.CryptoAdmin("-createZone", "-keyName", keyName, "-path", zone)
	super.FsShell("-chown", alice, zone)
	return admin, super
}
