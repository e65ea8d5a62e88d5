package hadoop

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// operations are the operations of kms-acls.xml.
var operations = strings.Fields("CREATE DELETE ROLLOVER GET GET_KEYS GET_METADATA " +
	"SET_KEY_MATERIAL GENERATE_EEK DECRYPT_EEK")

// OpenACLs is a kms-acls.xml that allows everybody everything. Without the default.key.acl entries, a KMS refuses
// every operation on a key.
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

// SiteACLs is the kms-acls.xml of a typical site: the key administrator gets no EDEK, the HDFS superuser may
// generate EDEKs and may not decrypt them, and nobody gets key material.
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

// GrantMigration adds to the kms-acls.xml of a source exactly the rights that, as docs/migration/before.md says, the
// server of a migration needs: it lists keys, reads metadata, and decrypts in its own name for re-encryption. It
// never gets the operation GET, which returns key material.
func GrantMigration(acls Conf, migrator string) {
	for _, op := range []string{"GET_KEYS", "GET_METADATA", "DECRYPT_EEK"} {
		acls["hadoop.kms.acl."+op] += "," + migrator
	}
	acls["whitelist.key.acl.READ"] = migrator
	acls["whitelist.key.acl.DECRYPT_EEK"] = migrator
}

// KMSOptions are the options of a Java KMS. The zero value is a new keystore that is open to everybody.
type KMSOptions struct {
	Keystore string // file; "" is a new keystore
	ACLs     Conf   // kms-acls.xml; nil is OpenACLs
	Site     Conf   // further properties of kms-site.xml
	Env      []string
	Krb5Conf string // for Kerberos: the configuration of the realm. The host is then localhost
	// SSLServer is ssl-server.xml, for https; nil for http.
	SSLServer Conf
	// Long means that the JVM serves for long: it has the flags of a site, not those that make it start quickly.
	Long bool
}

// KMS is a running key management server, Hadoop's or ours.
type KMS struct {
	*Process
	// URL is the base URL: "http://127.0.0.1:PORT/kms".
	URL string
	// Keystore is the JCEKS file, or "".
	Keystore string
}

// ProviderURI returns the URI of the server as a Hadoop key provider: "kms://http@127.0.0.1:PORT/kms".
func (k *KMS) ProviderURI() string { return ProviderURI(k.URL) }

// ProviderURI converts the base URL of a KMS to the URI for Hadoop's clients.
func ProviderURI(base string) string {
	scheme, rest, _ := strings.Cut(base, "://")
	return "kms://" + scheme + "@" + rest
}

// StartJavaKMS runs Hadoop's own KMS with a JCEKS keystore.
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
	// JAXB in Jersey 1 uses reflection on java.lang. Without this flag, the port is open, but the context fails,
	// and connections hang forever.
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
		"hadoop.kms.ssl.enabled":      fmt.Sprint(o.SSLServer != nil),
	}.With(o.Site).Write(t, filepath.Join(dir, "kms-site.xml"))
	o.ACLs.Write(t, filepath.Join(dir, "kms-acls.xml"))
	writeLog4j(t, dir, "INFO")
	scheme := "http"
	if o.SSLServer != nil {
		o.SSLServer.Write(t, filepath.Join(dir, "ssl-server.xml"))
		scheme = "https"
	}

	p := Start(t, "java-kms", java{
		name:  "java-kms",
		conf:  dir,
		flags: flags,
		main:  "org.apache.hadoop.crypto.key.kms.server.KMSWebServer",
		long:  o.Long,
		env:   o.Env,
	}.command(context.Background(), t))
	k := &KMS{Process: p, URL: fmt.Sprintf("%s://%s:%d/kms", scheme, host, port), Keystore: o.Keystore}
	p.WaitFor("an answer at "+k.URL, func() bool { return Answers(k.URL) })
	return k
}

// Answers reports whether a KMS at base answers a request. A request to authenticate counts as an answer.
func Answers(base string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v1/keys/names", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		// An answer with a certificate that this process does not trust is an answer.
		return errors.As(err, new(*tls.CertificateVerificationError))
	}
	resp.Body.Close()
	return resp.StatusCode < 500
}
