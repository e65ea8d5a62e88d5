// Package kdctest runs a real MIT KDC for tests: a realm on a free port of loopback,
// with its database in the test's folder. It needs no root rights. `make setup`
// installs krb5-kdc; without krb5-kdc a test fails, and the error says that.
package kdctest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger/internal/porttest"
)

// Realm is the name of the realm that Start makes.
const Realm = "EXAMPLE.TEST"

// KDC is a running KDC.
type KDC struct {
	// Krb5Conf is the path of a krb5.conf with the realm, for processes (KRB5_CONFIG) and
	// for Java (java.security.krb5.conf).
	Krb5Conf string
	// Dir is the folder of its files.
	Dir string

	t              testing.TB
	env            []string
	realm, address string
}

// Start makes a realm and serves it until the test ends.
func Start(t testing.TB) *KDC { t.Helper(); return StartRealm(t, Realm) }

// StartRealm makes a realm with a name. Two realms may have the same name; they share no
// keys.
func StartRealm(t testing.TB, realm string) *KDC {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a KDC: left out by -short")
	}
	for _, tool := range []string{"krb5kdc", "kdb5_util", "kadmin.local", "kinit"} {
		if program(tool) != "" {
			continue
		}
		if os.Getenv("CLAVIGER_REQUIRE_KDC") == "1" {
			t.Fatalf("%s is not installed: run `make setup`, or install MIT Kerberos (on Debian and Ubuntu: apt-get "+
				"install krb5-kdc krb5-admin-server krb5-user)", tool)
		}
		t.Skipf("%s is not installed; tests with a real KDC are left out; `make test` runs them", tool)
	}
	address, err := porttest.Address()
	if err != nil {
		t.Fatal(err)
	}
	k := &KDC{t: t, Dir: t.TempDir(), realm: realm, address: address}
	k.Krb5Conf = k.Conf("krb5.conf", 5*time.Minute)
	profile := k.write("kdc.conf", fmt.Sprintf(`[kdcdefaults]
 kdc_listen = %[2]s
 kdc_tcp_listen = %[2]s
[realms]
 %[1]s = {
  database_name = %[3]s/principal
  key_stash_file = %[3]s/stash
  acl_file = %[3]s/acl
  supported_enctypes = aes256-cts-hmac-sha1-96:normal aes128-cts-hmac-sha256-128:normal
  max_life = 1h
 }
`, realm, k.address, k.Dir))
	k.env = append(os.Environ(), "KRB5_CONFIG="+k.Krb5Conf, "KRB5_KDC_PROFILE="+profile, "KRB5RCACHEDIR="+k.Dir)
	k.run("kdb5_util", "-r", k.realm, "create", "-s", "-P", "of the test")
	k.serve(k.address)
	return k
}

// Conf writes a krb5.conf with the realm, for processes that tolerate a difference of
// skew between clocks.
func (k *KDC) Conf(name string, skew time.Duration) string {
	k.t.Helper()
	return k.write(name, fmt.Sprintf(`[libdefaults]
 default_realm = %[1]s
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
 udp_preference_limit = 1
 clockskew = %[3]d
[realms]
 %[1]s = {
  kdc = %[2]s
 }
[domain_realm]
 localhost = %[1]s
`, k.realm, k.address, int(skew.Seconds())))
}

// Env returns the environment of processes of the realm.
func (k *KDC) Env() []string { return slices.Clone(k.env) }

// program returns the path of a tool, also in the folders that only root's PATH has; ""
// if it is not installed.
func program(name string) string {
	for _, p := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	return ""
}

// serve runs the KDC and waits until it listens.
func (k *KDC) serve(address string) {
	k.t.Helper()
	log, err := os.Create(filepath.Join(k.Dir, "krb5kdc.log"))
	if err != nil {
		k.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.CommandContext(context.Background(), program("krb5kdc"), "-n", "-r", k.realm)
	cmd.Env, cmd.Stdout, cmd.Stderr = k.env, log, log
	// Pdeathsig ends the server even if the test binary is killed and no cleanup runs.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended already
		_ = cmd.Wait()         // Kill has ended it
		if b, err := os.ReadFile(log.Name()); err == nil && k.t.Failed() {
			k.t.Logf("end of the KDC's log:\n%s", b[max(0, len(b)-8<<10):])
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := new(net.Dialer).DialContext(k.t.Context(), "tcp", address)
		if err == nil {
			_ = conn.Close() // nothing was written
			return
		}
		if time.Now().After(deadline) {
			k.t.Fatalf("the KDC does not listen: %v", err)
		}
	}
}

func (k *KDC) write(name, text string) string {
	k.t.Helper()
	path := filepath.Join(k.Dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		k.t.Fatal(err)
	}
	return path
}

// run runs a tool, which must succeed.
func (k *KDC) run(name string, args ...string) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(name), args...)
	cmd.Env = k.env
	if out, err := cmd.CombinedOutput(); err != nil {
		k.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// Keytab makes principals ("zookeeper/localhost"), and a keytab with their keys.
func (k *KDC) Keytab(name string, principals ...string) string {
	k.t.Helper()
	path := filepath.Join(k.Dir, name)
	for _, p := range principals {
		k.Admin("addprinc -randkey " + p)
		k.Admin("ktadd -norandkey -k " + path + " " + p)
	}
	return path
}

// Admin runs a query of kadmin, as its administrator.
func (k *KDC) Admin(query string) {
	k.t.Helper()
	k.run("kadmin.local", "-r", k.realm, "-q", query)
}

// Login gets a ticket with a keytab, and returns the path of the ticket cache.
func (k *KDC) Login(keytab, principal string) string {
	k.t.Helper()
	return k.LoginFor(keytab, principal, time.Hour)
}

// LoginFor is Login with a lifetime of the ticket, in whole seconds.
func (k *KDC) LoginFor(keytab, principal string, life time.Duration) string {
	k.t.Helper()
	path := filepath.Join(k.Dir, "cc_"+strings.ReplaceAll(principal, "/", "_")+"_"+life.String())
	k.run("kinit", "-k", "-t", keytab, "-c", "FILE:"+path, "-l", fmt.Sprintf("%ds", int(life.Seconds())), principal)
	return path
}
