package hadoopconf

import (
	"strconv"
	"strings"
	"testing"

	"claviger/secret"
)

// TestSecretsInValues: a password with any characters, in any form of a value, is not shown.
func TestSecretsInValues(t *testing.T) {
	for _, c := range []struct{ value, want string }{
		{"postgres://u:p@ssw0rd@h/db", "postgres://u:<redacted>@h/db"},
		{"postgres://u:p/a?s#s:w@h:5432/db?sslmode=require", "postgres://u:<redacted>@h:5432/db?sslmode=require"},
		{"postgres://u@realm:p w@h1,h2/db", "postgres://u@realm:<redacted>@h1,h2/db"},
		{"postgres://:pw@h/db", "postgres://:<redacted>@h/db"},
		{"jdbc:postgresql://u:12345/x@h/db", "jdbc:postgresql://u:<redacted>@h/db"},
		{"kms://http@h1:9600/kms,ldap://u:p,w@h, //v:x@h", "kms://http@h1:9600/kms,ldap://u:<redacted>@h, " +
			"//v:<redacted>@h"},
		{"password = x", "password = <redacted>"},
		{"host=h user=u password='x \\' y' dbname=d", "host=h user=u password=<redacted> dbname=d"},
		{`host=h sslpassword = "x y" port=1`, "host=h sslpassword = <redacted> port=1"},
		{"?user=u&Password=x;y,z&b=c", "?user=u&Password=<redacted>&b=c"},
		{`{"user": "u", "passWord": "x,y"}`, `{"user": "u", "passWord": <redacted>}`},
		{"Server=h;Pwd={x;y};Port=1", "Server=h;Pwd=<redacted>;Port=1"},
		{"passphrase: x", "passphrase: <redacted>"},
		{"pkcs11:token=kms;pin-value=x;object=o?module-name=m",
			"pkcs11:token=kms;pin-value=<redacted>;object=o?module-name=m"},
		{"postgres:u:p@w@h/db", "postgres:u:<redacted>@h/db"},
		{"kms://http@u:pw@h:9600/kms", "kms://http@u:<redacted>@h:9600/kms"},
		{"kms://u:pw@http@h:9600/kms", "kms://u:<redacted>@h:9600/kms"},
		{"kms://http@h:9600/kms;password=pw", "kms://http@h:9600/kms;password=<redacted>"},
		{"syslog+tcp://u:pw@h", "syslog+tcp://u:<redacted>@h"},
		{"Authorization: Bearer abc.def", "Authorization: Bearer <redacted>"},
		{"https://h/x?sv=1&sig=abc&e=1", "https://h/x?sv=1&sig=<redacted>&e=1"},
		{"pkcs11:token=a?PIN-VALUE=1234", "pkcs11:token=a?PIN-VALUE=<redacted>"},
		{"pkcs11:token=a?pin%2Dvalue=1234&x=1", "pkcs11:token=a?pin%2Dvalue=<redacted>&x=1"},
		{"pkcs11:token=a?%70in_value%3d1234", "pkcs11:token=a?%70in_value%3d<redacted>"},
		{"pkcs11:token=a?pin-value=12 34;x=1", "pkcs11:token=a?pin-value=<redacted>;x=1"},
		{"user:pw@h", "user:<redacted>@h"},
		{"kms://https@h:9600/kms,user:pw@h", "kms://https@h:<redacted>@h"},
		{"user:pw@h,kms://u:pw@h", "user:<redacted>@h,kms://u:<redacted>@h"},
		{"user:p/w,x; y@h/db", "user:<redacted>@h/db"},
		{"h:9600, user:p/w@h", "h:9600, user:<redacted>@h"},
		{"postgresql//u:p w@h/db", "postgresql//u:<redacted>@h/db"},
		{"postgresql:/u:p/w@h/db", "postgresql:/u:<redacted>@h/db"},
		{`postgresql:\\u:p w@h/db`, `postgresql:\\u:<redacted>@h/db`},
		{"postgresql:u:p w@h/db", "postgresql:u:<redacted>@h/db"},
		{"postgresql/u:pw@h/db", "postgresql/u:<redacted>@h/db"},
		{"/u:pw@h/db", "/u:<redacted>@h/db"},
		{"kms:/https@u:pw@h:9600/kms", "kms:/https@u:<redacted>@h:9600/kms"},
		{"kms://https@h/kms,postgresql//u:pw@h/db", "kms://https@h/kms,postgresql//u:<redacted>@h/db"},
		{"postgresql//u:pw@h/db, kms://v:pw@h", "postgresql//u:<redacted>@h/db, kms://v:<redacted>@h"},
		{"x=postgresql:/u:pw@h/db", "x=postgresql:/u:<redacted>@h/db"},
		{"postgresql%2F%2Fu%3Apw%40h", "postgresql%2F%2Fu%3A<redacted>%40h"},
		{"kms://http@h:1/kms?pw=x", "kms://http@h:1/kms?pw=<redacted>"},
		{"pin=1234", "pin=<redacted>"},
		{"jceks://file@/x?pass%77ord=pw", "jceks://file@/x?pass%77ord=<redacted>"},
		{"jceks://file@/x%3Fpassword%3Dpw", "jceks://file@/x%3Fpassword%3D<redacted>"},
		{"jceks://file@/x?pass%2577ord%253Dpw&x", "jceks://file@/x?pass%2577ord%253D<redacted>&x"},
		{"jceks://file@/x?password=p w\tx&b=c", "jceks://file@/x?password=<redacted>&b=c"},
		{"kms://u%3Apw@h:9600/kms", "kms://u%3A<redacted>@h:9600/kms"},
		{"kms://u:pw%40h", "kms://u:<redacted>%40h"},
		{"kms%3A%2F%2Fu%3Apw%40h", "kms%3A%2F%2Fu%3A<redacted>%40h"},
		{"ldap://h?credentials=pw", "ldap://h?credentials=<redacted>"},
		{"client_secret=x account_key = y", "client_secret=<redacted> account_key = <redacted>"},
	} {
		if got := secret.Value(c.value); got != c.want {
			t.Errorf("%s is shown as %s, want %s", c.value, got, c.want)
		}
		e := &ValueError{Property: Property{Name: "a.uri"}, Value: c.value, Want: "correct it"}
		if want := strconv.Quote(c.want); !strings.Contains(e.Error(), want) {
			t.Errorf("the error is %v, want %s in it", e, want)
		}
	}
}

// TestSecretOfMisspeltName: the value of a property is not shown if its name is similar to that of a secret.
func TestSecretOfMisspeltName(t *testing.T) {
	e := &ValueError{Property: Property{Name: "a.passowrd"}, Value: "hunter2", Want: "correct it"}
	if strings.Contains(e.Error(), "hunter2") {
		t.Errorf("the error about a misspelt name shows the value: %v", e)
	}
}

// TestValuesWithoutSecrets: a value without a secret is shown completely.
func TestValuesWithoutSecrets(t *testing.T) {
	for _, plain := range []string{
		"kms://https@h1;h2:9600/kms", "jceks://file@/etc/kms.keystore,kms://http@h:9600/kms",
		"RULE:[2:$1@$0](hdfs@EXAMPLE)s/.*/hdfs/", "host:9600,host2:9600", "hdfs://nn:8020/x",
		"pkcs11:token=kms?module-path=/usr/lib/x.so&pin-source=file:/etc/pin", "user@EXAMPLE.COM",
		"sasl:kms@EXAMPLE.COM:cdrwa", "kms:https@h/kms",
		"kms@EXAMPLE.COM,host:9600,user@EXAMPLE.COM", "host:9600,user@EXAMPLE.COM", "HTTP/h.example.com@EXAMPLE.COM",
		"RULE:[2:$1@$0](nn/.*@EXAMPLE)s/.*/hdfs/\nRULE:[1:$1@$0](kms@EXAMPLE)s/.*/kms/\nDEFAULT",
		"sasl:kms@EXAMPLE:cdrwa, world:anyone:r,sasl:b@EXAMPLE:r", "hdfs:/apps/x", "/etc/kms:/opt/kms",
		"kms:/https@h:9600/kms",
		"kms://http@h:9600/kms,kms://http@h2:9600/kms", "x kms://http@h:9600/kms,kms://http@h2:9600/kms",
		"http://h:1/x, jceks://file@/etc/x",
		"jceks://file@/etc/kms.keystore,jceks://file@/etc/b:c",
	} {
		if got := secret.Value(plain); got != plain {
			t.Errorf("%s is shown as %s", plain, got)
		}
	}
}

// TestPublic: Public shows no value of a secret, and none that SensitiveKeys names.
func TestPublic(t *testing.T) {
	c := New(t.TempDir(), env(map[string]string{"PW": "hunter2"}))
	for name, value := range map[string]string{
		"a.port": "9600", "a.password": "hunter2", "a.trustStorePassword": "hunter2", "x.pass": "hunter2",
		"b.secret": "hunter2", "c.credential": "hunter2",
		"fs.azure.account.key.me": "hunter2", "oauth.client.secret.text": "hunter2", "signer.token": "hunter2",
		"x.passphrase": "hunter2", "x.pin": "hunter2", "my.apikey": "hunter2", "x.creds": "hunter2",
		"hadoop.zk.auth": "digest:kms:hunter2", "yarn.resourcemanager.zk-auth": "digest:rm:hunter2",
		"ha.zookeeper.auth": "digest:ha:hunter2", "ranger.ks.masterkey": "hunter2", "x.master-key": "hunter2",
		"fs.azure.sas.c.a.blob.core.windows.net": "sv=1&hunter2", "fs.azure.sas.fixed.token.a": "hunter2",
		"y.private-key": "hunter2", "h.header": "Bearer hunter2", "u.url": "https://h/?sig=hunter2",
		"p.uri": "postgresql://kms:hunter2@db/claviger?sslmode=verify-full",
		"q.uri": "pkcs11:token=kms;pin-value=hunter2?x=1", "r.uri": "postgres://db/x?user=k&password=hunter2",
		"x.keystore.passowrd": "hunter2", "claviger.paswd": "hunter2", "s.uri": "postgresql ://u:hunter2@db/x",
		"x.zookeeper.auth.type": "sasl", "e.password": "${env.PW}", "home": "${user.home}/x",
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
	if s := got["x.zookeeper.auth.type"]; s.Value != "sasl" {
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
	if err := c.CheckPublic(); err == nil || !strings.Contains(err.Error(), SensitiveKeys) {
		t.Errorf("a broken expression, checked: %v", err)
	}
}
