package hadoopconf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestForeignRules: the configuration of a KMS with another authorization manager is refused. Hadoop's own manager is
// accepted, and so is a configuration without one.
func TestForeignRules(t *testing.T) {
	const ranger = "org.apache.ranger.authorization.kms.authorizer.RangerKmsAuthorizer"
	for _, c := range []struct {
		manager, file string
		refused       bool
	}{
		{"", "", false}, {" ", "", false}, {hadoopsManager, "", false},
		{" " + hadoopsManager + "\n", "kms-acls.xml", false},
		{ranger, "", true}, {"com.example.Rules", "", true},
		{"", "dbks-site.xml", true}, {hadoopsManager, "ranger-kms-security.xml", true},
		{"", "ranger-kms-audit.xml", true},
	} {
		dir := t.TempDir()
		text := "<configuration><property><name>hadoop.kms.http.port</name><value>1</value></property>\n"
		if c.manager != "" {
			text += "<property><name>" + AuthorizationManager + "</name><value>" + c.manager + "</value></property>\n"
		}
		for name, content := range map[string]string{"kms-site.xml": text + "</configuration>",
			c.file: "<configuration/>"} {
			if name == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		conf, err := LoadKMS(dir, env(nil))
		if err != nil {
			t.Fatal(err)
		}
		err = conf.CheckRules()
		if (err != nil) != c.refused {
			t.Errorf("%+v: %v", c, err)
		}
		if err == nil {
			continue
		}
		for _, part := range []string{strings.TrimSpace(strings.TrimSuffix(c.manager, hadoopsManager)), c.file,
			filepath.Join(dir, "kms-acls.xml"), "claviger acl explain"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%v does not name %s", err, part)
			}
		}
	}
}

// TestServerTLSEnvironment: as in Hadoop's KMS, the environment overrides the keystore of ssl-server.xml. The warning
// does not contain the password.
func TestServerTLSEnvironment(t *testing.T) {
	c := New(t.TempDir(), env(map[string]string{"KMS_SSL_KEYSTORE_FILE": "/etc/kms.jks",
		"KMS_SSL_KEYSTORE_PASS": "hunter2"}))
	c.Override("ssl.server.keystore.location", "/other.jks", "ssl-server.xml")
	warned := strings.Join(c.ServerTLSEnvironment(), "\n")
	if c.String("ssl.server.keystore.location") != "/etc/kms.jks" ||
		c.String("ssl.server.keystore.password") != "hunter2" {
		t.Errorf("%q %q", c.String("ssl.server.keystore.location"), c.String("ssl.server.keystore.password"))
	}
	if strings.Contains(warned, "hunter2") || strings.Count(warned, "overrides property ssl.server.keystore.") != 2 {
		t.Errorf("warnings %s", warned)
	}
	if w := New(t.TempDir(), env(nil)).ServerTLSEnvironment(); w != nil {
		t.Errorf("without the variables: %q", w)
	}
}

// TestMisplacedRules: rules in a file other than kms-acls.xml cause a warning.
func TestMisplacedRules(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"core-site.xml": prop("hadoop.kms.acl.GET", "alice"),
		"kms-site.xml": prop("default.key.acl.READ", "alice") + prop("key.acl.k.ALL", "alice") +
			prop("hadoop.kms.blacklist.DECRYPT_EEK", "hdfs") +
			prop("whitelist.key.acl.READ", "x") + prop("keytrustee.kms.acl.PURGE", "x") +
			prop("hadoop.kms.http.port", "1"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("<configuration>\n"+text+"</configuration>"),
			0o600); err != nil {
			t.Fatal(err)
		}
	}
	conf, err := LoadKMS(dir, env(nil))
	if err != nil {
		t.Fatal(err)
	}
	found := conf.MisplacedRules()
	if all := strings.Join(found, "\n"); len(found) != 6 || !strings.Contains(all,
		filepath.Join(dir, "core-site.xml")+":3: property hadoop.kms.acl.GET has no effect here") {
		t.Errorf("%s", all)
	}
	if warned := strings.Join(conf.Warnings(), "\n"); warned != strings.Join(found, "\n") {
		t.Errorf("the server's warnings are\n%s", warned)
	}
}
