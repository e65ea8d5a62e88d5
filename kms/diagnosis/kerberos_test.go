package diagnosis

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/internal/kdctest"
)

const service = "HTTP/localhost"

// useKerberos configures Kerberos authentication for the site. The keytab has the KDC's keys of these principals.
func (l *lab) useKerberos(kdc *kdctest.KDC, principals ...string) {
	l.t.Helper()
	l.t.Setenv("KRB5_CONFIG", kdc.Krb5Conf)
	l.t.Setenv("KRB5RCACHEDIR", l.t.TempDir())
	name := strings.NewReplacer("/", "_", " ", "_").Replace(l.t.Name()) + ".keytab"
	for _, p := range principals {
		kdc.Admin("ktadd -norandkey -k " + filepath.Join(kdc.Dir, name) + " " + p)
	}
	data, err := os.ReadFile(filepath.Join(kdc.Dir, name))
	l.must(err)
	l.must(os.WriteFile(l.path("kms.keytab"), data, 0o600))
	l.props["hadoop.kms.authentication.type"] = "kerberos"
	l.props["hadoop.kms.authentication.kerberos.keytab"] = l.path("kms.keytab")
	l.set("hadoop.kms.authentication.kerberos.principal", service)
}

// fakeDNS makes 192.0.2.7 the address of each host, and name the name of this address.
func fakeDNS(t *testing.T, name string) {
	t.Helper()
	answer := func(text string) func(context.Context, string) ([]string, error) {
		return func(context.Context, string) ([]string, error) { return []string{text}, nil }
	}
	replace(t, &lookupHost, answer("192.0.2.7"))
	replace(t, &lookupAddr, answer(name))
}

// kerberosFailures returns failures of Kerberos authentication.
func kerberosFailures(kdc *kdctest.KDC) []failure {
	secured := func(then func(*lab)) func(*lab) {
		return func(l *lab) {
			l.useKerberos(kdc, service)
			then(l)
		}
	}
	return []failure{
		{"no keytab", "D-kerberos-keytab", false, secured(func(l *lab) { l.must(os.Remove(l.path("kms.keytab"))) })},
		{"a file that is not a keytab", "D-kerberos-keytab", false, secured(func(l *lab) {
			l.must(os.WriteFile(l.path("kms.keytab"), []byte("text"), 0o600))
		})},
		{"the key of another service", "D-kerberos-keytab", false, func(l *lab) {
			l.useKerberos(kdc, "hdfs/localhost")
		}},
		{"a principal of another service", "D-kerberos-keytab", false, secured(
			set("hadoop.kms.authentication.kerberos.principal", "kms/localhost"))},
		{"a key that was changed", "D-kerberos-kdc", false, secured(func(*lab) {
			kdc.Admin("change_password -randkey " + service)
		})},
		{"a principal that is gone", "D-kerberos-kdc", false, func(l *lab) {
			kdc.Admin("addprinc -randkey HTTP/gone.localhost")
			l.useKerberos(kdc, "HTTP/gone.localhost")
			set("hadoop.kms.authentication.kerberos.principal", "HTTP/gone.localhost")(l)
			kdc.Admin("delprinc -force HTTP/gone.localhost")
		}},
		{"another reverse name", "D-kerberos-names", false, secured(func(l *lab) {
			fakeDNS(l.t, "vip.example.com.")
		})},
		{"a host without an address", "D-kerberos-names", false, secured(func(l *lab) {
			replace(l.t, &lookupHost, func(context.Context, string) ([]string, error) {
				return nil, errors.New("no such host")
			})
		})},
		{"rules without a user", "D-kerberos-rules", false, secured(set(
			"hadoop.kms.authentication.kerberos.name.rules", "RULE:[2:$1](hdfs|HTTP)"))},
		{"rules of the cluster only", "D-kerberos-rules", false, secured(
			set("hadoop.security.auth_to_local", "RULE:[2:$1](HTTP)s/.*/kms/ DEFAULT"))},
		{"a proxy user of the cluster only", "D-kerberos-proxy", false, func(l *lab) {
			l.hdfs("hadoop.proxyuser.hive.hosts", "*", "hadoop.proxyuser.hive.groups", "*",
				"hadoop.proxyuser.oozie.hosts", "*")
			set("hadoop.kms.proxyuser.hive.users", "*")(l)
		}},
	}
}

// TestKerberosFailures provokes each finding about Kerberos with a real KDC.
func TestKerberosFailures(t *testing.T) {
	kdc := kdctest.Start(t)
	kdc.Keytab("services.keytab", service, "hdfs/localhost")
	provokeAll(t, "kerberos.golden", kerberosFailures(kdc))
}

// TestHealthyKerberos: a site whose keytab has the KDC's key has no warning. Without a KDC, the key is not compared.
func TestHealthyKerberos(t *testing.T) {
	kdc := kdctest.Start(t)
	kdc.Keytab("services.keytab", service)
	fakeDNS(t, "localhost.")
	l := newLab(t)
	l.useKerberos(kdc, service)
	text, err := l.check("D-kerberos-keytab", "D-kerberos-kdc", "D-kerberos-names", "D-kerberos-rules")
	for _, want := range []string{"HTTP/localhost@" + kdctest.Realm + ", kvno 1: aes256-cts-hmac-sha1-96, aes128-cts",
		"the KDC has the same key of HTTP/localhost", "alice@" + kdctest.Realm + " is alice",
		"hdfs/nn.example.com@" + kdctest.Realm + " is hdfs", "no failure, no warning"} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("%v: %q is not in\n%s", err, want, text)
		}
	}
	conf, err := os.ReadFile(kdc.Conf("krb5-away.conf", time.Minute))
	l.must(err)
	away := strings.Replace(string(conf), "kdc = 127.0.0.1:", "kdc = 127.0.0.1:1\n#", 1)
	l.must(os.WriteFile(l.path("krb5-away.conf"), []byte(away), 0o600))
	t.Setenv("KRB5_CONFIG", l.path("krb5-away.conf"))
	l.must(os.Rename(l.path("kms.keytab"), l.path("other.keytab"))) // no tickets are cached for this path
	l.set("hadoop.kms.authentication.kerberos.keytab", l.path("other.keytab"))
	if text, err := l.check("D-kerberos-kdc"); err != nil || !strings.Contains(text, "no KDC answers") {
		t.Errorf("%v\n%s", err, text)
	}
}

// TestWeakOnly: a keytab with an AES key is not weak.
func TestWeakOnly(t *testing.T) {
	for types, want := range map[string]bool{"arcfour-hmac": true, "des3-cbc-sha1 des-cbc-crc": true,
		"arcfour-hmac aes256-cts-hmac-sha1-96": false, "aes128-cts-hmac-sha256-128": false} {
		if got := weakOnly(strings.Fields(types)); got != want {
			t.Errorf("%s: %v", types, got)
		}
	}
}
