package keystore

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/secret"
)

func noEnv(string) (string, bool) { return "", false }

// TestRealCredentials reads credential stores that `hadoop credential create` of a real Hadoop writes.
func TestRealCredentials(t *testing.T) {
	jars := os.Getenv("CLAVIGER_HADOOP_JARS")
	if jars == "" {
		if os.Getenv("CLAVIGER_REQUIRE_HADOOP") == "1" {
			t.Fatal("CLAVIGER_HADOOP_JARS is not set: name the folder with Hadoop's jars")
		}
		t.Skip("CLAVIGER_HADOOP_JARS does not name a folder with Hadoop's jars, which this test needs")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "store.pw"), []byte(" from-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	site := "<configuration><property><name>" + CredentialPasswordProperty +
		"</name><value>store.pw</value></property></configuration>"
	if err := os.WriteFile(filepath.Join(dir, "core-site.xml"), []byte(site), 0o600); err != nil {
		t.Fatal(err)
	}
	create := func(uri, name, value, password string) {
		t.Helper()
		args := []string{"-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8", "-cp", dir + ":" +
			filepath.Join(jars, "*"),
			"org.apache.hadoop.security.alias.CredentialShell", "create", name, "-value", value, "-provider", uri}
		cmd := exec.CommandContext(t.Context(), "java", args...)
		cmd.Env = append(os.Environ(), "HADOOP_CREDSTORE_PASSWORD="+password, "LC_ALL=C.UTF-8")
		if password == "" {
			cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("hadoop credential create: %v\n%s", err, out)
		}
	}
	first, second := filepath.Join(dir, "first.jceks"), filepath.Join(dir, "second.jceks")
	create("localjceks://file"+first, "ssl.server.keystore.password", "gr\u00f6\u00dfe 1", "")
	create("jceks://file"+second, "ssl.Client.truststore.password", "two", "")
	create("jceks://file"+second, "ssl.server.keystore.password", "hidden by the first", "")

	password, err := CredentialPassword(noEnv, "store.pw", dir)
	if err != nil || string(password) != "from-a-file" {
		t.Fatalf("password %q, %v", string(password), err)
	}
	c, missing,
		err := OpenCredentials("localjceks://file"+first+", jceks://file@"+second+",jceks://file"+dir+"/none.jceks",
		password)
	if err != nil || len(missing) != 1 {
		t.Fatalf("missing %v, %v", missing, err)
	}
	for name, want := range map[string]string{"ssl.server.keystore.password": "gr\u00f6\u00dfe 1",
		"ssl.client.truststore.password": "two"} {
		if v, ok, err := c.Get(name); err != nil || !ok || string(v) != want {
			t.Errorf("%s: %q, %t, %v", name, string(v), ok, err)
		}
	}
	if _, ok, err := c.Get("another"); ok || err != nil {
		t.Errorf("a name without an entry: %t, %v", ok, err)
	}

	third := filepath.Join(dir, "third.jceks")
	create("localjceks://file"+third, "a", "b", "of the environment")
	env := func(string) (string, bool) { return "of the environment", true }
	if password, err = CredentialPassword(env, "store.pw", dir); err != nil {
		t.Fatal(err)
	}
	if c, _, err = OpenCredentials("localjceks://file"+third, password); err != nil {
		t.Fatal(err)
	}
	if v, ok, err := c.Get("a"); err != nil || !ok || string(v) != "b" {
		t.Errorf("%q, %t, %v", string(v), ok, err)
	}
}

// TestPasswords: a password comes from the credential store, or from clear text if that is allowed.
func TestPasswords(t *testing.T) {
	store := NewJCEKS()
	if err := store.SetKey("p", "AES", secret.Bytes("stored"), secret.Bytes("none"), time.Now()); err != nil {
		t.Fatal(err)
	}
	data, err := store.Marshal(secret.Bytes("none"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "c.jceks")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	password, err := CredentialPassword(noEnv, "", "")
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := OpenCredentials("localjceks://file"+path, password)
	if err != nil {
		t.Fatal(err)
	}
	conf := func(name string) (string, bool) { return "clear " + name, name != "unset" }
	open, restricted := &Passwords{c, true}, &Passwords{c, false}
	for _, test := range []struct {
		p          *Passwords
		name, want string
		fails      bool
	}{
		{open, "p", "stored", false}, {open, "q", "clear q", false}, {open, "unset", "", false},
		{restricted, "p", "stored", false}, {restricted, "q", "", true}, {restricted, "unset", "", false},
		{&Passwords{nil, true}, "p", "clear p", false}, {&Passwords{nil, false}, "p", "", true},
	} {
		v, err := test.p.Get(test.name, conf)
		if string(v) != test.want || (err != nil) != test.fails {
			t.Errorf("%s, clear text %t: %q, %v", test.name, test.p.ClearText, string(v), err)
		}
		if err != nil && (strings.Contains(err.Error(), "clear "+test.name) ||
			!strings.Contains(err.Error(), "hadoop credential create "+test.name)) {
			t.Errorf("error %q", err)
		}
	}
	if _, _, err := OpenCredentials("localjceks://file"+path, secret.Bytes("wrong")); err == nil ||
		!strings.Contains(err.Error(), CredentialPasswordEnv) {
		t.Errorf("with a wrong password: %v", err)
	}
	// user:// means the login of a Java process. A server has none, so the next store counts.
	if c, missing, err := OpenCredentials("user:///,localjceks://file"+path, secret.Bytes("none")); err == nil {
		if v, ok, err := c.Get("p"); err != nil || !ok || string(v) != "stored" || len(missing) > 0 {
			t.Errorf("behind user:///: %q %t %v", v, ok, err)
		}
	} else {
		t.Errorf("behind user:///: %v", err)
	}
	pkcs12, err := filepath.Abs("testdata/tls/server.pkcs12")
	if err != nil {
		t.Fatal(err)
	}
	for uri, want := range map[string]string{
		"localjceks://file" + pkcs12: "hadoop credential create",
		"bcfks://file/x":             "BouncyCastle", "jceks://hdfs@nn:8020/x": "only local files",
		"/etc/x.jceks": "not a URI",
		"vault://x/y":  "not known",
	} {
		if _, _, err := OpenCredentials(uri, nil); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), CredentialPathProperty) {
			t.Errorf("%s: %v", uri, err)
		}
	}
	if _, err := CredentialPassword(noEnv, "nosuch.pw", t.TempDir()); err == nil ||
		!strings.Contains(err.Error(), CredentialPasswordProperty) {
		t.Errorf("a missing password file: %v", err)
	}
}
