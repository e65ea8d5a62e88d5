package secret_test

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"claviger/secret"
)

// marker is a part of each password in the tests. No message may contain it.
const marker = "hunter2"

// TestMisspelt checks that passwords in typical misspellings are hidden, with as little other text as possible.
func TestMisspelt(t *testing.T) {
	for _, c := range []struct{ value, want string }{
		{"postgresql ://u:hunter2@h/db", "postgresql ://u:<redacted>@h/db"},
		{"postgresql: //u:hunter2@h/db", "postgresql: //u:<redacted>@h/db"},
		{"postgresql : //u:hunter2@h/db", "postgresql : //u:<redacted>@h/db"},
		{`"postgresql://u:hunter2@h/db"`, `"postgresql://u:<redacted>@h/db"`},
		{`"postgresql:/u:hunter2@h/db"`, `"postgresql:/u:<redacted>@h/db"`},
		{`'postgresql//u:hunter2@h/db'`, `'postgresql//u:<redacted>@h/db'`},
		{`"postgresql:u:hunter2@h/db"`, `"postgresql:<redacted>@h/db"`},
		{"“postgresql:/u:hunter2@h/db”", "“postgresql:/u:<redacted>@h/db”"},
		{"pοstgresqł://u:hunter2@h/db", "pοstgresqł://u:<redacted>@h/db"},
		{"пг:/u:hunter2@h/db", "пг:/u:<redacted>@h/db"},
		{"postgresql://u:hunter2.h:5432/db", "postgresql://u:<redacted>"},
		{"postgresql://u:hunter2/h/db", "postgresql://u:<redacted>"},
		{"kms://https@u:hunter2.h:9600/kms", "kms://https@u:<redacted>"},
		{"postgresql://u://hunter2@h/db", "postgresql://u:<redacted>@h/db"},
		{"postgresql://u:x://hunter2@h/db", "postgresql://u:<redacted>@h/db"},
		{"postgresql ://u%20x:hunter2@hunter2,@h/db", "postgresql ://u%20x:<redacted>@h/db"},
		{"host=h passowrd=hunter2 port=1", "host=h passowrd=<redacted> port=1"},
		{"host=h user=u paswd='hunter2 x' port=1", "host=h user=u paswd=<redacted> port=1"},
		{"pаssword=hunter2", "pаssword=<redacted>"}, // with a Cyrillic a
		{"h;pswd=hunter2", "h;pswd=<redacted>"},
		{"db.passwort: hunter2", "db.passwort: <redacted>"},
		{"secert=hunter2", "secert=<redacted>"},
		{"postgresql://h/db?user=u&passowrd=hunter2&sslmode=require",
			"postgresql://h/db?user=u&passowrd=<redacted>&sslmode=require"},
		{"postgresql://h/db?user=u&pass word=hunter2 x", "postgresql://h/db?user=u&pass word=<redacted>"},
		{"https://h/x?token=hunter2&e=1", "https://h/x?token=<redacted>&e=1"},
		{"https://h/x?auth=u:hunter2", "https://h/x?auth=<redacted>"},
		{"https://h/x?e=1;authkey=hunter2", "https://h/x?e=1;authkey=<redacted>"},
		{"digest:kms:hunter2", "digest:kms:<redacted>"},
		{"digest:kms:a:hunter2 x@h,digest:u:hunter2", "digest:kms:<redacted>,digest:u:<redacted>"},
		{"sasl:kms:cdrwa, digest:kms:hunter2=:rw", "sasl:kms:cdrwa, digest:kms:<redacted>"},
		{"auth=digest:kms:hunter2", "auth=digest:kms:<redacted>"},
		{"pkcs11:token=kms/pin-value:hunter2", "pkcs11:token=kms/pin-value:<redacted>"},
		{"pkcs11:token=kms;pin:hunter2;object=a", "pkcs11:token=kms;pin:<redacted>;object=a"},
	} {
		if got := secret.Value(c.value); got != c.want {
			t.Errorf("%s becomes %s, want %s", c.value, got, c.want)
		}
		if got := secret.WithoutSecrets("it is "+c.value, c.value); strings.Contains(got, marker) {
			t.Errorf("the error about %s shows %s", c.value, got)
		}
	}
	for _, plain := range []string{
		"postgresql://claviger@db1:5432,db2:5432/claviger?sslmode=verify-full&" +
			"passfile=/etc/claviger/pgpass&sslkey=/etc/key",
		"pkcs11:token=kms@site;object=a?pin-source=file:/etc/pin&module-path=/usr/lib/x.so", "https://[::1]:9600/kms",
		"http://h:9600", "http://h:/x", "http://0.0.0.0:${port}/x", "http://*:9870", "jdbc:postgresql://kms@h/db",
		"sqlite:///var/lib/claviger/a@b.db", "ldap://h:389,ldaps://h2:636", "zk1:2181,zk2:2181/kms",
		"sasl:kms:cdrwa,world:anyone:r", "path=/usr/bin:/bin", "passfile=/etc/pgpass", "secure=true",
		"password_file=/etc/x", "10:00-12:00", "kms://http@u1;u2:9600/kms?x=1", "syslog+tcp://h:514",
		"keytrustee://file@/var/lib/kms-keytrustee/x",
		"-Xlog:gc -Dx=y", "(&(objectClass=user)(sAMAccountName={0}))", "a:b:c",
	} {
		if got := secret.Value(plain); got != plain {
			t.Errorf("%s becomes %s", plain, got)
		}
	}
}

var likePort = regexp.MustCompile(`^\d{0,5}[/,;?#\s"')>]`)

// TestAnySpelling checks that no recognisable part of a password is shown, for any misspelling around it and any
// characters in it.
func TestAnySpelling(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pick := func(what string, from ...string) string { return rapid.SampledFrom(from).Draw(t, what) }
		bits := func(what, letters string) string {
			return rapid.StringOfN(rapid.RuneFrom([]rune(letters)), 0, 3, -1).Draw(t, what)
		}
		const any = "abZ019:/@?#,;=&%+ .-_~!$*()[]{}<>\"'\\|^`äж"
		password := bits("before", any) + marker + bits("between", any) + marker + bits("behind", any)
		if likePort.MatchString(password) { // the text behind it may be another URI
			password = "p" + password
		}
		scheme := pick("scheme", "postgresql", "kms", "jdbc:postgresql", "syslog+tcp", "ldap", "pοstgres", "пг",
			"post gresql")
		join := pick("join", "://", " ://", ": //", " : //", ":/", ":///", ":\\\\", ";//")
		quote := pick("quote", "", "\"", "'", "“", " ", "<", "(")
		user := pick("user", "u", "", "svc_kms", "http@u", "u%20x", "ü")
		tail := pick("tail", "h/db", "h:5432/db", "h1:5432,h2:5432/db?sslmode=require", "h", "[::1]:5432")
		list := pick("list", "", "kms://https@h1;h2:9600/kms,", "jceks://file@/etc/x, ")
		value := list + quote + scheme + join + user + ":" + password + "@" + tail + quote
		if got := secret.Value(value); strings.Contains(got, marker) {
			t.Fatalf("%q becomes %q", value, got)
		}
		// Without the '@', a password that begins with digits looks like a port.
		value = quote + scheme + pick("join", "://", " ://", ": //") + user + ":p" +
			strings.ReplaceAll(password, "@", "") + "." + tail + quote
		if got := secret.Value(value); strings.Contains(got, marker) {
			t.Fatalf("%q becomes %q", value, got)
		}
		name := pick("name", "password", "passowrd", "pasword", "pwd", "pswd", "passwort", "passwd", "secrte",
			"pаssword", "Pass", "passphrsae", "credentails", "db.passwrd")
		// '&' ends the value, and an escape may decode to '&'.
		inQuery := strings.NewReplacer("&", "", "%", "").Replace(password)
		value = quote + scheme + "://h/db?" + pick("first", "", "user=u&", "sslmode=require&") + name + "=" + inQuery +
			pick("next", "", "&x=1")
		if got := secret.Value(value); strings.Contains(got, marker) {
			t.Fatalf("%q becomes %q", value, got)
		}
		plain := strings.NewReplacer("&", "", " ", "", "\"", "", "'", "", "{", "", "%", "").Replace(password)
		value = pick("first", "", "host=h ", "h;") + name + pick("is", "=", " = ", ": ") + plain +
			pick("next", "", " port=1")
		if got := secret.Value(value); strings.Contains(got, marker) {
			t.Fatalf("%q becomes %q", value, got)
		}
	})
}
