package diagnosis

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/certtest"
	"claviger/internal/faultmodule"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
	"claviger/tlskey/tlskeytest"
)

const year = 365 * 24 * time.Hour

// secure gives the site TLS, with a certificate for these hosts.
func (l *lab) secure(hosts ...string) *certtest.Authority {
	l.t.Helper()
	a := certtest.NewUntil(l.t, l.t.TempDir(), time.Now().Add(year+time.Hour))
	l.use(a.Keystore("kms", hosts...), certtest.Password)
	return a
}

// use gives the site TLS with a keystore.
func (l *lab) use(keystore, password string) {
	l.t.Helper()
	data, err := os.ReadFile(keystore)
	l.must(err)
	l.must(os.WriteFile(l.path("server.p12"), data, 0o600))
	kmstest.WriteFile(l.t, l.path("ssl-server.xml"), kmstest.SiteXML(
		"ssl.server.keystore.location", l.path("server.p12"), "ssl.server.keystore.password", password))
	l.must(os.Chmod(l.path("ssl-server.xml"), 0o600))
	l.set("hadoop.kms.ssl.enabled", "true")
}

// hdfs gives the site a folder with HDFS' configuration.
func (l *lab) hdfs(pairs ...string) {
	l.t.Helper()
	if l.o.HDFS == "" {
		l.o.HDFS = l.path("hdfs")
		l.must(os.Mkdir(l.o.HDFS, 0o700))
	}
	kmstest.WriteFile(l.t, filepath.Join(l.o.HDFS, "core-site.xml"), kmstest.SiteXML(pairs...))
}

// trust gives HDFS a truststore.
func (l *lab) trust(file string) {
	l.t.Helper()
	l.hdfs(hdfsPath, "kms://https@127.0.0.1:9600/kms")
	data, err := os.ReadFile(file)
	l.must(err)
	l.must(os.WriteFile(l.path("trust.p12"), data, 0o600))
	kmstest.WriteFile(l.t, filepath.Join(l.o.HDFS, "ssl-client.xml"), kmstest.SiteXML(
		"ssl.client.truststore.location", l.path("trust.p12"), "ssl.client.truststore.password", certtest.Password))
}

// selfSigned makes a certificate that is signed with its own key, and gives it to the site. change may set its fields.
func (l *lab) selfSigned(change func(*x509.Certificate)) {
	l.t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	l.must(err)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kms.example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(year)}
	change(c)
	der, err := x509.CreateCertificate(rand.Reader, c, c, public, private)
	l.must(err)
	key, err := x509.MarshalPKCS8PrivateKey(private)
	l.must(err)
	kmstest.WriteFile(l.t, l.path("own.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))+
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	l.use(l.path("own.pem"), "")
}

// between returns a provocation: a certificate whose validity begins and ends so long from now.
func between(begins, ends time.Duration) func(*lab) {
	return func(l *lab) {
		a := certtest.NewUntil(l.t, l.t.TempDir(), time.Now().Add(year))
		a.Begins, a.Ends = time.Now().Add(begins), time.Now().Add(ends+time.Minute)
		l.use(a.Keystore("kms", "127.0.0.1"), certtest.Password)
	}
}

// exclude keeps the server from using cipher suites.
func (l *lab) exclude(suites ...string) {
	l.t.Helper()
	kmstest.WriteFile(l.t, l.path("ssl-server.xml"), kmstest.SiteXML(
		"ssl.server.keystore.location", l.path("server.p12"), "ssl.server.keystore.password", certtest.Password,
		"ssl.server.exclude.cipher.list", strings.Join(suites, ",")))
	l.must(os.Chmod(l.path("ssl-server.xml"), 0o600))
}

func suiteNames(ids []uint16) (names []string) {
	for _, id := range ids {
		names = append(names, tls.CipherSuiteName(id))
	}
	return names
}

// javaTrusts makes JAVA_HOME a Java whose cacerts have the authority.
func (l *lab) javaTrusts(a *certtest.Authority) {
	l.t.Helper()
	data, err := os.ReadFile(a.Truststore())
	l.must(err)
	l.must(os.MkdirAll(l.path("java/lib/security"), 0o700))
	l.must(os.WriteFile(l.path("java/lib/security/cacerts"), data, 0o600))
	l.t.Setenv("JAVA_HOME", l.path("java"))
}

// keyInHSM gives the site TLS, with a private key in the HSM.
func (l *lab) keyInHSM() {
	l.t.Helper()
	uri, public := tlskeytest.New(l.t, l.token, l.Path, pkcs11.P256, "kms-tls")
	a := certtest.NewUntil(l.t, l.t.TempDir(), time.Now().Add(year+time.Hour))
	data, err := os.ReadFile(a.IssueFor(public, "kms", "127.0.0.1"))
	l.must(err)
	l.must(os.WriteFile(l.path("kms.pem"), data, 0o600))
	l.set("hadoop.kms.ssl.enabled", "true")
	l.set("claviger.ssl.certificate", l.path("kms.pem"))
	l.set("claviger.ssl.key", strings.ReplaceAll(uri, "&", "&amp;"))
}

// TestHealthyTLSKey: a site whose private key of TLS is in the HSM has no warning.
func TestHealthyTLSKey(t *testing.T) {
	l := newLab(t)
	l.keyInHSM()
	text, err := l.check("D-conf-files", "D-conf-secrets", "D-tls-chain", "D-tls-key", "D-tls-names", "D-tls-expiry",
		"D-tls-protocols")
	for _, want := range []string{"certificates in the chain: 2", "the HSM signs", "valid for 127.0.0.1",
		"claviger.ssl.certificate: CN=", "Java 8 would connect with TLS 1.2, TLS_ECDHE_ECDSA_WITH_AES_"} {
		if err != nil || !strings.Contains(text, want) || strings.Contains(text, "warning  ") {
			t.Errorf("%v: %q is not in\n%s", err, want, text)
		}
	}
}

// tlsFailures are failures of the server's TLS.
var tlsFailures = []failure{
	{"no keystore", "D-tls-chain", false, set("hadoop.kms.ssl.enabled", "true")},
	{"a wrong password", "D-tls-chain", false, func(l *lab) {
		l.use(certtest.New(l.t, l.t.TempDir()).Keystore("kms", "127.0.0.1"), "wrong")
	}},
	{"a chain in the wrong order", "D-tls-chain", false, func(l *lab) {
		a, b := certtest.New(l.t, l.t.TempDir()), certtest.New(l.t, l.t.TempDir())
		own, err := os.ReadFile(a.Issue("kms", "127.0.0.1"))
		l.must(err)
		other, err := os.ReadFile(b.CA)
		l.must(err)
		kmstest.WriteFile(l.t, l.path("mixed.pem"), string(own)+string(other))
		l.use(l.path("mixed.pem"), "")
	}},
	{"a certificate of a client", "D-tls-chain", false, func(l *lab) {
		l.selfSigned(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	}},
	{"a key that old Java does not know", "D-tls-chain", false, func(l *lab) {
		l.selfSigned(func(*x509.Certificate) {})
	}},
	{"an HSM that does not answer", "D-tls-key", false, func(l *lab) {
		l.keyInHSM()
		l.Order(faultmodule.GetTokenInfo, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_REMOVED,
			Times: faultmodule.Always})
	}},
	{"a slow HSM", "D-tls-key", false, func(l *lab) {
		l.keyInHSM()
		l.Delay(faultmodule.Sign, 150*time.Millisecond)
	}},
	{"a certificate of another key than that of the HSM", "D-tls-chain", false, func(l *lab) {
		l.keyInHSM()
		data, err := os.ReadFile(certtest.New(l.t, l.t.TempDir()).Issue("kms", "127.0.0.1"))
		l.must(err)
		l.must(os.WriteFile(l.path("kms.pem"), data, 0o600))
	}},
	{"another host's name", "D-tls-names", false, func(l *lab) { l.secure("kms-2.example.com", "192.0.2.7") }},
	{"a common name only", "D-tls-names", false, func(l *lab) { l.selfSigned(func(*x509.Certificate) {}) }},
	{"few days", "D-tls-expiry", false, between(-time.Hour, 10*24*time.Hour)},
	{"no days", "D-tls-expiry", false, between(-2*time.Hour, -time.Hour)},
	{"not yet", "D-tls-expiry", false, between(time.Hour, 100*24*time.Hour)},
	{"an old certificate in the truststore", "D-tls-expiry", false, func(l *lab) {
		l.secure("127.0.0.1")
		old := certtest.NewUntil(l.t, l.t.TempDir(), time.Now().Add(-time.Minute))
		set("claviger.ssl.truststore", old.CA)(l)
	}},
	{"a truststore that does not exist", "D-tls-expiry", false, func(l *lab) {
		l.secure("127.0.0.1")
		set("claviger.ssl.truststore", "DIR/none.p12")(l)
	}},
	{"TLS 1.3 only", "D-tls-protocols", false, func(l *lab) {
		l.secure("127.0.0.1")
		set("hadoop.ssl.enabled.protocols", "TLSv1.3")(l)
	}},
	{"no cipher suite of Java 8", "D-tls-protocols", false, func(l *lab) {
		l.secure("127.0.0.1")
		l.exclude(append(suiteNames(javaSuites), "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384")...)
	}},
	{"a Java that trusts another authority", "D-tls-java", false, func(l *lab) {
		l.secure("127.0.0.1")
		l.hdfs(hdfsPath, "kms://https@127.0.0.1:9600/kms")
		l.javaTrusts(certtest.New(l.t, l.t.TempDir()))
	}},
	{"HDFS trusts another authority", "D-tls-java", false, func(l *lab) {
		l.secure("127.0.0.1")
		l.trust(certtest.New(l.t, l.t.TempDir()).Truststore())
	}},
	{"HDFS' truststore is no keystore", "D-tls-java", false, func(l *lab) {
		l.trust(l.secure("127.0.0.1").CA)
		l.must(os.WriteFile(l.path("trust.p12"), []byte("no keystore"), 0o600))
	}},
	{"a folder without HDFS' configuration", "D-tls-java", false, func(l *lab) {
		l.secure("127.0.0.1")
		l.o.HDFS = l.dir + "/none"
	}},
}

// TestTLSFailures provokes each finding about TLS.
func TestTLSFailures(t *testing.T) { provokeAll(t, "tls.golden", tlsFailures) }

// TestHealthyTLS: a site with TLS, whose certificate HDFS trusts, has no warning.
func TestHealthyTLS(t *testing.T) {
	l := newLab(t)
	l.trust(l.secure("127.0.0.1").Truststore())
	l.wantHealthy("with TLS")
	text, err := l.check("D-tls-chain", "D-tls-names", "D-tls-expiry", "D-tls-protocols", "D-tls-java")
	for _, want := range []string{"certificates in the chain: 2", "valid for 127.0.0.1", "days left: 365",
		"TLS 1.2 to TLS 1.3", "Java 8 would connect with TLS 1.2, TLS_ECDHE_ECDSA_WITH_AES_",
		"Java 11 would connect with TLS 1.3, TLS_AES_", "trust.p12 trusts the server's certificate"} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("%v: %q is not in\n%s", err, want, text)
		}
	}
}

// TestKindsOfKeys: if a server has only an RSA key, the result says what an ECDSA key saves. If a server has both, each
// chain is checked.
func TestKindsOfKeys(t *testing.T) {
	l := newLab(t)
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	l.must(err)
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	l.must(err)
	file := ""
	for _, key := range []crypto.Signer{r, e} {
		private, own := l.certify(key, "kms.example.com")
		file += private + own
		kmstest.WriteFile(t, l.path("own.pem"), file)
		l.use(l.path("own.pem"), "")
		text, err := l.check("D-tls-chain")
		both := key == crypto.Signer(e)
		if err != nil || !strings.Contains(text, "; RSA; ") || strings.Contains(text, "RSA only: ") == both ||
			strings.Contains(text, "; ECDSA; ") != both {
			t.Errorf("both kinds %t: %v\n%s", both, err, text)
		}
	}
}

// certify makes a certificate for hosts, signed by its own key, and returns both in PEM.
func (l *lab) certify(key crypto.Signer, host string, ips ...net.IP) (private, own string) {
	l.t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host},
		DNSNames: []string{host}, IPAddresses: ips, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(year)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	l.must(err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	l.must(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// TestSecondCertificate: if a server has two certificates, the check finds the names of each, and whether HDFS trusts
// it.
func TestSecondCertificate(t *testing.T) {
	l := newLab(t)
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	l.must(err)
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	l.must(err)
	rsaKey, rsaOwn := l.certify(r, "kms-2.example.com")
	ecdsaKey, ecdsaOwn := l.certify(e, "kms-2.example.com", net.IPv4(127, 0, 0, 1))
	kmstest.WriteFile(t, l.path("both.pem"), rsaKey+rsaOwn+ecdsaKey+ecdsaOwn)
	kmstest.WriteFile(t, l.path("trusted.pem"), rsaOwn)
	l.use(l.path("both.pem"), "")
	l.trust(l.path("trusted.pem"))
	text, _ := l.check("D-tls-names", "D-tls-java")
	for _, want := range []string{"ok       D-tls-names  valid for 127.0.0.1",
		"failure  D-tls-names  the certificate is valid for kms-2.example.com, and not for 127.0.0.1",
		"trust.p12 trusts the server's certificate of CN=kms-2.example.com (RSA)",
		"trust.p12 does not lead to a trusted certificate for CN=kms-2.example.com"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}

// TestNamesOfHost: the name by which clients reach a host is in question if the name service does not know its full
// name.
func TestNamesOfHost(t *testing.T) {
	l := newLab(t)
	l.secure("kms-1.example.com")
	l.set("hadoop.kms.http.host", "kms-1")
	if text, err := l.check("D-tls-names"); err != nil || !strings.Contains(text, "is not known") {
		t.Errorf("%v\n%s", err, text)
	}
	l.set("hadoop.kms.http.host", "kms-1.example.com")
	if text, err := l.check("D-tls-names"); err != nil || !strings.Contains(text, "valid for kms-1.example.com") {
		t.Errorf("%v\n%s", err, text)
	}
}
