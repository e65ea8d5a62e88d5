package kms

import (
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/logtest"
	"claviger/keystore"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
	"claviger/secret"
	"claviger/trustee"
)

// filesWithoutSecrets are properties of a KMS that name a path without a secret, and what is
// there.
var filesWithoutSecrets = map[string]string{
	"claviger.ssl.truststore": "certificates", "hadoop.security.group.mapping.ldap.ssl.truststore": "certificates",
	"hadoop.kms.authentication.signer.secret.provider.zookeeper.ssl.truststore.location": "certificates",
	"hadoop.kms.authentication.zk-dt-secret-manager.ssl.truststore.location":             "certificates",
	"hadoop.security.group.mapping.ldap.ssl.truststore.password.file": "the password of " +
		"certificates",
	"claviger.metastore.seen.file": "times and places of changes",
	"claviger.audit.file":          "the audit log",
	"claviger.audit.json.file":     "the audit log",
	"hadoop.kms.authentication.signer.secret.provider.zookeeper.path": "a node",
	"hadoop.kms.authentication.cookie.path":                           "of a URL",
}

// secretProperties are properties of a KMS, and the file with a secret that each names in
// the test.
var secretProperties = map[string]string{
	"hadoop.kms.authentication.signature.secret.file":                                  "signature.secret",
	"claviger.audit.json.key.file":                                                     "audit.key",
	"hadoop.kms.authentication.kerberos.keytab":                                        "http.keytab",
	"claviger.client.kerberos.keytab":                                                  "client.keytab",
	"hadoop.kms.authentication.signer.secret.provider.zookeeper.kerberos.keytab":       "zk.keytab",
	"hadoop.kms.authentication.signer.secret.provider.zookeeper.ssl.keystore.location": "zk.jks",
	"hadoop.kms.authentication.zk-dt-secret-manager.kerberos.keytab":                   "dt.keytab",
	"hadoop.kms.authentication.zk-dt-secret-manager.ssl.keystore.location":             "dt.jks",
	"hadoop.security.keystore.java-keystore-provider.password-file":                    "kms.password",
	"hadoop.security.credstore.java-keystore-provider.password-file":                   "cred.password",
	"hadoop.security.group.mapping.ldap.bind.password.file":                            "ldap.password",
	hadoopconf.GroupProviderPrefix + "ad.ldap.bind.password.file":                      "ad.password",
}

// secretsFolder is a configuration folder whose properties name many files with secrets.
type secretsFolder struct {
	t     *testing.T
	dir   string
	props map[string]string
	files []string // with secrets, by name
	conf  *hadoopconf.Conf
}

// privateRing is a file that even its group must not read.
var privateRing = filepath.Join(".keytrustee", trustee.PrivateRing)

func newSecretsFolder(t *testing.T) *secretsFolder {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	props := map[string]string{
		hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + in("luna.keystore") + ",jceks://file@" + in("old.jceks") +
			",keytrustee://file@" + in(".keytrustee"),
		hadoopconf.MetastoreURI: "sqlite://" + in("claviger.db"), "claviger.client.kerberos.ccache": "FILE:" +
			in("ccache"),
		keystore.CredentialPathProperty: "user:///,localjceks://file" + in("cred.jceks"),
		hadoopconf.TrusteeConf:          in("kts-site.xml"),
	}
	files := []string{"old.jceks", "claviger.db", "claviger.db-wal", "claviger.db-shm", "ccache", "cred.jceks",
		"kts-site.xml", "pin", "server.jks", "client.jks", "ssl-server.xml", "org.auth"}
	for property, name := range secretProperties {
		props[property] = in(name)
		files = append(files, name)
	}
	if err := os.Mkdir(in(".keytrustee"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, privateRing) {
		kmstest.WriteFile(t, in(name), "")
	}
	kmstest.WriteFile(t, in("ssl-server.xml"), kmstest.SiteXML("ssl.server.keystore.location", in("server.jks"),
		"ssl.server.keystore.password", "changeit"))
	kmstest.WriteFile(t, in("ssl-client.xml"), kmstest.SiteXML("ssl.client.keystore.location", in("client.jks")))
	kmstest.WriteFile(t, in("kts-site.xml"), kmstest.SiteXML("cloudera.trustee.keyprovider.hostname-ACTIVE", "kts1",
		"cloudera.trustee.keyprovider.auth.file", in("org.auth")))
	// kts-site.xml has no secret here: org.auth has it.
	files = slices.DeleteFunc(files, func(name string) bool { return name == "kts-site.xml" })
	if err := pkcs11.WriteKeystoreFile(in("luna.keystore"), pkcs11.FileConfig{Module: "/lib/x.so", Token: "kms",
		PINFile: in("pin"), Profile: pkcs11.Luna}); err != nil {
		t.Fatal(err)
	}
	kmstest.WriteFile(t, in("kms-acls.xml"), kmstest.SiteXML())
	l := &secretsFolder{t: t, dir: dir, props: props, files: files}
	l.load()
	return l
}

// path returns the path of a file.
func (l *secretsFolder) path(name string) string { return filepath.Join(l.dir, name) }

// load writes and loads the configuration.
func (l *secretsFolder) load() {
	l.t.Helper()
	kmstest.WriteSite(l.t, l.dir, l.props)
	var err error
	if l.conf, err = hadoopconf.LoadKMS(l.dir, os.LookupEnv); err != nil {
		l.t.Fatal(err)
	}
}

// exposed returns the warnings about files that others can read or write.
func (l *secretsFolder) exposed() []string { return secret.Exposed(secretFiles(l.conf)...) }

// exposedWith is exposed while a file has another mode.
func (l *secretsFolder) exposedWith(name string, mode os.FileMode) []string {
	l.t.Helper()
	before, err := os.Stat(l.path(name))
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.Chmod(l.path(name), mode); err != nil {
		l.t.Fatal(err)
	}
	defer os.Chmod(l.path(name), before.Mode().Perm()) //nolint:errcheck // the next check finds it
	return l.exposed()
}

// TestSecretFiles: there is a warning for each file with a secret that everybody may read,
// whichever property names it, and none if only its group may read it.
func TestSecretFiles(t *testing.T) {
	l := newSecretsFolder(t)
	if got := l.exposed(); len(got) > 0 {
		t.Fatalf("before a file is open to others: %q", got)
	}
	for _, name := range l.files {
		if got := l.exposedWith(name, 0o604); len(got) != 1 || !strings.Contains(got[0],
			l.path(name)+" may be read by everybody (mode 0604)") {
			t.Errorf("%s, open to everybody: %q", name, got)
		}
		if got := l.exposedWith(name, 0o440); len(got) > 0 {
			t.Errorf("%s, open to its group: %q", name, got)
		}
	}
	if got := l.exposedWith(privateRing, 0o640); len(got) != 1 || !strings.Contains(got[0], "read by its group") {
		t.Errorf("the private ring, open to its group: %q", got)
	}
	// These files have no secret: others may read them, but must not write them.
	for _, name := range []string{"kms-site.xml", "kms-acls.xml", "luna.keystore"} {
		if got := l.exposedWith(name, 0o644); len(got) > 0 {
			t.Errorf("%s, which has no secret: %q", name, got)
		}
		writable := l.exposedWith(name, 0o606)
		if name == "luna.keystore" { // the server refuses such a file
			continue
		}
		if len(writable) != 1 || !strings.Contains(writable[0], l.path(name)+" may be written by everybody") {
			t.Errorf("%s, which everybody may write: %q", name, writable)
		}
	}
	l.props["hadoop.security.group.mapping.ldap.bind.password"] = "in clear"
	l.load()
	if got := l.exposedWith("kms-site.xml", 0o644); len(got) != 1 || !strings.Contains(got[0],
		"and holds the value of hadoop.security.group.mapping.ldap.bind.password") || strings.Contains(got[0],
		"in clear") {
		t.Errorf("kms-site.xml with a password: %q", got)
	}
}

// TestSecretFilesHasAllProperties: each property that names a file is in TestSecretFiles, or
// in filesWithoutSecrets.
func TestSecretFilesHasAllProperties(t *testing.T) {
	props := newSecretsFolder(t).props
	for _, k := range hadoopconf.KMS {
		if strings.HasPrefix(k.Doc, "accepted and not used") || secretProperties[k.Name] != "" || props[k.Name] != "" ||
			filesWithoutSecrets[k.Name] != "" {
			continue
		}
		for _, end := range []string{"file", "path", "keytab", "location", "truststore", "keystore"} {
			if strings.HasSuffix(k.Name, end) {
				t.Errorf("%s: does this file hold a secret? Then add it to secretFiles", k.Name)
			}
		}
	}
}

// TestSecretFilesLogged: the log names a file that others can read, once. /readyz, which
// everybody may read, shows only that there is such a file, and the node stays ready.
func TestSecretFilesLogged(t *testing.T) {
	dir := t.TempDir()
	signature := filepath.Join(dir, "signature.secret")
	kmstest.WriteFile(t, signature, "secret")
	if err := os.Chmod(signature, 0o644); err != nil { //nolint:gosec // the test needs a file that everybody may read
		t.Fatal(err)
	}
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.MANAGEMENT", "*"))
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "kms.keystore"),
		"hadoop.kms.http.host": "127.0.0.1", "claviger.audit.file": filepath.Join(dir, "audit.log"),
		signerKind: "file", "hadoop.kms.authentication.signature.secret.file": signature,
	})
	log := &logtest.Buffer{}
	kms, end := serveLogged(t, dir, slog.New(slog.NewTextHandler(log, nil)))
	status, r := kmstest.Readyz(t, kms)
	i := slices.IndexFunc(r.Checks, func(c kmstest.Check) bool { return c.Name == "files with secrets" })
	want := "signature secret " + signature + " may be read by everybody (mode 0644); cure: chmod o= " + signature
	if status != http.StatusOK || !r.Ready || i < 0 || r.Checks[i].OK || !r.Checks[i].Informational ||
		r.Checks[i].Error == "" || strings.Contains(r.Checks[i].Error, dir) {
		t.Errorf("%d, %+v", status, r)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), want); n != 1 {
		t.Errorf("%d times in the log:\n%s", n, log.String())
	}
}
