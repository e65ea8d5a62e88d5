package kms

import (
	"bytes"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/internal/certtest"
	"claviger/internal/pgtest"
	"claviger/keystore"
	"claviger/kms/kmstest"
	"claviger/secret"
	"claviger/zookeeper"
)

// with returns the properties of base, with some of them replaced.
func with(base map[string]string, pairs ...string) map[string]string {
	site := map[string]string{}
	for name, value := range base {
		site[name] = value
	}
	for i := 0; i < len(pairs); i += 2 {
		site[pairs[i]] = pairs[i+1]
	}
	return site
}

var (
	signerSite = map[string]string{signerKind: "zookeeper", signerEnsemble: "127.0.0.1:1"}
	tokensSite = map[string]string{tokensEnable: "true", tokensEnsemble: "127.0.0.1:1", tokensPrefix +
		"zkAuthType": "none"}
)

// TestClusterRefused: settings that cannot work are refused before anything is opened. The
// error names property, value and cure.
func TestClusterRefused(t *testing.T) {
	keytab := filepath.Join(t.TempDir(), "kms.keytab")
	if err := os.WriteFile(keytab, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		site map[string]string
		want []string
	}{
		"the template's servers": {map[string]string{signerKind: "zookeeper"}, []string{signerEnsemble, "#HOSTNAME#",
			"HOST:PORT,HOST:PORT"}},
		"an invalid port": {with(signerSite, signerEnsemble, "zk1:port"), []string{"kms-site.xml",
			signerEnsemble, "zk1:port", "1 to 65535"}},
		"a chroot with a slash": {with(signerSite, signerEnsemble, "zk1:2181/a/"), []string{signerEnsemble,
			"zk1:2181/a/"}},
		"an invalid path": {with(signerSite, signerPrefix+"path", "secret"), []string{"kms-site.xml",
			signerPrefix + "path", "secret", "begin with /"}},
		"an unknown type": {with(signerSite, signerPrefix+"auth.type", "digest"), []string{"kms-site.xml",
			signerPrefix + "auth.type", "digest", "none or sasl"}},
		"sasl without a keytab": {with(signerSite, signerPrefix+"auth.type", "sasl", signerPrefix+"kerberos.keytab",
			"/nowhere/kms.keytab"), []string{"kms-site.xml", signerPrefix + "kerberos.keytab", "/nowhere/kms.keytab",
			"this process can read"}},
		"kerberos, as of Ambari": {with(signerSite, signerPrefix+"auth.type", "kerberos",
			signerPrefix+"kerberos.keytab", "/nowhere/kms.keytab"), []string{signerPrefix + "kerberos.keytab",
			"/nowhere/kms.keytab"}},
		"the template's principal": {with(signerSite, signerPrefix+"auth.type", "sasl", signerPrefix+"kerberos.keytab",
			keytab), []string{signerPrefix + "kerberos.principal", "kms/#HOSTNAME#", "kms/_HOST@REALM"}},
		"TLS without a truststore": {with(signerSite, signerPrefix+"ssl.enabled", "true"), []string{signerPrefix +
			"ssl.truststore.location", "needs a truststore"}},
		"a missing truststore": {with(signerSite, signerPrefix+"ssl.enabled", "true",
			signerPrefix+"ssl.truststore.location", "/nowhere/trust.jks"), []string{signerPrefix +
			"ssl.truststore.location", "/nowhere/trust.jks"}},
		"tokens without servers": {map[string]string{tokensEnable: "true"}, []string{tokensEnsemble,
			"HOST:PORT,HOST:PORT"}},
		"tokens without a type": {map[string]string{tokensEnable: "true", tokensEnsemble: "zk1"},
			[]string{tokensPrefix + "zkAuthType", "none or sasl"}},
		"tokens, sasl, no keytab": {with(tokensSite, tokensPrefix+"zkAuthType", "sasl"), []string{tokensPrefix +
			"kerberos.keytab", "SASL needs a keytab"}},
		"a working path": {with(tokensSite, tokensPrefix+"znodeWorkingPath", "a//b"), []string{"kms-site.xml",
			tokensPrefix + "znodeWorkingPath", "a//b"}},
		"no metastore": {map[string]string{hadoopconf.MetastoreURI: "claviger.db"}, []string{"kms-site.xml",
			hadoopconf.MetastoreURI, "claviger.db", "absolute path"}},
		"an empty batch": {with(tokensSite, tokensPrefix+"token.seqnum.batch.size", "0"),
			[]string{"kms-site.xml", tokensPrefix + "token.seqnum.batch.size", "0"}},
	} {
		t.Run(name, func(t *testing.T) {
			c1, err := openCluster(t.Context(), kmstest.Conf(t, c.site), slog.New(slog.DiscardHandler))
			if err == nil {
				if err := c1.Close(); err != nil {
					t.Error(err)
				}
				t.Fatal("it was accepted")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q should hold %q", err, want)
				}
			}
		})
	}
}

// TestClusterAccepted: tokens use the signer's connection, if there is one. Settings without
// effect cause warnings.
func TestClusterAccepted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "claviger.db")
	for name, c := range map[string]struct {
		site            map[string]string
		signers, tokens bool
		connections     int
		warning         string
	}{
		"nothing":      {map[string]string{"hadoop.kms.http.port": "0"}, false, false, 0, ""},
		"cookies":      {signerSite, true, false, 1, ""},
		"tokens":       {tokensSite, false, true, 1, ""},
		"one for both": {with(signerSite, tokensEnable, "true"), true, true, 1, ""},
		"another one": {with(signerSite, tokensEnable, "true", tokensEnsemble, "zk9:1"), true, true, 1,
			tokensEnsemble + " is not used"},
		"its own file":       {map[string]string{hadoopconf.MetastoreURI: "sqlite://" + file}, false, true, 1, ""},
		"a file, and tokens": {with(tokensSite, hadoopconf.MetastoreURI, "sqlite://"+file), false, true, 1, ""},
		"sasl without a signer": {map[string]string{signerPrefix + "auth.type": "sasl"}, false, false, 0,
			"set it to zookeeper on every node"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			got, err := openCluster(t.Context(), kmstest.Conf(t, c.site), slog.New(slog.NewTextHandler(&log,
				&slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
					if a.Key == "err" || a.Key == slog.TimeKey { // no server answers in this test
						return slog.Attr{}
					}
					return a
				}})))
			if err != nil {
				t.Fatal(err)
			}
			if err := got.Close(); err != nil {
				t.Error(err)
			}
			if (got.signers != nil) != c.signers || (got.tokens != nil) != c.tokens ||
				len(got.checks) != c.connections {
				t.Errorf("signers %v, tokens %v, %d connections", got.signers, got.tokens, len(got.checks))
			}
			want := rememberOwn
			if _, zk := got.tokens.(*zookeeper.Tokens); zk {
				want = 0
			}
			r := &reader{conf: kmstest.Conf(t, c.site)}
			if d := r.delegations(got, slog.Default()); d.Remember != want || d.Store != got.tokens {
				t.Errorf("tokens of %T are remembered for %v, want %v", d.Store, d.Remember, want)
			}
			// A Java KMS that shares ZooKeeper needs the passwords.
			if _, zk := got.tokens.(*zookeeper.Tokens); c.tokens && got.digests == zk {
				t.Errorf("a store %T gets digests: %v", got.tokens, got.digests)
			}
			if c.warning != "" && !strings.Contains(log.String(), c.warning) {
				t.Errorf("the log should warn %q: %s", c.warning, log.String())
			}
		})
	}
}

// TestClusterOfPostgres: tokens that other nodes may cancel are remembered for a second.
func TestClusterOfPostgres(t *testing.T) {
	conf := kmstest.Conf(t, map[string]string{hadoopconf.MetastoreURI: pgtest.Database(t)})
	shared, err := openCluster(t.Context(), conf, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	r := &reader{conf: conf}
	if d := r.delegations(shared, slog.Default()); d.Store == nil || d.Remember != time.Second {
		t.Errorf("tokens of %T are remembered for %v", d.Store, d.Remember)
	}
}

// TestClusterUnreachable: if no server answers, the error names property, servers and reason.
func TestClusterUnreachable(t *testing.T) {
	conf := kmstest.Conf(t, with(tokensSite, tokensPrefix+"zkConnectionTimeout", "300"))
	shared, err := openCluster(t.Context(), conf, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	err = shared.checks[0].Run(t.Context())
	for _, want := range []string{tokensEnsemble, "127.0.0.1:1", "connection refused"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v should hold %q", err, want)
		}
	}
	if !claviger.IsUnreachable(err) {
		t.Errorf("this error does not make a start wait: %v", err)
	}
	if _, err := shared.rollingSecrets(t.Context(), kmstest.Conf(t, map[string]string{signerKind: "string"}), time.Hour,
		slog.Default()); err == nil || !strings.Contains(err.Error(), "zookeeper or sql") {
		t.Errorf("an unknown provider: %v", err)
	}
}

// TestWithHost: _HOST in a principal becomes this host's name in lower case, and a principal without _HOST stays as it
// is.
func TestWithHost(t *testing.T) {
	if got, err := withHost("kms/h@R"); err != nil || got != "kms/h@R" {
		t.Errorf("%q, %v", got, err)
	}
	got, err := withHost("kms/_HOST@R")
	if err != nil || strings.Contains(got, "_HOST") || got != "kms/"+strings.ToLower(got[4:len(got)-2])+"@R" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestZooKeeperTLSPasswords: the passwords of the TLS stores may be in credential stores, like
// all passwords.
func TestZooKeeperTLSPasswords(t *testing.T) {
	dir := t.TempDir()
	authority := certtest.New(t, dir)
	props := map[string]string{
		signerPrefix + "ssl.enabled":             "true",
		signerPrefix + "ssl.truststore.location": authority.Truststore(),
		signerPrefix + "ssl.keystore.location":   authority.Keystore("kms1", "127.0.0.1"),
		keystore.CredentialPathProperty:          "localjceks://file" + filepath.Join(dir, "c.jceks"),
		keystore.CredentialFallbackProperty:      "false",
	}
	creds := keystore.NewJCEKS()
	for _, which := range []string{"truststore", "keystore"} {
		if err := creds.SetKey(signerPrefix+"ssl."+which+".password", "AES", secret.Bytes(certtest.Password),
			secret.Bytes("none"), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	data, err := creds.Marshal(secret.Bytes("none"))
	if err != nil {
		t.Fatal(err)
	}
	kmstest.WriteFile(t, filepath.Join(dir, "c.jceks"), string(data))
	open := func(props map[string]string) (*tls.Config, error) {
		c := new(cluster)
		defer func() { _ = c.Close() }()
		return c.zookeeperTLS(kmstest.Conf(t, props), slog.New(slog.DiscardHandler), signerPrefix)
	}
	settings, err := open(props)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err := settings.GetClientCertificate(nil); err != nil || len(cert.Certificate) == 0 {
		t.Errorf("%v", err)
	}
	if _, err := open(with(props, keystore.CredentialPathProperty, "localjceks://file"+filepath.Join(dir,
		"none.jceks"))); err == nil {
		t.Error("a keystore was opened without its password")
	}
}
