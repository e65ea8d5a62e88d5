package hadoop

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// operations are those that kms-acls.xml knows.
var operations = strings.Fields("CREATE DELETE ROLLOVER GET GET_KEYS GET_METADATA " +
	"SET_KEY_MATERIAL GENERATE_EEK DECRYPT_EEK")

// OpenACLs is a kms-acls.xml that lets everybody do everything. Without the
// default.key.acl entries a KMS refuses every operation on a key.
func OpenACLs() Conf {
	c := Conf{}
	for _, op := range operations {
		c["hadoop.kms.acl."+op] = "*"
	}
	for _, op := range []string{"MANAGEMENT", "GENERATE_EEK", "DECRYPT_EEK", "READ"} {
		c["default.key.acl."+op] = "*"
	}
	return c
}

// SiteACLs is a kms-acls.xml as a site has it: the key administrator sees no
// EDEK, the HDFS superuser may have EDEKs made and is kept from decrypting, and
// nobody sees key material.
func SiteACLs(keyAdmin, reader string) Conf {
	return Conf{
		"hadoop.kms.acl.CREATE":            keyAdmin,
		"hadoop.kms.acl.DELETE":            keyAdmin,
		"hadoop.kms.acl.ROLLOVER":          keyAdmin,
		"hadoop.kms.acl.GET":               " ",
		"hadoop.kms.acl.GET_KEYS":          keyAdmin,
		"hadoop.kms.acl.GET_METADATA":      keyAdmin + "," + HDFSUser,
		"hadoop.kms.acl.SET_KEY_MATERIAL":  " ",
		"hadoop.kms.acl.GENERATE_EEK":      HDFSUser,
		"hadoop.kms.acl.DECRYPT_EEK":       reader,
		"hadoop.kms.blacklist.DECRYPT_EEK": HDFSUser,
		"default.key.acl.MANAGEMENT":       keyAdmin,
		"default.key.acl.READ":             keyAdmin + "," + HDFSUser,
		"default.key.acl.GENERATE_EEK":     HDFSUser,
		"default.key.acl.DECRYPT_EEK":      reader,
	}
}

// GrantMigration adds to a site's kms-acls.xml exactly what docs/migration.md says
// that a source must grant to the server that takes over: it lists keys, reads
// metadata, and decrypts in its own name for re-encryption. It never gets the
// operation GET, which would show it key material.
func GrantMigration(acls Conf, migrator string) {
	for _, op := range []string{"GET_KEYS", "GET_METADATA", "DECRYPT_EEK"} {
		acls["hadoop.kms.acl."+op] += "," + migrator
	}
	acls["whitelist.key.acl.READ"] = migrator
	acls["whitelist.key.acl.DECRYPT_EEK"] = migrator
}

// KMSOptions say how a Java KMS is to run. The zero value serves a fresh
// keystore to everybody.
type KMSOptions struct {
	Keystore string // file; a fresh one where empty
	ACLs     Conf   // kms-acls.xml; OpenACLs where nil
	Site     Conf   // on top of what the harness puts into kms-site.xml
	Env      []string
	Krb5Conf string // where it wants Kerberos: the configuration of the realm. It then is localhost
}

// KMS is a running key management server, Hadoop's or ours.
type KMS struct {
	*Process
	// URL is where it answers: "http://127.0.0.1:PORT/kms".
	URL string
	// Keystore is its JCEKS file, where it has one.
	Keystore string
}

// ProviderURI is the server as a Hadoop key provider:
// "kms://http@127.0.0.1:PORT/kms".
func (k *KMS) ProviderURI() string { return ProviderURI(k.URL) }

// ProviderURI turns a KMS's base URL into the URI that Hadoop's clients take.
func ProviderURI(base string) string {
	scheme, rest, _ := strings.Cut(base, "://")
	return "kms://" + scheme + "@" + rest
}

// StartJavaKMS runs Hadoop's own KMS over a JCEKS keystore.
func StartJavaKMS(t testing.TB, o KMSOptions) *KMS {
	t.Helper()
	Require(t)
	dir := t.TempDir()
	if o.Keystore == "" {
		o.Keystore = filepath.Join(dir, "kms.keystore")
	}
	if o.ACLs == nil {
		o.ACLs = OpenACLs()
	}
	port := FreePorts(t, 1)[0]
	core := noGroups.With(Conf{"hadoop.tmp.dir": filepath.Join(dir, "tmp")})
	// JAXB inside Jersey 1 reflects into java.lang. Without this the port is
	// bound, the context fails, and connections hang for ever.
	flags := []string{"--add-opens=java.base/java.lang=ALL-UNNAMED", "-Dkms.config.dir=" + dir}
	host := "127.0.0.1"
	if o.Krb5Conf != "" {
		core["hadoop.security.authentication"] = "kerberos"
		flags, host = append(flags, "-Djava.security.krb5.conf="+o.Krb5Conf), "localhost" // as in the principal
	}
	core.Write(t, filepath.Join(dir, "core-site.xml"))
	Conf{
		"hadoop.kms.http.host":        "127.0.0.1",
		"hadoop.kms.http.port":        fmt.Sprint(port),
		"hadoop.kms.key.provider.uri": "jceks://file@" + o.Keystore,
	}.With(o.Site).Write(t, filepath.Join(dir, "kms-site.xml"))
	o.ACLs.Write(t, filepath.Join(dir, "kms-acls.xml"))
	writeLog4j(t, dir, "INFO")

	p := Start(t, "java-kms", java{
		name:  "java-kms",
		conf:  dir,
		flags: flags,
		main:  "org.apache.hadoop.crypto.key.kms.server.KMSWebServer",
		env:   o.Env,
	}.command(context.Background(), t))
	k := &KMS{Process: p, URL: fmt.Sprintf("http://%s:%d/kms", host, port), Keystore: o.Keystore}
	p.WaitFor("an answer at "+k.URL, func() bool { return Answers(k.URL) })
	return k
}

// Answers reports whether a KMS at base answers a request at all; that it asks
// who we are is answer enough.
func Answers(base string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v1/keys/names", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode < 500
}
