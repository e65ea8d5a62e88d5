package kms

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/gssapi"
)

// TestClientLogin: the login of this server at a KMS that requires Kerberos.
func TestClientLogin(t *testing.T) {
	keytab := filepath.Join(t.TempDir(), "mig.keytab")
	if err := os.WriteFile(keytab, []byte{5, 2}, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := withHost("mig/_HOST@R")
	if err != nil {
		t.Fatal(err)
	}
	server := map[string]string{"type": "kerberos", "kerberos.keytab": keytab, "kerberos.principal": "HTTP/h@R"}
	with := func(more map[string]string) map[string]string {
		all := make(map[string]string)
		for _, m := range []map[string]string{server, more} {
			for name, value := range m {
				all[name] = value
			}
		}
		return all
	}
	for _, c := range []struct {
		what  string
		props map[string]string
		want  gssapi.InitiatorConfig
		err   []string
	}{
		{"nothing set", map[string]string{"type": "simple"}, gssapi.InitiatorConfig{}, nil},
		{"the server's own", server, gssapi.InitiatorConfig{Keytab: keytab, Principal: "HTTP/h@R"}, nil},
		{"any of the server's", with(map[string]string{"kerberos.principal": "*"}), gssapi.InitiatorConfig{}, nil},
		{"type simple, with a keytab", with(map[string]string{"type": "simple"}), gssapi.InitiatorConfig{}, nil},
		{"another", with(map[string]string{clientPrincipal: "mig/_HOST@R", clientKeytab: keytab}),
			gssapi.InitiatorConfig{Keytab: keytab, Principal: self}, nil},
		{"tickets", with(map[string]string{clientCCache: "FILE:/tmp/cc"}),
			gssapi.InitiatorConfig{CCache: "FILE:/tmp/cc"}, nil},
		{"no keytab", map[string]string{clientPrincipal: "mig"}, gssapi.InitiatorConfig{}, []string{clientPrincipal,
			`"mig"`, "go together"}},
		{"no principal", map[string]string{clientKeytab: keytab}, gssapi.InitiatorConfig{}, []string{clientKeytab,
			keytab, "go together"}},
		{"both", map[string]string{clientPrincipal: "mig", clientKeytab: keytab, clientCCache: "FILE:/tmp/cc"},
			gssapi.InitiatorConfig{}, []string{clientCCache, "set only one of them"}},
		{"no such file", map[string]string{clientPrincipal: "mig", clientKeytab: "/nowhere/k"},
			gssapi.InitiatorConfig{}, []string{clientKeytab, "/nowhere/k", "no such file", "the key of mig"}},
	} {
		got, from, err := clientLogin(authConf(t, c.props))
		if got != c.want || (err == nil) != (c.err == nil) || err == nil && from == "" {
			t.Errorf("%s: %+v from %q, %v; want %+v", c.what, got, from, err, c.want)
		}
		for _, want := range c.err {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v; want %s", c.what, err, want)
			}
		}
	}
}
