package kms

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
)

// TestOperations: the configuration decides what the servlets show, and to which users.
func TestOperations(t *testing.T) {
	dir := t.TempDir()
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI:            "jceks://file@" + filepath.Join(dir, "kms.keystore"),
		"hadoop.kms.http.host":            "127.0.0.1",
		"hadoop.kms.metrics.process.name": "KMS7", "hadoop.kms.metrics.session.id": "s1",
		"hadoop.prometheus.endpoint.enabled": "true",
		"hadoop.security.authorization":      "true", "hadoop.security.instrumentation.requires.admin": "true",
		"hadoop.kms.http.administrators": "ops",
		"of.nobody.password":             "hunter2",
	})
	if err := os.WriteFile(filepath.Join(dir, "kms-acls.xml"), []byte("<configuration/>"), 0o600); err != nil {
		t.Fatal(err)
	}
	kms := serve(t, dir)
	for _, c := range []struct {
		path, user string
		status     int
		holds      string
	}{
		{"/conf", "ops", 200,
			"<name>of.nobody.password</name><value>&lt;redacted&gt;</value><final>false</final><source>file:" + dir +
				"/kms-site.xml</source>"},
		{"/conf?name=hadoop.kms.cache.enable", "ops", 200,
			"<value>true</value><final>false</final><source>kms-default.xml</source>"},
		{"/conf?name=hadoop.kms.http.port", "ops", 200,
			"<value>0</value><final>false</final><source>--http-port</source>"},
		{"/conf", "alice", 403, "not authorized"},
		{"/conf", "", 401, ""},
		{"/jmx?qry=Hadoop:name=JvmMetrics,*", "ops", 200, `"Hadoop:service=KMS7,name=JvmMetrics"`},
		{"/kms/jmx?qry=Hadoop:name=JvmMetrics,*", "alice", 200, `"tag.SessionId": "s1"`},
		{"/logLevel?log=x&level=DEBUG", "ops", 200, "Setting Level to DEBUG"},
		{"/logLevel?log=x", "alice", 403, "not authorized"},
		{"/stacks", "ops", 200, "Process Thread Dump"},
		{"/prom", "alice", 200, "claviger_kms_request_seconds_count"},
		{"/prom", "", 401, ""},
		{"/metrics", "", 200, "claviger_kms_request_seconds_count"},
	} {
		if status, body := kmstest.Get(t, kms, c.path, c.user); status != c.status || !strings.Contains(body,
			c.holds) || strings.Contains(body, "hunter2") {
			t.Errorf("%s for %q: %d, without %q:\n%.2000s", c.path, c.user, status, c.holds, body)
		}
	}
}
