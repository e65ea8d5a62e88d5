//go:build cgo && !nogssapi

package gssapi_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"claviger/gssapi"
	"claviger/internal/kdctest"
)

// TestLoginCures: for each failure of our own login at a real KDC, the error has the cure for this side, not for a
// client's side.
func TestLoginCures(t *testing.T) {
	k := kdctest.Start(t)
	t.Setenv("KRB5_CONFIG", k.Krb5Conf)
	t.Setenv("KRB5RCACHEDIR", k.Dir)
	t.Setenv("KRB5CCNAME", "FILE:"+filepath.Join(k.Dir, "none"))
	users := k.Keytab("users.keytab", "mig", "gone", "rekeyed")
	k.Keytab("http.keytab", "HTTP/localhost")
	k.Admin("delprinc -force gone")
	k.Admin("cpw -randkey rekeyed")
	expired := k.LoginFor(users, "mig", time.Second)
	time.Sleep(2500 * time.Millisecond) // until the ticket has expired
	nowhere := filepath.Join(k.Dir, "nowhere.conf")
	for _, tt := range []struct {
		name string
		conf gssapi.InitiatorConfig
		env  string // krb5.conf
		cure string
	}{
		{"no tickets", gssapi.InitiatorConfig{}, "", "kinit"},
		{"expired tickets", gssapi.InitiatorConfig{CCache: "FILE:" + expired}, "", "kinit again"},
		{"not in the keytab", gssapi.InitiatorConfig{Keytab: users, Principal: "other"}, "", "klist -kt"},
		{"no such principal", gssapi.InitiatorConfig{Keytab: users, Principal: "gone"}, "", "addprinc"},
		{"an old key", gssapi.InitiatorConfig{Keytab: users, Principal: "rekeyed"}, "", "export the keytab again"},
		{"a host without a realm", gssapi.InitiatorConfig{Keytab: users, Principal: "mig",
			Target: "HTTP@elsewhere.example.com"}, "", "domain_realm"},
		{"no principal of the service", gssapi.InitiatorConfig{Keytab: users, Principal: "mig",
			Target: "HTTP/elsewhere@EXAMPLE.TEST"}, "", "HTTP/HOST"},
		{"no KDC", gssapi.InitiatorConfig{Keytab: users, Principal: "mig"}, nowhere, "krb5.conf"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.env != "" {
				conf := regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllString(readFile(t, k.Krb5Conf), "127.0.0.1:1")
				writeFile(t, nowhere, conf)
				t.Setenv("KRB5_CONFIG", tt.env)
			}
			if tt.conf.Target == "" {
				tt.conf.Target = "HTTP@localhost"
			}
			i, err := gssapi.NewInitiator(tt.conf)
			if err == nil {
				_, _, err = i.Step(nil)
				_ = i.Close()
			}
			t.Log(err)
			if err == nil || !strings.Contains(err.Error(), tt.cure) {
				t.Errorf("%v, want %q", err, tt.cure)
			}
		})
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
