package kms

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/hadoopconf"
	"claviger/internal/certtest"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
	"claviger/tlskey/tlskeytest"
)

// keySite is a configuration folder of a KMS whose private key of TLS is in SoftHSM, behind a fault module. The keys of
// its clients are in the same token, without the fault module.
type keySite struct {
	*faultmodule.Module
	dir   string
	tok   softhsm.Token
	ca    *certtest.Authority
	chain string // the file with the certificates
	props map[string]string
}

func newKeySite(t *testing.T, kinds ...pkcs11.SigningKind) *keySite {
	t.Helper()
	tok, dir := softhsmtest.New(t), t.TempDir()
	s := &keySite{Module: faultmodule.New(t, tok.Module), dir: dir, tok: tok, ca: certtest.New(t, dir),
		chain: filepath.Join(dir, "chain.pem")}
	file := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label,
		PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	s.props = map[string]string{
		hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file, hadoopconf.MetastoreURI: "sqlite://" +
			filepath.Join(dir, "c.db"),
		"hadoop.kms.http.host": "127.0.0.1", "hadoop.kms.http.port": "0",
		"hadoop.kms.key.authorization.enable": "false", "claviger.audit.file": filepath.Join(dir, "audit.log"),
		"hadoop.kms.ssl.enabled": "true", tlsCertificateProperty: s.chain,
	}
	var uris []string
	var chain []byte
	for _, kind := range kinds {
		uri, public := tlskeytest.New(t, tok, s.Path, kind, string(kind))
		issued, err := os.ReadFile(s.ca.IssueFor(public, string(kind), "127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		uris, chain = append(uris, uri), append(chain, issued...)
	}
	s.props[tlsKeyProperty] = strings.ReplaceAll(strings.Join(uris, " "), "&", "&amp;") // in XML
	s.put(t, chain)
	return s
}

// put replaces the file with the certificates.
func (s *keySite) put(t *testing.T, chain []byte) {
	t.Helper()
	if err := os.WriteFile(s.chain+".new", chain, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.chain+".new", s.chain); err != nil {
		t.Fatal(err)
	}
}

// conf writes kms-site.xml, with these properties in place of others.
func (s *keySite) conf(t *testing.T, pairs ...string) *hadoopconf.Conf {
	t.Helper()
	kmstest.WriteSite(t, s.dir, with(s.props, pairs...))
	conf, err := hadoopconf.LoadKMS(s.dir, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// client makes a client with a connection of its own for each request, unless keep is true.
func (s *keySite) client(t *testing.T, keep bool, conf *tls.Config) *http.Client {
	t.Helper()
	conf = conf.Clone()
	conf.RootCAs = s.ca.Pool()
	transport := &http.Transport{DisableKeepAlives: !keep, TLSClientConfig: conf}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// fetch requests a path of a server, and returns the status, the body and the common name of the server's certificate.
func fetch(t *testing.T, c *http.Client, url string) (status int, body, name string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), resp.TLS.PeerCertificates[0].Subject.CommonName, err
}

// checkNamed returns a check of an answer of /readyz.
func checkNamed(t *testing.T, ready, name string) kmstest.Check {
	t.Helper()
	var r kmstest.Readiness
	if err := json.Unmarshal([]byte(ready), &r); err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("there is no check %q in %s", name, ready)
	return kmstest.Check{}
}

// TestTLSKeyInHSM: a KMS serves https with an RSA and an ECDSA key in the HSM, takes a new file with certificates, and
// keeps the old one if the new one is for another key.
func TestTLSKeyInHSM(t *testing.T) {
	s := newKeySite(t, pkcs11.RSA2048, pkcs11.P256)
	s.conf(t)
	var log logtest.Buffer
	url, end := serveLogged(t, s.dir, slog.New(slog.NewTextHandler(&log, nil)))
	for name, c := range map[string]struct {
		conf *tls.Config
		want string
	}{
		"TLS 1.3": {&tls.Config{MinVersion: tls.VersionTLS13}, "p256"},
		"TLS 1.2": {&tls.Config{MaxVersion: tls.VersionTLS12}, "p256"},
		"RSA": {&tls.Config{MaxVersion: tls.VersionTLS12,
			CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}, "rsa2048"},
	} {
		_, body, cn, err := fetch(t, s.client(t, false, c.conf), url+"/v1/keys/names?user.name=u")
		if err != nil || cn != c.want || body != "[]" {
			t.Errorf("%s: %s of %q, %v", name, body, cn, err)
		}
	}
	fresh := s.client(t, false, &tls.Config{})
	base := strings.TrimSuffix(url, "/kms")
	_, ready, _, err := fetch(t, fresh, base+"/readyz")
	if err != nil || !checkNamed(t, ready, "TLS key in the HSM").OK {
		t.Errorf("%v in %s", err, ready)
	}
	_, metrics, _, err := fetch(t, fresh, base+"/metrics")
	if err != nil || !strings.Contains(metrics, `claviger_tls_signature_seconds_count{op="sign",result="ok"}`) ||
		!strings.Contains(metrics, "claviger_tls_signatures_max 8") ||
		!strings.Contains(metrics, `claviger_certificate_expiry_seconds{name="`+tlsCertificateProperty) {
		t.Errorf("%v in the metrics", err)
	}

	old, err := os.ReadFile(s.chain)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(s.ca.Issue("other", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, other)
	await(t, "the certificate of another key is refused", func() bool {
		return strings.Contains(log.String(), "no certificate of the file belongs to the private key")
	})
	if _, _, cn, err := fetch(t, fresh, base+"/healthz"); err != nil || cn != "p256" {
		t.Errorf("%q, %v", cn, err)
	}
	_, ready, _, err = fetch(t, fresh, base+"/readyz")
	if err != nil || !strings.Contains(ready, tlsCertificateProperty+": no certificate of the file belongs") {
		t.Errorf("%v in %s", err, ready)
	}
	_, public := tlskeytest.New(t, s.tok, "", pkcs11.P384, "unused")
	more, err := os.ReadFile(s.ca.IssueFor(public, "unused", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, append(old, more...))
	await(t, "a new file", func() bool { return strings.Contains(log.String(), "changed file was loaded") })
	if !strings.Contains(log.String(), "no private key of the HSM belongs to the certificate of CN=unused") {
		t.Errorf("the log says %s", log.String())
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}

// await waits until a condition is true.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after 30 s", what)
		}
	}
}

// TestTLSKeyHangs: while the HSM hangs at signatures, requests on open connections are answered, new connections are
// refused after the time limit, and readiness, log and metrics say so. Afterwards new connections are made again.
func TestTLSKeyHangs(t *testing.T) {
	s := newKeySite(t, pkcs11.P256)
	s.conf(t, tlsTimeoutProperty, "300ms", tlsAtOnceProperty, "2")
	var log logtest.Buffer
	url, end := serveLogged(t, s.dir, slog.New(slog.NewTextHandler(&log, nil)))
	base := strings.TrimSuffix(url, "/kms")
	kept, fresh := s.client(t, true, &tls.Config{}), s.client(t, false, &tls.Config{})
	body, _ := json.Marshal(map[string]any{"name": "k"})
	resp, err := kept.Post(url+"/v1/keys?user.name=u", //nolint:noctx // the client has a time limit
		"application/json", bytes.NewReader(body))
	if err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatal(resp, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	s.Order(faultmodule.Sign, faultmodule.Order{Action: faultmodule.Hang, Times: faultmodule.Always})
	var group sync.WaitGroup
	began := time.Now()
	for range 8 {
		group.Go(func() {
			if _, _, _, err := fetch(t, fresh, base+"/healthz"); err == nil {
				t.Error("a new connection was made")
			}
		})
	}
	for range 20 {
		status, text, _, err := fetch(t, kept, url+"/v1/key/k/_eek?eek_op=generate&num_keys=3&user.name=u")
		if err != nil || status != http.StatusOK {
			t.Errorf("on an open connection: %d %s, %v", status, text, err)
		}
	}
	group.Wait()
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
	if n := s.Running(faultmodule.Sign); n > 2 {
		t.Errorf("%d signatures at the same time", n)
	}
	status, ready, _, err := fetch(t, kept, base+"/readyz")
	if err != nil || status != http.StatusServiceUnavailable || checkNamed(t, ready, "TLS key in the HSM").OK {
		t.Errorf("%d, %v in %s", status, err, ready)
	}
	if _, metrics, _, err := fetch(t, kept, base+"/metrics"); err != nil ||
		!strings.Contains(metrics, `claviger_tls_signature_seconds_count{op="sign",result="error"} 8`) {
		t.Errorf("%v in the metrics", err)
	}
	if !strings.Contains(log.String(), "a TLS handshake is refused, because the HSM did not sign it") {
		t.Error("the log does not say it")
	}
	s.Heal()
	await(t, "a new connection", func() bool { _, _, _, err := fetch(t, fresh, base+"/healthz"); return err == nil })
	if err := end(); err != nil {
		t.Error(err)
	}
}

// TestTLSKeyRefused: a key or a certificate that cannot be used stops a start. The error names file, property, value
// and cure. A check of the files alone opens no token.
func TestTLSKeyRefused(t *testing.T) {
	s := newKeySite(t, pkcs11.P256)
	uri := s.props[tlsKeyProperty]
	other := s.ca.Issue("other", "127.0.0.1")
	for name, c := range map[string]struct {
		pairs []string
		files bool // the files alone show it
		want  []string
	}{
		"no URI": {[]string{tlsKeyProperty, "jceks://file@/x"}, true, []string{"kms-site.xml:",
			"property " + tlsKeyProperty + " has the value", "is no pkcs11: URI"}},
		"a PIN": {[]string{tlsKeyProperty, uri + "&amp;pin-value=98765"}, true, []string{"use pin-source=file:/path"}},
		"no certificate": {[]string{tlsCertificateProperty, ""}, true, []string{"property " + tlsCertificateProperty,
			"it must name a PEM file"}},
		"no file": {[]string{tlsCertificateProperty, s.chain + ".none"}, true, []string{"kms-site.xml:",
			"property " + tlsCertificateProperty + " has the value", "no such file"}},
		"time":    {[]string{tlsTimeoutProperty, "2h"}, true, []string{"it must be a time from 100ms to 1m"}},
		"at once": {[]string{tlsAtOnceProperty, "0"}, true, []string{tlsAtOnceProperty}},
		"no key": {[]string{tlsKeyProperty, strings.Replace(uri, "object=p256", "object=none", 1)}, false,
			[]string{"kms-site.xml:", "property " + tlsKeyProperty + " has the value",
				`holds no private key with label "none"`}},
		"another certificate": {[]string{tlsCertificateProperty, other}, false, []string{"kms-site.xml:",
			"property " + tlsCertificateProperty + " has the value",
			"no certificate of the file belongs to the private key", "request a certificate for that key"}},
	} {
		conf := s.conf(t, c.pairs...)
		served, err := serverTLS(conf, signWithKeys, slog.New(slog.DiscardHandler))
		if err == nil {
			served.Close()
			t.Errorf("%s: no error", name)
			continue
		}
		for _, text := range c.want {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v, want %q", name, err, text)
			}
		}
		if strings.Contains(err.Error(), "98765") {
			t.Errorf("the PIN is shown: %v", err)
		}
		calls := s.Calls(faultmodule.OpenSession)
		if faults := Faults(conf, slog.New(slog.DiscardHandler)); c.files != (len(faults) > 0) {
			t.Errorf("%s: the files show %v", name, faults)
		}
		if n := s.Calls(faultmodule.OpenSession); n != calls {
			t.Errorf("%s: a check of the files opened the token", name)
		}
	}
}

// TestTLSKeyLate: a server starts although the HSM with its key does not answer. Handshakes are refused until it does.
func TestTLSKeyLate(t *testing.T) {
	s := newKeySite(t, pkcs11.P256)
	s.conf(t)
	s.Order(faultmodule.GetTokenInfo, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_REMOVED,
		Times: faultmodule.Always})
	var log logtest.Buffer
	url, end := serveLogged(t, s.dir, slog.New(slog.NewTextHandler(&log, nil)))
	fresh := s.client(t, false, &tls.Config{})
	if _, _, _, err := fetch(t, fresh, strings.TrimSuffix(url, "/kms")+"/healthz"); err == nil ||
		!strings.Contains(log.String(), "TLS handshakes fail until it does") {
		t.Errorf("%v; the log says %s", err, log.String())
	}
	s.Heal()
	await(t, "a new connection", func() bool {
		_, _, _, err := fetch(t, fresh, strings.TrimSuffix(url, "/kms")+"/healthz")
		return err == nil
	})
	if err := end(); err != nil {
		t.Error(err)
	}
}

// TestTLSKeyJava: a Java client connects to a server whose RSA and ECDSA keys are in the HSM, with both TLS versions.
func TestTLSKeyJava(t *testing.T) {
	s := newKeySite(t, pkcs11.RSA2048, pkcs11.P256)
	javaTool(t, "javac", "-d", s.dir, "testdata/java/TLSClient.java")
	served, err := serverTLS(s.conf(t), signWithKeys, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	port, trust := listenTLS(t, served.Config), s.ca.Truststore()
	for _, c := range [][3]string{{"TLSv1.3", "-", "TLS 1.3"}, {"TLSv1.2", "-", "TLS 1.2 TLS_ECDHE_ECDSA"},
		{"TLSv1.2", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "TLS 1.2 TLS_ECDHE_RSA"}} {
		out := javaTool(t, "java", "-cp", s.dir, "TLSClient", port, trust, certtest.Password, c[0], c[1], "-")
		if !strings.HasPrefix(out, c[2]) {
			t.Errorf("%s %s: Java says %q", c[0], c[1], out)
		}
	}
	if made, failed := served.keys.Counts(); made < 4 || failed > 0 {
		t.Errorf("%d signatures, %d failed", made, failed)
	}
}
