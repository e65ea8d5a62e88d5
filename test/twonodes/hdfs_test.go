package twonodes

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"claviger/internal/certtest"
	"claviger/internal/kdctest"
	"claviger/test/hadoop"
)

// hdfs writes and reads files in a zone of a secured HDFS while each node is killed and started again. Neither the
// NameNode nor its client sees an error.
func (s *site) hdfs(shell *hadoop.Client) {
	s.t.Helper()
	shell.KeyShell("create", "hdfs", "-size", "256")
	cluster := hadoop.NewSecureCluster(s.t, s.uri(), &hadoop.Security{
		Realm: kdctest.Realm, Krb5Conf: s.kdc.Krb5Conf, Env: s.kdc.Env(),
		Keytab:   filepath.Join(s.kdc.Dir, "hdfs.keytab"),
		Keystore: s.certs.Keystore("hdfs", "localhost"), KeystorePassword: certtest.Password,
		SSLClient: s.sslClient(), Flags: s.flags,
	}, hadoop.Conf{
		// The NameNode caches few EDEKs, so it requests new ones all the time.
		"hadoop.security.kms.client.encrypted.key.cache.size":          "2",
		"hadoop.security.kms.client.encrypted.key.cache.low-watermark": "0.5",
	})
	cluster.Start()
	super := cluster.SecureClient(hadoop.HDFSUser, s.kdc.Login(s.users, hadoop.HDFSUser))
	super.FsShell("-mkdir", "/zone")
	super.CryptoAdmin("-createZone", "-keyName", "hdfs", "-path", "/zone")
	super.FsShell("-chown", "alice", "/zone")
	super.Close()
	alice := cluster.SecureClient("alice", s.kdc.Login(s.users, "alice"))

	local := filepath.Join(s.t.TempDir(), "books")
	text := strings.Repeat("assets and liabilities\n", 500)
	if err := os.WriteFile(local, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	written := 0
	file := func(i int) string { return fmt.Sprintf("/zone/%d", i) }
	work := func() {
		alice.FsShell("-put", local, file(written))
		for _, i := range []int{written, rand.N(written + 1)} { //nolint:gosec // a test
			if got := alice.FsShell("-cat", file(i)); got != text {
				s.t.Errorf("%s reads differently: %d bytes, want %d", file(i), len(got), len(text))
			}
		}
		written++
	}
	for _, victim := range s.nodes {
		killed := make(chan struct{})
		time.AfterFunc(rand.N(time.Second), func() { victim.Kill(); close(killed) }) //nolint:gosec // a test
		for done := 0; done < 5; {
			work()
			select {
			case <-killed:
				done++
			default:
			}
		}
		begin := len(victim.auditLog())
		victim.start()
		for deadline := time.Now().Add(time.Minute); ; {
			work()
			log := victim.auditLog()[begin:]
			if strings.Contains(log, "op=DECRYPT_EEK, key=hdfs, user=alice") &&
				strings.Contains(log, "op=GENERATE_EEK, key=hdfs, user=nn/localhost") {
				break
			}
			if time.Now().After(deadline) {
				s.t.Fatalf("neither the NameNode nor the client of HDFS has come back to %s; its audit log:\n%s",
					victim.name, log)
			}
		}
	}
	s.t.Logf("%d files were written", written)
}
