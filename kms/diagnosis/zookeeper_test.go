package diagnosis

import (
	"strings"
	"testing"
	"time"

	"claviger/internal/golden"
	"claviger/internal/kdctest"
	"claviger/internal/zktest"
)

// shared keeps the site's signer secrets and delegation tokens at a ZooKeeper.
func shared(addr, auth string) func(*lab) {
	return func(l *lab) {
		const signer = "hadoop.kms.authentication.signer.secret.provider"
		l.props[signer] = "zookeeper"
		l.props[signer+".zookeeper.connection.string"] = addr
		l.props[signer+".zookeeper.auth.type"] = auth
		l.props["hadoop.kms.authentication.zk-dt-secret-manager.enable"] = "true"
		l.write()
	}
}

// TestZooKeeperFailures provokes the findings that need no server.
func TestZooKeeperFailures(t *testing.T) {
	replace(t, &zookeeperLimit, time.Second)
	provokeAll(t, "zookeeper.golden", []failure{
		{"no servers are named", "D-zk-nodes", false, shared("", "none")},
		{"nothing answers", "D-zk-nodes", false, shared("127.0.0.1:1", "none")},
		{"SASL without a keytab", "D-zk-nodes", false, shared("127.0.0.1:1", "sasl")},
	})
}

// TestZooKeeperWithoutLogin: nodes that everybody may read are a warning, and the doctor makes none.
func TestZooKeeperWithoutLogin(t *testing.T) {
	l := newLab(t)
	shared(zktest.Start(t, zktest.Options{}).Addr, "none")(l)
	const nothing = "where nothing is yet"
	for range 2 {
		text, err := l.check("D-zk-nodes", "D-zk-login")
		if err != nil || strings.Count(text, nothing) != 2 || !strings.Contains(text, "1 warning (D-zk-login)") {
			t.Errorf("%v\n%s", err, text)
		}
		golden.Sections(t, "testdata/zklogin.golden", map[string]string{"no login": l.lines(text, "D-zk-login")}, true)
	}
	l.serve() // it makes signer secrets; keys of tokens are made for the first token
	if text, err := l.check("D-zk-nodes"); err != nil || strings.Count(text, nothing) != 1 {
		t.Errorf("%v\n%s", err, text)
	}
}

// TestZooKeeperWithLogin: with SASL there is no warning; nodes that were made without it are a failure.
func TestZooKeeperWithLogin(t *testing.T) {
	kdc := kdctest.Start(t)
	l := newLab(t)
	server := zktest.Start(t, zktest.Options{SASL: &zktest.SASL{Krb5Conf: kdc.Krb5Conf,
		Keytab: kdc.Keytab("zk.keytab", "zookeeper/localhost"), Principal: "zookeeper/localhost@" + kdctest.Realm}})
	t.Setenv("KRB5_CONFIG", kdc.Krb5Conf)
	const prefix = "hadoop.kms.authentication.signer.secret.provider.zookeeper."
	addr := strings.Replace(server.Addr, "127.0.0.1", "localhost", 1)
	shared(addr, "sasl")(l)
	l.props[prefix+"kerberos.keytab"] = kdc.Keytab("kms.keytab", "kms/localhost")
	l.set(prefix+"kerberos.principal", "kms/localhost@"+kdctest.Realm)
	if text, err := l.check("D-zk-nodes", "D-zk-login"); err != nil || !strings.Contains(text, "no failure, no warn") {
		t.Errorf("%v\n%s", err, text)
	}
	shared(addr, "none")(l)
	l.serve()
	shared(addr, "sasl")(l)
	if text, err := l.check("D-zk-nodes"); err == nil || !strings.Contains(text, "admits everybody") {
		t.Errorf("%v\n%s", err, text)
	}
}
