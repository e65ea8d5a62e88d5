package hadoopconf

import (
	"strings"
	"testing"
)

func TestPublic(t *testing.T) {
	c := New(t.TempDir(), env(map[string]string{"PW": "hunter2"}))
	for name, value := range map[string]string{
		"a.port": "9600", "a.password": "hunter2", "a.trustStorePassword": "hunter2", "x.pass": "hunter2", "b.secret": "hunter2", "c.credential": "hunter2",
		"fs.azure.account.key.me": "hunter2", "oauth.client.secret.text": "hunter2", "signer.token": "hunter2",
		"p.uri": "postgresql://kms:hunter2@db/claviger?sslmode=verify-full", "q.uri": "pkcs11:token=kms;pin-value=hunter2?x=1", "r.uri": "postgres://db/x?user=k&password=hunter2",
		"e.password": "${env.PW}", "home": "${user.home}/x",
	} {
		c.Override(name, value, "/etc/kms/kms-site.xml")
	}
	list, err := c.Public()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Shown{}
	for _, s := range list {
		if strings.Contains(s.Value+s.Written, "hunter2") || strings.Contains(s.Written, "env.PW") {
			t.Errorf("%s shows its secret: %+v", s.Name, s)
		}
		got[s.Name] = s
	}
	if s := got["a.port"]; s.Value != "9600" || s.Source != "/etc/kms/kms-site.xml" {
		t.Errorf("%+v", s)
	}
	if s := got["p.uri"]; s.Value != "postgresql://kms:<redacted>@db/claviger?sslmode=verify-full" {
		t.Errorf("%+v", s)
	}
	if s := got["q.uri"]; s.Value != "pkcs11:token=kms;pin-value=<redacted>?x=1" {
		t.Errorf("%+v", s)
	}
	if s := got["home"]; s.Written != "${user.home}/x" || strings.Contains(s.Value, "$") {
		t.Errorf("%+v", s)
	}

	c.Override(SensitiveKeys, "port$, home", "kms-site.xml")
	list, err = c.Public()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		switch s.Name {
		case "a.port", "home", "a.password":
			if s.Value != "<redacted>" {
				t.Errorf("with %s set: %+v", SensitiveKeys, s)
			}
		case "fs.azure.account.key.me":
			if s.Value == "<redacted>" {
				t.Errorf("%s does not replace Hadoop's default", SensitiveKeys)
			}
		}
	}
	c.Override(SensitiveKeys, "(", "kms-site.xml")
	if _, err := c.Public(); err == nil || !strings.Contains(err.Error(), SensitiveKeys) {
		t.Errorf("a broken expression: %v", err)
	}
}
