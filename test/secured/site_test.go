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
	hive     = "hive"     // a service that works for alice; its principal is hive/localhost
	keyName  = "fin.key"
	zone     = "/finance"
)

// site is a secured HDFS, with our KMS as its key provider.
type site struct {
	t       *testing.T
	kdc     *kdctest.KDC
	users   string // keytab of the people
	options hadoop.ClavigerOptions
	kms     *hadoop.KMS
	audit   string // file
	cluster *hadoop.Cluster
}

func newSite(t *testing.T) *site {
	t.Helper()
	hadoop.Require(t)
	s := &site{t: t, kdc: kdctest.StartRealm(t, realm)}
	s.users = s.kdc.Keytab("users.keytab", keyAdmin, alice, yarn, hive+"/localhost", hadoop.HDFSUser)
	servers := s.kdc.Keytab("servers.keytab", "HTTP/localhost", "nn/localhost", "dn/localhost")
	s.configureKMS(servers)
	s.startKMS()
	s.cluster = hadoop.NewSecureCluster(t, s.kms.ProviderURI(), &hadoop.Security{
		Realm: realm, Krb5Conf: s.kdc.Krb5Conf, Env: s.kdc.Env(), Keytab: servers,
		Keystore: certtest.New(t, t.TempDir()).Keystore("hdfs", "localhost"), KeystorePassword: certtest.Password,
	}, hadoop.Conf{
		"hadoop.proxyuser." + hive + ".users": alice,
		"hadoop.proxyuser." + hive + ".hosts": "127.0.0.1",
	})
	s.cluster.Start()
	return s
}

// configureKMS gives the KMS keys in an HSM and the ACLs of a site.
func (s *site) configureKMS(keytab string) {
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
	s.audit = filepath.Join(dir, "audit.json")
	hadoop.Conf{
		"hadoop.kms.http.host":                          "127.0.0.1",
		"hadoop.kms.key.provider.uri":                   "cloudera.hsmkp://file@" + keystore,
		"hadoop.kms.authentication.type":                "kerberos",
		"hadoop.kms.authentication.kerberos.keytab":     keytab,
		"hadoop.kms.authentication.kerberos.principal":  "HTTP/localhost",
		"hadoop.kms.authentication.kerberos.name.rules": hadoop.AuthToLocal,
		"claviger.metastore.uri":                        "sqlite://" + filepath.Join(dir, "claviger.db"),
		"claviger.audit.json.file":                      s.audit,
		"hadoop.kms.proxyuser." + hive + ".users":       alice,
		"hadoop.kms.proxyuser." + hive + ".hosts":       "127.0.0.1",
	}.Write(s.t, filepath.Join(dir, "kms-site.xml"))
	hadoop.SiteACLs(keyAdmin, alice).Write(s.t, filepath.Join(dir, "kms-acls.xml"))
	s.options = hadoop.ClavigerOptions{Conf: dir, Env: append(s.kdc.Env(), token.Env...), Port: hadoop.FreePorts(s.t, 1)[0]}
}

func (s *site) startKMS() {
	s.t.Helper()
	s.kms = hadoop.StartClaviger(s.t, s.options)
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

// job starts a client that has the tokens in a file, and no tickets.
func (s *site) job(name, tokens string) *hadoop.Client {
	s.t.Helper()
	return s.cluster.SecureClient(name, "", "HADOOP_TOKEN_FILE_LOCATION="+tokens)
}

// event is what the audit log says of a request.
type event struct {
	Status, Op, User, RealUser, Message string
	EDEKs, Token                        int
}

// events does something and returns what the audit log says of it.
func (s *site) events(do func()) []event {
	s.t.Helper()
	read := func() []byte {
		b, err := os.ReadFile(s.audit)
		if err != nil {
			s.t.Fatal(err)
		}
		return b
	}
	before := len(read())
	do()
	var all []event
	for line := range bytes.Lines(read()[before:]) {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			s.t.Fatalf("audit record %s: %v", line, err)
		}
		if strings.HasSuffix(e.Op, "DELEGATIONTOKEN") {
			if !strings.HasPrefix(e.Message, fmt.Sprintf("kms-dt owner=%s, renewer=%s, ", alice, yarn)) {
				s.t.Errorf("the record does not say which token: %s", line)
			}
			e.Message = "" // it has times
		}
		all = append(all, e)
	}
	return all
}

// did compares the audit log's account of what do did.
func (s *site) did(what string, do func(), want ...event) {
	s.t.Helper()
	if got := s.events(do); !slices.Equal(got, want) {
		s.t.Errorf("%s: the audit log says\n%+v\nwant\n%+v", what, got, want)
	}
}

// refused runs a command that has to fail for a reason.
func (s *site) refused(c *hadoop.Client, reason, tool string, args ...string) {
	s.t.Helper()
	if out := c.MustFail(tool, args...); !strings.Contains(out, reason) {
		s.t.Errorf("%s %s: refused, but not with %q:\n%s", tool, strings.Join(args, " "), reason, out)
	}
}

// decrypt is one EDEK opened; by is the full name of who, token the number of the
// delegation token, 0 for none.
func decrypt(by, realUser string, token int) event {
	return event{Status: "OK", Op: "DECRYPT_EEK", User: by, RealUser: realUser, EDEKs: 1, Token: token}
}

// about is an operation on a delegation token.
func about(op, by, realUser string, token int) event {
	return event{Status: "OK", Op: op, User: by, RealUser: realUser, Token: token}
}

// TestSecuredCluster is one long test, since the cluster takes its time to start.
func TestSecuredCluster(t *testing.T) {
	s := newSite(t)
	admin := s.login(keyAdmin)
	admin.KeyShell("create", keyName, "-size", "256")
	super := s.login(hadoop.HDFSUser)
	super.FsShell("-mkdir", zone)
	super.CryptoAdmin("-createZone", "-keyName", keyName, "-path", zone)
	super.FsShell("-chown", alice, zone)
	user := s.login(alice)
	books := s.local("books", "assets and liabilities\n")
	user.FsShell("-put", books, zone+"/books")
	s.did("alice reads", func() { s.has(user, zone+"/books", books) }, decrypt(alice+"@"+realm, "", 0))
	s.superuserReadsNothing(super, books)

	tokens := s.collect(user, about("GETDELEGATIONTOKEN", alice, "", 1))
	job := s.jobWorks(tokens, books)
	s.serviceWorksFor(books)
	s.kmsRestarts()
	s.has(user, zone+"/books", books)
	s.has(job, zone+"/books", books)

	_, old := super.FileKey(zone + "/books")
	admin.KeyShell("roll", keyName)
	super.ReencryptZone(zone)
	if _, now := super.FileKey(zone + "/books"); now == old {
		t.Errorf("after a roll and a re-encryption the file is under %s still", old)
	}
	s.has(user, zone+"/books", books)
	s.has(job, zone+"/books", books)
	s.tokenEnds(user, job, tokens, books)
	if log, err := os.ReadFile(s.kms.Log); err != nil || bytes.Contains(log, []byte("level=ERROR")) {
		t.Errorf("the KMS's log (%v):\n%s", err, log)
	}
}

// superuserReadsNothing: HDFS lets its superuser see every file, the KMS none.
func (s *site) superuserReadsNothing(super *hadoop.Client, books string) {
	s.t.Helper()
	s.did("the superuser reads", func() {
		s.refused(super, "User:hdfs not allowed to do 'DECRYPT_EEK' on '"+keyName+"'", "fs", "-cat", zone+"/books")
	}, event{Status: "UNAUTHORIZED", Op: "DECRYPT_EEK", User: hadoop.HDFSUser + "@" + realm})
	clear, err := os.ReadFile(books)
	if err != nil {
		s.t.Fatal(err)
	}
	raw := super.FsShell("-cat", "/.reserved/raw"+zone+"/books")
	if len(raw) != len(clear) || strings.Contains(raw, "liabilities") {
		s.t.Errorf("the raw file has %d bytes, want the %d of a ciphertext:\n%.100q", len(raw), len(clear), raw)
	}
}

// collect does what the submitter of a job does.
func (s *site) collect(c *hadoop.Client, want event) (tokens string) {
	s.t.Helper()
	tokens = filepath.Join(s.t.TempDir(), "tokens")
	s.did("tokens are collected", func() {
		if out := c.Must("tokens", tokens, yarn); !strings.Contains(out, "HDFS_DELEGATION_TOKEN ") || !strings.Contains(out, "kms-dt "+s.kms.ProviderURI()) {
			s.t.Fatalf("tokens of HDFS and KMS are wanted, collected are\n%s", out)
		}
	}, want)
	return tokens
}

// jobWorks has a job read a file and write one. Nothing but the tokens lets it.
func (s *site) jobWorks(tokens, books string) *hadoop.Client {
	s.t.Helper()
	job := s.job("job", tokens)
	result := s.local("result", "profit\n")
	byToken := decrypt(alice, "", 1) // a token has the short name
	s.did("the job works", func() {
		s.has(job, zone+"/books", books)
		job.FsShell("-put", result, zone+"/result")
		s.has(job, zone+"/result", result)
	}, byToken, byToken, byToken)

	nobody := s.cluster.SecureClient("nobody", "")
	defer nobody.Close()
	s.refused(nobody, "Client cannot authenticate via:[TOKEN, KERBEROS]", "fs", "-ls", "/")
	half := s.copyOf(tokens)
	nobody.Must("dtutil", "remove", "-alias", s.kms.ProviderURI(), half)
	hdfsOnly := s.job("half", half)
	defer hdfsOnly.Close()
	hdfsOnly.FsShell("-ls", zone)
	s.refused(hdfsOnly, "Error while authenticating with endpoint", "fs", "-cat", zone+"/books")
	return job
}

// serviceWorksFor has a service with tickets of its own read alice's file as her,
// and a job of its with tokens in her name.
func (s *site) serviceWorksFor(books string) {
	s.t.Helper()
	service := s.cluster.SecureClient(hive, s.kdc.Login(s.users, hive+"/localhost"), "HADOOP_PROXY_USER="+alice)
	defer service.Close()
	s.did("a service reads for alice", func() { s.has(service, zone+"/books", books) }, decrypt(alice, hive+"/localhost@"+realm, 0))
	query := s.job("query", s.collect(service, about("GETDELEGATIONTOKEN", alice, hive, 2)))
	defer query.Close()
	s.did("its job reads for alice", func() { s.has(query, zone+"/books", books) }, decrypt(alice, hive, 2))
	other := s.cluster.SecureClient("mallory", s.kdc.Login(s.users, hive+"/localhost"), "HADOOP_PROXY_USER=mallory")
	defer other.Close()
	for _, e := range s.events(func() { s.refused(other, "status: 403", "key", "list") }) {
		if want := "User: hive/localhost@" + realm + " is not allowed to impersonate mallory"; e.Status == "OK" || !strings.Contains(e.Message, want) {
			s.t.Errorf("the audit log has %+v, want %q", e, want)
		}
	}
}

// kmsRestarts makes the cookies of clients and NameNode worthless. Tokens, which
// are in the metastore, stay good.
func (s *site) kmsRestarts() {
	s.t.Helper()
	if code := s.kms.Stop(); code != 0 {
		s.t.Errorf("claviger kms ended with status %d on SIGTERM", code)
	}
	s.startKMS()
}

// tokenEnds: its renewer renews the token of the KMS, and cancels it when the job
// has ended, which then can do nothing more.
func (s *site) tokenEnds(user, job *hadoop.Client, tokens, books string) {
	s.t.Helper()
	rm := s.login(yarn)
	alias := s.kms.ProviderURI()
	s.refused(user, "alice tries to renew a token (kms-dt owner=alice, renewer=yarn", "dtutil", "renew", "-alias", alias, tokens)
	s.did("the renewer renews", func() { rm.Must("dtutil", "renew", "-alias", alias, tokens) }, about("RENEWDELEGATIONTOKEN", yarn, "", 1))
	s.has(job, zone+"/books", books)
	// A client names nobody here: having the token is enough.
	s.did("the renewer cancels", func() { rm.Must("dtutil", "cancel", "-alias", alias, s.copyOf(tokens)) }, about("CANCELDELEGATIONTOKEN", "", "", 1))
	job.FsShell("-ls", zone) // HDFS's token is good still
	for _, e := range s.events(func() {
		s.refused(job, "can't be found in cache", "fs", "-cat", zone+"/books")
		s.refused(job, "can't be found in cache", "fs", "-put", books, zone+"/more")
		s.refused(rm, "Renewal request for unknown token", "dtutil", "renew", "-alias", alias, tokens)
	}) {
		if e.Status == "OK" {
			s.t.Errorf("with a cancelled token: %+v", e)
		}
	}
	s.has(user, zone+"/books", books)
}

// copyOf copies a token file: stock Hadoop takes what it cancels out of it.
func (s *site) copyOf(tokens string) string {
	s.t.Helper()
	b, err := os.ReadFile(tokens)
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.t.TempDir(), "tokens")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}
