package kms

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/keystore"
	"claviger/kms/kmstest"
	"claviger/provider"
	"claviger/secret"
)

const tlsPassword = "changeit-7"

// javaTool runs java or keytool; without a JDK the test is skipped, or fails if
// CLAVIGER_REQUIRE_JAVA says that there must be one.
func javaTool(t *testing.T, tool string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		if os.Getenv("CLAVIGER_REQUIRE_JAVA") == "1" {
			t.Fatalf("%s is not installed: %v", tool, err)
		}
		t.Skipf("%s is not installed: no Java client is tried", tool)
	}
	cmd := exec.CommandContext(t.Context(), tool, args...)
	cmd.Env = append(os.Environ(), "JAVA_TOOL_OPTIONS=-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", tool, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// tlsFolder makes a configuration folder with keytool's stores: the server's key,
// a client's, and a truststore with both. Passwords are in a credential store.
func tlsFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	trust := filepath.Join(dir, "trust.jks")
	for _, who := range []string{"server", "client"} {
		store, cert := filepath.Join(dir, who+".jks"), filepath.Join(dir, who+".cer")
		javaTool(t, "keytool", "-genkeypair", "-alias", who, "-keyalg", "RSA", "-keysize", "2048", "-dname", "CN="+who,
			"-ext", "san=ip:127.0.0.1",
			"-validity", "10", "-storetype", "JKS", "-keystore", store, "-storepass", tlsPassword, "-keypass",
			tlsPassword)
		javaTool(t, "keytool", "-exportcert", "-alias", who, "-keystore", store, "-storepass", tlsPassword, "-file",
			cert)
		javaTool(t, "keytool", "-importcert", "-noprompt", "-alias", who, "-file", cert, "-storetype", "JKS",
			"-keystore", trust, "-storepass", tlsPassword)
	}
	creds := keystore.NewJCEKS()
	for _, name := range []string{"ssl.server.keystore.password", "ssl.server.keystore.keypassword",
		"ssl.server.truststore.password"} {
		if err := creds.SetKey(name, "AES", secret.Bytes(tlsPassword), secret.Bytes("none"), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	data, err := creds.Marshal(secret.Bytes("none"))
	if err != nil {
		t.Fatal(err)
	}
	kmstest.WriteFile(t, filepath.Join(dir, "c.jceks"), string(data))
	return dir
}

// tlsServer makes a server with the folder, for tests of its TLS.
func tlsServer(t *testing.T, dir string, log *slog.Logger, site ...string) *server {
	t.Helper()
	kmstest.WriteFile(t, filepath.Join(dir, "kms-site.xml"), kmstest.SiteXML(append([]string{
		"hadoop.kms.ssl.enabled", "true",
		keystore.CredentialPathProperty, "localjceks://file" + filepath.Join(dir, "c.jceks"),
		keystore.CredentialFallbackProperty, "false",
	}, site...)...))
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	return &server{conf: conf, log: log, set: settings{tls: true}, svc: &Service{Conf: conf, Log: log}}
}

// listenTLS answers each connection with its TLS version, its suite, and whether it was
// resumed.
func listenTLS(t *testing.T, conf *tls.Config) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			conn := tls.Server(c, conf)
			if conn.Handshake() == nil {
				s := conn.ConnectionState()
				_, _ = fmt.Fprintf(conn, "%s %s resumed=%t\n", tls.VersionName(s.Version),
					tls.CipherSuiteName(s.CipherSuite), s.DidResume)
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port) //nolint:forcetypeassert // a TCP listener
}

// TestTLS uses one folder of stores for all its parts, because keytool takes seconds to make it.
func TestTLS(t *testing.T) {
	dir := tlsFolder(t)
	t.Run("Java client", func(t *testing.T) { javaTLSClient(t, dir) })
	t.Run("refused", func(t *testing.T) { tlsRefused(t, dir) })
	t.Run("environment", func(t *testing.T) {
		kmstest.WriteFile(t, filepath.Join(dir, "ssl-server.xml"), kmstest.SiteXML("ssl.server.keystore.location",
			filepath.Join(dir, "missing.jks")))
		t.Setenv("KMS_SSL_KEYSTORE_FILE", filepath.Join(dir, "server.jks"))
		var log bytes.Buffer
		s := tlsServer(t, dir, slog.New(slog.NewTextHandler(&log, nil)))
		served, err := serverTLS(s.conf, signWithKeys, s.log)
		if err != nil || !strings.Contains(log.String(), "KMS_SSL_KEYSTORE_FILE overrides property "+
			"ssl.server.keystore.location") {
			t.Fatalf("%v; log: %s", err, log.String())
		}
		served.Close()
	})
	t.Run("client's trust", func(t *testing.T) { clientTrust(t, dir) })
}

// javaTLSClient lets a Java client connect: with both TLS versions, resumption, weak suites, an
// excluded suite, and client certificates.
func javaTLSClient(t *testing.T, dir string) {
	const excluded = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
	kmstest.WriteFile(t, filepath.Join(dir, "ssl-server.xml"), kmstest.SiteXML("ssl.server.keystore.location",
		filepath.Join(dir, "server.jks"),
		"ssl.server.exclude.cipher.list", excluded+",.*_CHACHA20_.*"))
	javaTool(t, "javac", "-d", dir, "testdata/java/TLSClient.java")
	client := func(port, protocol, suite, keys string) []string {
		t.Helper()
		if keys != "-" {
			keys = filepath.Join(dir, keys)
		}
		out := javaTool(t, "java", "-cp", dir, "TLSClient", port, filepath.Join(dir, "trust.jks"), tlsPassword,
			protocol, suite, keys)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != 2 {
			t.Fatalf("Java says %q", out)
		}
		return lines
	}
	expect := func(got []string, first, second string) {
		t.Helper()
		if !strings.HasPrefix(got[0], first) || !strings.Contains(got[1], second) {
			t.Errorf("Java says %q, want %q and then %q", got, first, second)
		}
	}
	s := tlsServer(t, dir, slog.New(slog.DiscardHandler))
	served, err := serverTLS(s.conf, signWithKeys, s.log)
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	port := listenTLS(t, served.Config)
	expect(client(port, "TLSv1.3", "-", "-"), "TLS 1.3 TLS_", "resumed=true")
	// Go's tickets of TLS 1.2 have the lifetime hint 0, so Java discards them and resumes only with
	// TLS 1.3. Other clients also resume with 1.2.
	expect(client(port, "TLSv1.2", "-", "-"), "TLS 1.2 TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "resumed=false")
	resumes(t, dir, port)
	expect(client(port, "TLSv1.2", excluded, "-"), "refused", "refused")
	expect(client(port, "TLSv1.2", "TLS_RSA_WITH_AES_128_CBC_SHA", "-"), "refused", "refused")
	expect(client(port, "TLSv1.2", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "-"), "refused", "refused")

	only := tlsServer(t, dir, slog.New(slog.DiscardHandler), "hadoop.ssl.enabled.protocols", "TLSv1.2,TLSv1")
	limited, err := serverTLS(only.conf, signWithKeys, only.log)
	if err != nil {
		t.Fatal(err)
	}
	defer limited.Close()
	expect(client(listenTLS(t, limited.Config), "TLSv1.3", "-", "-"), "refused", "refused")

	kmstest.WriteFile(t, filepath.Join(dir, "ssl-server.xml"), kmstest.SiteXML("ssl.server.keystore.location",
		filepath.Join(dir, "server.jks"),
		"ssl.server.truststore.location", filepath.Join(dir, "trust.jks"), "ssl.server.need.client.auth", "true"))
	mutual, err := serverTLS(s.conf, signWithKeys, s.log)
	if err != nil {
		t.Fatal(err)
	}
	defer mutual.Close()
	port = listenTLS(t, mutual.Config)
	expect(client(port, "TLSv1.2", "-", "-"), "refused", "refused")
	expect(client(port, "TLSv1.3", "-", "client.jks"), "TLS 1.3", "resumed=true")

	if err := s.svc.checkCertificates(t.Context()); err == nil || !strings.Contains(err.Error(),
		"ssl.server.keystore.location: the certificate of CN=server expires at ") {
		t.Errorf("certificates of ten days: %v", err)
	}
}

// resumes connects twice with TLS 1.2; the second connection must resume the first.
func resumes(t *testing.T, dir, port string) {
	t.Helper()
	roots, err := keystore.TLSFile{Path: filepath.Join(dir, "trust.jks")}.Roots()
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
		ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for _, want := range []string{"resumed=false", "resumed=true"} {
		conn, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", port), conf)
		if err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(conn)
		_ = conn.Close()
		if err != nil || !strings.Contains(string(said), want) {
			t.Errorf("the server says %q, %v, want %s", said, err, want)
		}
	}
}

// tlsRefused: wrong settings stop the start, and the error names them.
func tlsRefused(t *testing.T, dir string) {
	for _, test := range []struct {
		site, server []string
		want         string
	}{
		{[]string{"hadoop.ssl.enabled.protocols", "TLSv1,SSLv2Hello"}, nil,
			`hadoop.ssl.enabled.protocols has the value "TLSv1,SSLv2Hello"; it must name TLSv1.2 or TLSv1.3`},
		{[]string{"hadoop.ssl.enabled.protocols", "TLSv1.4"}, nil, `"TLSv1.4" is not a known protocol`},
		{nil, []string{"ssl.server.exclude.cipher.list", "TLS_("},
			`"TLS_(" is neither a cipher suite nor a regular expression`},
		{nil, []string{"ssl.server.exclude.cipher.list", "TLS_ECDHE_.*"}, "it excludes all cipher suites"},
		{nil, []string{"ssl.server.keystore.password", "clear"}, ""}, // the credential store is first
		{[]string{keystore.CredentialPathProperty, "localjceks://file/nowhere/none.jceks"},
			[]string{"ssl.server.keystore.password", "clear"}, keystore.CredentialFallbackProperty + "=false forbids"},
	} {
		kmstest.WriteFile(t, filepath.Join(dir, "ssl-server.xml"),
			kmstest.SiteXML(append([]string{"ssl.server.keystore.location", filepath.Join(dir, "server.jks")},
				test.server...)...))
		s := tlsServer(t, dir, slog.New(slog.DiscardHandler), test.site...)
		served, err := serverTLS(s.conf, signWithKeys, s.log)
		if err == nil {
			served.Close()
		}
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(),
			test.want)) {
			t.Errorf("%q %q: %v, want %q", test.site, test.server, err, test.want)
		}
	}
}

// clientTrust: the priority of the settings, and a truststore without a password, as a migrated
// configuration has it.
func clientTrust(t *testing.T, dir string) {
	trust, none := filepath.Join(dir, "trust.jks"), filepath.Join(dir, "none.jks")
	trusts := func(site []string) (bool, error) {
		s := tlsServer(t, dir, slog.New(slog.DiscardHandler), site...)
		conf, err := s.svc.ClientTLS(provider.Env{})
		return conf != nil && conf.RootCAs != nil, err
	}
	for _, name := range append(javaOptions, "claviger_none") {
		t.Setenv(name, "")
	}
	if ok, err := trusts(nil); ok || err != nil {
		t.Errorf("without any setting: %t, %v", ok, err)
	}
	t.Setenv("HADOOP_OPTS", "-Xmx1g -Djavax.net.ssl.trustStore='"+none+"'")
	if _, err := trusts(nil); err == nil || !strings.Contains(err.Error(), "environment variable HADOOP_OPTS: ") ||
		!strings.Contains(err.Error(), none) {
		t.Errorf("a truststore that does not exist: %v", err)
	}
	t.Setenv("KMS_OPTS", `-Djavax.net.ssl.trustStore=`+none+` -Djavax.net.ssl.trustStore="`+trust+`"`)
	if ok, err := trusts(nil); !ok || err != nil {
		t.Errorf("from KMS_OPTS, without a password: %t, %v", ok, err)
	}
	t.Setenv("KMS_OPTS", "-Djavax.net.ssl.trustStore="+trust+" -Djavax.net.ssl.trustStorePassword=wrong")
	if _, err := trusts(nil); err == nil || !strings.Contains(err.Error(), "wrong password") {
		t.Errorf("with a wrong password: %v", err)
	}
	kmstest.WriteFile(t, filepath.Join(dir, "ssl-client.xml"), kmstest.SiteXML("ssl.client.truststore.location", trust))
	if ok, err := trusts(nil); !ok || err != nil {
		t.Errorf("from ssl-client.xml, before the environment: %t, %v", ok, err)
	}
	if _, err := trusts([]string{"claviger.ssl.truststore", none}); err == nil || !strings.Contains(err.Error(),
		"kms-site.xml:5: property claviger.ssl.truststore has the value ") {
		t.Errorf("claviger.ssl.truststore, before ssl-client.xml: %v", err)
	}
}
