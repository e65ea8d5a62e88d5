package kms

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
)

// authConf loads a configuration of authentication. A name in props gets the prefix
// hadoop.kms.authentication., unless it has another known prefix.
func authConf(t *testing.T, props map[string]string) *hadoopconf.Conf {
	t.Helper()
	dir := t.TempDir()
	site := "<configuration>\n"
	for name, value := range props {
		if !strings.HasPrefix(name, "hadoop.") && !strings.HasPrefix(name, "claviger.") {
			name = authPrefix + name
		}
		site += "<property><name>" + name + "</name><value>" + value + "</value></property>\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "kms-site.xml"), []byte(site+"</configuration>\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := hadoopconf.LoadKMS(dir, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// TestAuthenticationRefusedAtStart: each error names the property, its value and
// the cure.
func TestAuthenticationRefusedAtStart(t *testing.T) {
	krb5 := filepath.Join(t.TempDir(), "krb5.conf")
	if err := os.WriteFile(krb5, []byte("[libdefaults]\n dns_lookup_realm = false\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KRB5_CONFIG", krb5)
	const multi = "org.apache.hadoop.security.token.delegation.web.MultiSchemeDelegationTokenAuthenticationHandler"
	const schemes = "multi-scheme-auth-handler.schemes"
	for _, c := range []struct {
		props map[string]string
		want  []string
	}{
		{map[string]string{"type": "ldap"}, []string{"authentication.type", `"ldap"`,
			"it must be simple, kerberos, or " + multi}},
		{map[string]string{"type": "kerberos", "kerberos.keytab": "/nowhere/http.keytab"}, []string{"kerberos.keytab",
			`"/nowhere/http.keytab"`, "with the key of HTTP/localhost", "no such file"}},
		{map[string]string{"type": "kerberos", "kerberos.principal": "HTTP/_HOST@R"}, []string{"kerberos.principal",
			`"HTTP/_HOST@R"`, "write the host name"}},
		{map[string]string{"type": "kerberos", "kerberos.principal": "kms/h"}, []string{"kerberos.principal", `"kms/h"`,
			"it must be HTTP/"}},
		{map[string]string{"type": multi}, []string{schemes, "write negotiate"}},
		{map[string]string{"type": multi, schemes: "negotiate,basic", schemes + ".negotiate.handler": "kerberos",
			schemes + ".basic.handler": "ldap"}, []string{schemes + ".basic.handler", `"ldap"`,
			"passwords checked by LDAP are not supported"}},
		{map[string]string{"type": multi, schemes: "negotiate"}, []string{schemes + ".negotiate.handler",
			"write kerberos"}},
		{map[string]string{"type": multi, schemes: "negotiate", schemes + ".negotiate.handler": "kerberos"},
			[]string{"delegation.schemes", "write negotiate"}},
		{map[string]string{"type": multi, schemes: "negotiate", schemes + ".negotiate.handler": "kerberos",
			"multi-scheme-auth-handler.delegation.schemes": "basic"}, []string{"delegation.schemes", `"basic"`,
			"Basic is not one of"}},
		{map[string]string{"hadoop.security.auth_to_local": "RULE:[1:$1](a"}, []string{"hadoop.security.auth_to_local",
			"is not a rule"}},
		{map[string]string{"hadoop.security.auth_to_local": "RULE:[1:$1]s/(?=a)//"},
			[]string{"hadoop.security.auth_to_local", "rule RULE:[1:$1]s/(?=a)//", "write several rules instead"}},
		{map[string]string{"hadoop.security.auth_to_local": "DEFAULT"}, []string{"hadoop.security.auth_to_local",
			`"DEFAULT"`, "set default_realm in krb5.conf"}},
		{map[string]string{"hadoop.security.authentication": "kerberos"}, []string{"hadoop.security.auth_to_local",
			"set default_realm in krb5.conf"}},
		{map[string]string{"hadoop.security.auth_to_local": "RULE:[1:$1]",
			"hadoop.security.auth_to_local.mechanism": "heimdal"}, []string{"auth_to_local.mechanism", `"heimdal"`,
			"it must be hadoop or mit"}},
	} {
		_, err := newHandler(t, c.props)
		if err == nil {
			t.Errorf("%v is accepted", c.props)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %v\nwant %s", c.props, err, want)
			}
		}
	}
}

func newHandler(t *testing.T, props map[string]string) (logged string, err error) {
	t.Helper()
	var log bytes.Buffer
	_, _, err = authHandler(authConf(t, props), false, slog.New(slog.NewTextHandler(&log, nil)))
	return log.String(), err
}

// TestRulesOfConfiguration checks which property has the rules, and which has the realm.
func TestRulesOfConfiguration(t *testing.T) {
	krb5 := filepath.Join(t.TempDir(), "krb5.conf")
	if err := os.WriteFile(krb5, []byte("[libdefaults]\n default_realm = R\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KRB5_CONFIG", krb5)
	for _, c := range []struct {
		props      map[string]string
		name, want string
	}{
		{map[string]string{"hadoop.security.authentication": "kerberos"}, "a/h@R", "a"},
		{map[string]string{"hadoop.security.authentication": "kerberos"}, "a/h@S", ""},
		{map[string]string{"hadoop.security.authentication": "kerberos",
			"hadoop.security.auth_to_local.mechanism": "MIT"}, "a/h@S", "a/h@S"},
		{map[string]string{"hadoop.security.auth_to_local": "RULE:[2:$2]"}, "a/h@R", "h"},
		{map[string]string{"hadoop.security.auth_to_local": "RULE:[2:$2]", "kerberos.name.rules.mechanism": "mit",
			"hadoop.security.auth_to_local.mechanism": "hadoop"}, "a@R", "a@R"},
	} {
		_, rules, err := authHandler(authConf(t, c.props), false, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Errorf("%v: %v", c.props, err)
			continue
		}
		if got, err := rules.Short(c.name); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%v: %s is %q, %v; want %q", c.props, c.name, got, err, c.want)
		}
	}
	// Type kerberos has its own property of rules, and warns if only the other one is set.
	var log bytes.Buffer
	conf := authConf(t, map[string]string{"type": "kerberos", "hadoop.security.auth_to_local": "RULE:[2:$2]"})
	rules, err := kerberosRules(conf, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := rules.Short("a/h@R"); got != "a" || !strings.Contains(log.String(),
		"are not used by a KMS of type kerberos") {
		t.Errorf("a/h@R is %q, %v; logged %s", got, err, log.String())
	}
}
