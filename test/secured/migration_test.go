package secured

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/test/hadoop"
)

// TestSecuredMigration migrates a secured cluster from a Java KMS that requires Kerberos to our KMS, which logs in
// at the Java KMS with its own tickets.
func TestSecuredMigration(t *testing.T) {
	migrateFrom(t, func(s *site, acls, conf hadoop.Conf) (*hadoop.KMS, string) {
		source := hadoop.StartJavaKMS(t, hadoop.KMSOptions{ACLs: acls, Krb5Conf: s.kdc.Krb5Conf, Env: s.kdc.Env(),
			Site: conf})
		return source, source.Log
	})
}

// TestSecuredMigrationFromTrustee does the same from a Key Trustee KMS of ours.
func TestSecuredMigrationFromTrustee(t *testing.T) {
	migrateFrom(t, func(s *site, acls, conf hadoop.Conf) (*hadoop.KMS, string) {
		trustee, audit := hadoop.StartTrustee(t), filepath.Join(t.TempDir(), "audit.log")
		conf = conf.With(trustee.Truststore(t, "PKCS12"), hadoop.Conf{"claviger.audit.file": audit})
		source := trustee.StartTrusteeKMS(t, filepath.Join(t.TempDir(), ".keytrustee"), acls, conf, s.kdc.Env()...)
		source.URL = strings.Replace(source.URL, "127.0.0.1", "localhost", 1) // as in the principal
		return source.KMS, audit
	})
}

// migrateFrom starts a source, and migrates the cluster from it. start also returns the file of the source's audit
// log.
func migrateFrom(t *testing.T, start func(s *site, acls, conf hadoop.Conf) (*hadoop.KMS, string)) {
	t.Helper()
	s := newSite(t)
	acls := hadoop.SiteACLs(keyAdmin, alice)
	hadoop.GrantMigration(acls, migrator)
	source, audit := start(s, acls, s.kerberos().With(hadoop.Conf{
		"hadoop.kms.proxyuser." + migrator + ".users": alice,
		"hadoop.kms.proxyuser." + migrator + ".hosts": "127.0.0.1",
	}))
	s.startHDFS(source.ProviderURI())
	admin, zoneMaker := s.makeZone()
	admin.Close()
	zoneMaker.Close()
	before := s.login(alice)
	books := s.local("books", "assets and liabilities\n")
	before.FsShell("-put", books, zone+"/books")
	oldTokens := filepath.Join(t.TempDir(), "tokens")
	before.Must("tokens", oldTokens, yarn)
	before.Close()

	s.configureKMS(hadoop.Conf{
		"hadoop.kms.key.provider.reencryption.source.uri": source.ProviderURI(),
		"hadoop.kms.reencryption.crypto.enable":           "true",
		"cloudera.hsmkp.initiatemigration":                "true",
		"claviger.client.kerberos.principal":              migrator + "/localhost",
		"claviger.client.kerberos.keytab":                 s.servers,
	})
	s.startKMS()
	s.cluster.SetKeyProvider(s.kms.ProviderURI())
	s.cluster.Restart()

	super, user := s.login(hadoop.HDFSUser), s.login(alice)
	_, old := super.FileKey(zone + "/books")
	s.checkAudit("alice reads through the source", func() { s.has(user, zone+"/books", books) },
		decrypt(alice+"@"+realm, "", 0))
	s.refused(super, "User:hdfs not allowed to do 'DECRYPT_EEK' on '"+keyName+"'", "fs", "-cat", zone+"/books")
	job := s.job("job", s.collect(user, about("GETDELEGATIONTOKEN", alice, "", 1)))
	s.checkAudit("a job reads through the source", func() { s.has(job, zone+"/books", books) }, decrypt(alice, "", 1))
	// A token names the KMS that issued it, but the NameNode now names another KMS.
	oldJob := s.job("old-job", oldTokens)
	oldJob.FsShell("-ls", zone)
	s.refused(oldJob, "Error while authenticating with endpoint: "+s.kms.URL, "fs", "-cat", zone+"/books")

	super.ReencryptZone(zone)
	if _, now := super.FileKey(zone + "/books"); now == old {
		t.Errorf("after the re-encryption the file is under %s still", old)
	}
	log, err := os.ReadFile(audit)
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{alice, migrator + "/localhost@" + realm} { // who reads, and who re-encrypts
		if want := "OK[op=DECRYPT_EEK, key=" + keyName + ", user=" + who + ","; !strings.Contains(string(log), want) {
			t.Errorf("the source's audit log has no %q", want)
		}
	}
	source.Kill()
	s.has(user, zone+"/books", books)
	s.has(job, zone+"/books", books)
	job.FsShell("-put", books, zone+"/more")
	s.has(user, zone+"/more", books)
}
