package kerberos

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"claviger/test/hadoop"
)

// kdc is a realm of its own, with a krb5.conf that knows it.
type kdc struct {
	t     testing.TB
	dir   string
	realm string
	port  int
	conf  string // krb5.conf
	env   []string
}

// startKDC makes a realm and serves it until the test ends.
func startKDC(t testing.TB, realm string) *kdc {
	t.Helper()
	for _, tool := range []string{"krb5kdc", "kdb5_util", "kadmin.local", "kinit", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is not installed: run `make setup`, or `go test -short` to leave these tests out", tool)
		}
	}
	k := &kdc{t: t, dir: t.TempDir(), realm: realm, port: hadoop.FreePorts(t, 1)[0]}
	k.conf = k.writeConf("krb5.conf", 300)
	profile := filepath.Join(k.dir, "kdc.conf")
	k.write("kdc.conf", fmt.Sprintf(`[kdcdefaults]
 kdc_listen = 127.0.0.1:%[1]d
 kdc_tcp_listen = 127.0.0.1:%[1]d
[realms]
 %[2]s = {
  database_name = %[3]s/principal
  key_stash_file = %[3]s/stash
  acl_file = %[3]s/acl
  supported_enctypes = aes256-cts-hmac-sha1-96:normal aes128-cts-hmac-sha256-128:normal
  max_life = 1h
 }
`, k.port, realm, k.dir))
	k.env = append(os.Environ(), "KRB5_CONFIG="+k.conf, "KRB5_KDC_PROFILE="+profile, "KRB5RCACHEDIR="+k.dir)
	k.run("kdb5_util", "-r", realm, "create", "-s", "-P", "of the test")
	cmd := exec.Command("krb5kdc", "-n", "-r", realm)
	cmd.Env = k.env
	p := hadoop.Start(t, "krb5kdc", cmd)
	p.WaitFor("the KDC listens", func() bool {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(k.port)), time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return k
}

// writeConf writes a krb5.conf with a clock skew in seconds.
func (k *kdc) writeConf(name string, skew int) string {
	return k.write(name, fmt.Sprintf(`[libdefaults]
 default_realm = %[1]s
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
 clockskew = %[3]d
[realms]
 %[1]s = {
  kdc = 127.0.0.1:%[2]d
 }
[domain_realm]
 localhost = %[1]s
`, k.realm, k.port, skew))
}

func (k *kdc) write(name, text string) string {
	k.t.Helper()
	path := filepath.Join(k.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		k.t.Fatal(err)
	}
	return path
}

// run runs a tool that has to succeed.
func (k *kdc) run(name string, args ...string) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = k.env
	if out, err := cmd.CombinedOutput(); err != nil {
		k.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// keytab makes principals, and a keytab with their keys.
func (k *kdc) keytab(name string, principals ...string) string {
	k.t.Helper()
	path := filepath.Join(k.dir, name)
	for _, p := range principals {
		k.run("kadmin.local", "-r", k.realm, "-q", "addprinc -randkey "+p)
		k.run("kadmin.local", "-r", k.realm, "-q", "ktadd -norandkey -k "+path+" "+p)
	}
	return path
}

// login gets a ticket by a keytab and returns the file that it is kept in.
func (k *kdc) login(keytab, principal, lifetime string) string {
	k.t.Helper()
	path := filepath.Join(k.dir, "cc_"+strings.ReplaceAll(principal, "/", "_")+lifetime)
	k.run("kinit", "-k", "-t", keytab, "-c", "FILE:"+path, "-l", lifetime, principal)
	return path
}
