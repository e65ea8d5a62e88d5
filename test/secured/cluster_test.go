package secured

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/test/hadoop"
)

// TestSecuredCluster is one long test, because the cluster takes long to start.
func TestSecuredCluster(t *testing.T) {
	s := newSite(t)
	s.configureKMS(nil)
	s.startKMS()
	s.startHDFS(s.kms.ProviderURI())
	admin, super := s.makeZone()
	user := s.login(alice)
	books := s.local("books", "assets and liabilities\n")
	user.FsShell("-put", books, zone+"/books")
	s.checkAudit("alice reads", func() { s.has(user, zone+"/books", books) }, decrypt(alice+"@"+realm, "", 0))
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
	super.DFSAdmin("-safemode", "enter")
	super.DFSAdmin("-saveNamespace")
	super.DFSAdmin("-safemode", "leave")
	s.census()
	s.doctor()
	s.tokenEnds(user, job, tokens, books)
	if log, err := os.ReadFile(s.kms.Log); err != nil || bytes.Contains(log, []byte("level=ERROR")) {
		t.Errorf("the KMS's log (%v):\n%s", err, log)
	}
}

// superuserReadsNothing: the superuser of HDFS sees every file, but the KMS decrypts nothing for it.
func (s *site) superuserReadsNothing(super *hadoop.Client, books string) {
	s.t.Helper()
	s.checkAudit("the superuser reads", func() {
		s.refused(super, "User:hdfs not allowed to do 'DECRYPT_EEK' on '"+keyName+"'", "fs", "-cat", zone+"/books")
	}, event{Status: "UNAUTHORIZED", Op: "DECRYPT_EEK", User: hadoop.HDFSUser + "@" + realm})
	plain, err := os.ReadFile(books)
	if err != nil {
		s.t.Fatal(err)
	}
	raw := super.FsShell("-cat", "/.reserved/raw"+zone+"/books")
	if len(raw) != len(plain) || strings.Contains(raw, "liabilities") {
		s.t.Errorf("the raw file has %d bytes, want the %d of a ciphertext:\n%.100q", len(raw), len(plain), raw)
	}
}

// jobWorks makes a job read and write a file. The job has only tokens.
func (s *site) jobWorks(tokens, books string) *hadoop.Client {
	s.t.Helper()
	job := s.job("job", tokens)
	result := s.local("result", "profit\n")
	byToken := decrypt(alice, "", 1) // a token has the short name
	s.checkAudit("the job works", func() {
		s.has(job, zone+"/books", books)
		job.FsShell("-put", result, zone+"/result")
		s.has(job, zone+"/result", result)
	}, byToken, byToken, byToken)

	nobody := s.cluster.SecureClient("nobody", "")
	defer nobody.Close()
	s.refused(nobody, "Client cannot authenticate via:[TOKEN, KERBEROS]", "fs", "-ls", "/")
	hdfsTokens := s.copyOf(tokens)
	nobody.Must("dtutil", "remove", "-alias", s.kms.ProviderURI(), hdfsTokens)
	hdfsOnly := s.job("half", hdfsTokens)
	defer hdfsOnly.Close()
	hdfsOnly.FsShell("-ls", zone)
	s.refused(hdfsOnly, "Error while authenticating with endpoint", "fs", "-cat", zone+"/books")
	return job
}

// serviceWorksFor makes a service with its own tickets read alice's file as alice, and a job of the service with
// tokens for alice.
func (s *site) serviceWorksFor(books string) {
	s.t.Helper()
	service := s.cluster.SecureClient(hive, s.kdc.Login(s.users, hive+"/localhost"), "HADOOP_PROXY_USER="+alice)
	defer service.Close()
	s.checkAudit("a service reads for alice", func() {
		s.has(service, zone+"/books", books)
	}, decrypt(alice, hive+"/localhost@"+realm, 0))
	query := s.job("query", s.collect(service, about("GETDELEGATIONTOKEN", alice, hive, 2)))
	defer query.Close()
	s.checkAudit("its job reads for alice", func() { s.has(query, zone+"/books", books) }, decrypt(alice, hive, 2))
	other := s.cluster.SecureClient("mallory", s.kdc.Login(s.users, hive+"/localhost"), "HADOOP_PROXY_USER=mallory")
	defer other.Close()
	for _, e := range s.events(func() { s.refused(other, "status: 403", "key", "list") }) {
		if want := "User: hive/localhost@" + realm + " is not allowed to impersonate mallory"; e.Status == "OK" ||
			!strings.Contains(e.Message, want) {
			s.t.Errorf("the audit log has %+v, want %q", e, want)
		}
	}
}

// kmsRestarts makes the cookies of clients and of the NameNode invalid. Tokens are in the metastore and stay
// valid.
func (s *site) kmsRestarts() {
	s.t.Helper()
	if code := s.kms.Stop(); code != 0 {
		s.t.Errorf("claviger kms ended with status %d on SIGTERM", code)
	}
	s.startKMS()
}

// tokenEnds: the renewer of a token renews it at the KMS, and cancels it after the job. Then the job can do
// nothing more.
func (s *site) tokenEnds(user, job *hadoop.Client, tokens, books string) {
	s.t.Helper()
	rm := s.login(yarn)
	alias := s.kms.ProviderURI()
	s.refused(user, "alice tries to renew a token (kms-dt owner=alice, renewer=yarn", "dtutil", "renew",
		"-alias", alias, tokens)
	s.checkAudit("the renewer renews", func() { rm.Must("dtutil", "renew", "-alias", alias, tokens) },
		about("RENEWDELEGATIONTOKEN", yarn, "", 1))
	s.has(job, zone+"/books", books)
	// The client names no user here, because the token is enough.
	s.checkAudit("the renewer cancels", func() { rm.Must("dtutil", "cancel", "-alias", alias, s.copyOf(tokens)) },
		about("CANCELDELEGATIONTOKEN", "", "", 1))
	job.FsShell("-ls", zone) // the token of HDFS is still valid
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

// copyOf copies a token file, because stock Hadoop removes a cancelled token from the file.
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
