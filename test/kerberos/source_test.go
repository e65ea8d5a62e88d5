package kerberos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/gssapi"
	"claviger/internal/kdctest"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/test/hadoop"
)

// TestSourceWantsKerberos: the source of a server requires Kerberos. The server logs in with its own keytab, or
// with the tickets of its user.
func TestSourceWantsKerberos(t *testing.T) {
	hadoop.Require(t)
	k := kdctest.StartRealm(t, realm)
	users := k.Keytab("users.keytab", "mig", "carol")
	source := startKMS(t, k, k.Krb5Conf, k.Keytab("http.keytab", "HTTP/localhost"))
	carol := k.Login(users, "carol")
	for _, c := range []struct {
		what string
		conf hadoop.Conf
		env  string
		want string // in the source's audit log if the status is 200, otherwise in the front's log
		code int
	}{
		{"a keytab", hadoop.Conf{"claviger.client.kerberos.principal": "mig",
			"claviger.client.kerberos.keytab": users}, "", "user=mig", http.StatusOK},
		{"a named cache", hadoop.Conf{"claviger.client.kerberos.ccache": "FILE:" + carol}, "",
			"user=carol", http.StatusOK},
		{"tickets of kinit", hadoop.Conf{}, "KRB5CCNAME=FILE:" + carol, "user=carol", http.StatusOK},
		{"no tickets", hadoop.Conf{}, "KRB5CCNAME=FILE:/nowhere/cc",
			"the tickets of this user (kinit, or set claviger.client.kerberos.principal",
			http.StatusServiceUnavailable},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := t.TempDir()
			c.conf["hadoop.kms.key.provider.uri"] = "kms://" + strings.Replace(source.url, "://", "@", 1)
			c.conf["hadoop.kms.http.host"] = "127.0.0.1"
			c.conf["hadoop.security.kms.client.failover.max.retries"] = "1"
			c.conf["claviger.metastore.uri"] = "sqlite://" + filepath.Join(dir, "front.db")
			c.conf.Write(t, filepath.Join(dir, "kms-site.xml"))
			hadoop.Conf{"default.key.acl.READ": "*"}.Write(t, filepath.Join(dir, "kms-acls.xml"))
			ready := filepath.Join(dir, "ready")
			cmd := exec.Command(hadoop.Binary(t), "kms", "--conf", dir, "--http-port", "0", "--ready-file", ready)
			cmd.Env = append(k.Env(), c.env)
			front := hadoop.Start(t, "claviger kms", cmd)
			var url string
			front.WaitFor("it is ready", func() bool {
				b, err := os.ReadFile(ready)
				url = strings.TrimSpace(string(b))
				return err == nil
			})
			before := len(since(t, source.audit, 0))
			status, body := get(t, url+"/v1/keys/names?user.name=alice")
			log := since(t, source.audit, before)
			if c.code != http.StatusOK {
				log = since(t, front.Log, 0)
			}
			if status != c.code || !strings.Contains(log, c.want) {
				t.Errorf("%d %s\nthe log: %s\nwant %d and %s", status, body, log, c.code, c.want)
			}
		})
	}
}

func get(t testing.TB, url string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", url, err))
	}
	return resp.StatusCode, string(body)
}

// TestPlanNamesOurLogin: if our own login fails, a plan says so and names the cure. It does not say that the
// source is away. The cures name the user that the source sees, not the system user that runs the command.
func TestPlanNamesOurLogin(t *testing.T) {
	hadoop.Require(t)
	k := kdctest.StartRealm(t, realm)
	users := k.Keytab("users.keytab", "mig", "gone", "rekeyed", "carol")
	k.Admin("delprinc -force gone")
	k.Admin("cpw -randkey rekeyed")
	source := startKMS(t, k, k.Krb5Conf, k.Keytab("http.keytab", "HTTP/localhost"))
	carol := k.Login(users, "carol")
	program := func(args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, hadoop.Binary(t), args...)
		cmd.Env = k.Env()
		out, err := cmd.CombinedOutput()
		if _, exit := err.(*exec.ExitError); err != nil && !exit { //nolint:errorlint // Run returns it as it is
			t.Fatal(err)
		}
		return string(out)
	}
	uri := "kms://" + strings.Replace(source.url, "://", "@", 1)
	t.Setenv("KRB5_CONFIG", k.Krb5Conf)
	client, err := kmsclient.New(uri, kmsclient.Options{User: "carol", Log: slog.New(slog.DiscardHandler),
		Negotiate: func(host string) (kmsclient.Negotiation, error) {
			return gssapi.NewInitiator(gssapi.InitiatorConfig{CCache: "FILE:" + carol, Target: "HTTP@" + host,
				SPNEGO: true, Mutual: true})
		}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Create(t.Context(), provider.Spec{Name: "zone", Cipher: claviger.DefaultCipher, BitLength: 256})
	if err := errors.Join(err, client.Close()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		conf hadoop.Conf
		want []string
	}{
		{"no such principal", hadoop.Conf{"claviger.client.kerberos.principal": "gone",
			"claviger.client.kerberos.keytab": users},
			[]string{"this server's own login at the source " + uri + " failed", "gone of " + users, "addprinc"}},
		{"an old keytab", hadoop.Conf{"claviger.client.kerberos.principal": "rekeyed",
			"claviger.client.kerberos.keytab": users},
			[]string{"this server's own login at the source " + uri + " failed", "export the keytab again"}},
		{"no tickets", hadoop.Conf{"claviger.client.kerberos.ccache": "FILE:/nowhere/cc"},
			[]string{"this server's own login at the source " + uri + " failed",
				"log in by kinit as the server's user"}},
		{"let in", hadoop.Conf{"claviger.client.kerberos.principal": "mig", "claviger.client.kerberos.keytab": users},
			[]string{"all 1 keys are readable", "as mig, ",
				"hadoop.kms.proxyuser.mig.users (or .groups) must admit alice",
				"whitelist.key.acl.DECRYPT_EEK admit mig"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := t.TempDir()
			c.conf["hadoop.kms.key.provider.uri"] = "jceks://file@" + filepath.Join(dir, "kms.keystore")
			c.conf["hadoop.kms.key.provider.reencryption.source.uri"] = uri
			c.conf["hadoop.security.kms.client.failover.max.retries"] = "1"
			c.conf["claviger.metastore.uri"] = "sqlite://" + filepath.Join(dir, "front.db")
			c.conf.Write(t, filepath.Join(dir, "kms-site.xml"))
			hadoop.OpenACLs().Write(t, filepath.Join(dir, "kms-acls.xml"))
			got := program("migrate", "plan", "--conf", dir, "--as-user", "alice")
			for _, want := range c.want {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in:\n%s", want, got)
				}
			}
			for _, wrong := range []string{"does not answer", "check that the KMS runs", "admit root", "proxyuser.root",
				"as root"} {
				if strings.Contains(got, wrong) {
					t.Errorf("%q in:\n%s", wrong, got)
				}
			}
		})
	}
}
