package diagnosis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/kdctest"
	"claviger/internal/logtest"
	"claviger/internal/pgtest"
	"claviger/internal/zktest"
	"claviger/kms"
	"claviger/kms/kmstest"
)

// nodeVariable makes a process of this test binary a server. Its arguments are the configuration folder and the ready
// file.
const nodeVariable = "CLAVIGER_TEST_NODE"

// nodeMain is the main function of such a process. The server stops when its standard input ends.
func nodeMain() {
	if os.Getenv(nodeVariable) == "" {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	err := kms.Serve(ctx, kms.Options{Dir: os.Args[1], Port: -1, ReadyFile: os.Args[2],
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Level: new(slog.LevelVar)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveInProcess starts a server in a process of its own, because a process is one node. It ends with the test.
func serveInProcess(t *testing.T, dir string) {
	t.Helper()
	var log logtest.Buffer
	kmstest.Serve(t, func(ctx context.Context, ready string) error {
		node := exec.CommandContext(ctx, os.Args[0], dir, ready) //nolint:gosec // this test binary
		node.Env, node.Stderr = append(os.Environ(), nodeVariable+"=1"), &log
		in, err := node.StdinPipe()
		if err != nil {
			return err
		}
		node.Cancel = in.Close
		if err := node.Run(); err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("%w\n%s", err, log.String())
		}
		return nil
	})
}

// secondNode copies the site for a second node, at 127.0.0.2.
func (l *lab) secondNode() (dir string) {
	l.t.Helper()
	dir = l.t.TempDir()
	entries, err := os.ReadDir(l.dir)
	l.must(err)
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		data, err := os.ReadFile(l.path(e.Name()))
		l.must(err)
		text := strings.ReplaceAll(string(data), l.dir, dir)
		if e.Name() == "kms-site.xml" {
			text = strings.Replace(text, "<value>127.0.0.1</value>", "<value>127.0.0.2</value>", 1)
		}
		l.must(os.WriteFile(filepath.Join(dir, e.Name()), []byte(text), 0o600))
	}
	return dir
}

// securedSite makes a site as production has it: TLS, logins by Kerberos, a metastore in PostgreSQL, signer secrets and
// delegation tokens in a ZooKeeper with SASL, and an HDFS that names both nodes and trusts their certificate.
func securedSite(t *testing.T) *lab {
	t.Helper()
	kdc := kdctest.Start(t)
	kdc.Keytab("services.keytab", service)
	keeper := zktest.Start(t, zktest.Options{SASL: &zktest.SASL{Krb5Conf: kdc.Krb5Conf,
		Keytab: kdc.Keytab("zk.keytab", "zookeeper/localhost"), Principal: "zookeeper/localhost@" + kdctest.Realm}})
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	// The name service of a site knows its hosts. That of a machine for tests may not.
	replace(t, &lookupHost, func(_ context.Context, name string) ([]string, error) {
		if name == host || name == "localhost" {
			name = "127.0.0.1"
		}
		return []string{name}, nil
	})
	replace(t, &lookupAddr, func(context.Context, string) ([]string, error) { return []string{"localhost."}, nil })

	l := newLab(t)
	l.ownPort()
	l.useKerberos(kdc, service)
	shared(strings.Replace(keeper.Addr, "127.0.0.1", "localhost", 1), "sasl")(l)
	const signer = "hadoop.kms.authentication.signer.secret.provider.zookeeper.kerberos."
	l.props[signer+"keytab"] = l.path("zk-client.keytab")
	l.props[signer+"principal"] = "kms/localhost@" + kdctest.Realm
	data, err := os.ReadFile(kdc.Keytab("kms.keytab", "kms/localhost"))
	l.must(err)
	l.must(os.WriteFile(l.path("zk-client.keytab"), data, 0o600))
	l.props[hadoopconf.MetastoreURI] = pgtest.Database(t)
	l.props["hadoop.user.group.static.mapping.overrides"] = "alice=analysts"
	l.trust(l.secure("127.0.0.1", "127.0.0.2", "localhost").Truststore())
	l.hdfs(hdfsPath, "kms://https@127.0.0.1;127.0.0.2:"+l.props["hadoop.kms.http.port"]+"/kms")
	l.o.AsUser = "alice"
	return l
}

// TestHealthySecuredNodes: a secured site of two nodes has no warning, before its first start and beside both servers.
// SoftHSM stands for the HSM: it is as fast as a near HSM, and does not report its room and its sessions, which is no
// warning (TestRoomAndSessions).
func TestHealthySecuredNodes(t *testing.T) {
	l := securedSite(t)
	l.wantHealthy("before the first start")
	l.keys("payroll", "finance")
	second := l.secondNode()
	l.serve()
	serveInProcess(t, second)
	l.wantHealthy("beside two servers")
	text, err := l.check()
	port := l.props["hadoop.kms.http.port"]
	for _, want := range []string{"is ready; ", "the server at 127.0.0.1:" + port + " is ready", "127.0.0.2:" + port +
		" is ready", "127.0.0.2's clock agrees", "the KDC has the same key", "kvno ", "SASL (", "TLS 1.2 to TLS 1.3",
		"trust.p12 trusts the server's certificate", "valid for 127.0.0.1", "signer secrets are in localhost",
		"alice is in analysts", "hdfs may not decrypt", "finance: GENERATE_EEK hdfs", "is in the URI"} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("%v: %q is not in\n%s", err, want, text)
		}
	}
	if n := strings.Count(l.lines(text, "D-store-nodes"), "ok  "); n != 2 {
		t.Errorf("%d nodes are well, want 2:\n%s", n, text)
	}
	for _, id := range []string{"D-server-ready", "D-zk-login", "D-kerberos-kdc", "D-tls-java", "D-hdfs-nodes",
		"D-groups-user", "D-hsm-latency", "D-store-clock"} {
		if strings.Contains(text, "skipped  "+id+" ") {
			t.Errorf("%s was skipped:\n%s", id, text)
		}
	}
}
