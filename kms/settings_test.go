package kms

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
)

// TestMigrationSettings: wrong properties of migrations stop the start, even if there is no
// source yet.
func TestMigrationSettings(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"claviger.migration.versions", "bogus", "it must be auto, all or current"},
		{"claviger.migration.versions", "current", ""},
		{"claviger.hsm.self.check", "often", "it must be none, sampled or twice"},
		{"claviger.hsm.self.check", "twice", ""},
		{"claviger.hsm.generate", "hsm", "it must be encrypted or implied"},
		{"claviger.hsm.generate", "implied", ""},
		{"claviger.hsm.generate.lease", "999ms", "it must be 1s to 10m"},
		{"claviger.hsm.generate.lease", "11m", "it must be 1s to 10m"},
		{"claviger.hsm.generate.lease", "60", "it must be 1s to 10m, as in 60s"},
		{"claviger.hsm.generate.lease", "10m", ""},
		{"claviger.migration.gap", "-1", "0"},
		{"claviger.migration.gap", "1000001", "1000000"},
		{"claviger.migration.gap", "1000", ""},
		{"claviger.migration.ours", "finance@3, finance", "as in finance@3; finance is not a key version"},
		{"claviger.migration.ours", "finance@3, web logs@1", ""},
		{"claviger.migration.theirs", "finance", "as in finance@3; finance is not a key version"},
		{"claviger.migration.theirs", "finance@3, both@1", "claviger.migration.ours names both@1 too"},
		{"claviger.migration.theirs", "finance@3", ""},
		{"claviger.source.compare.interval", "0", "longer than 0"},
		{"claviger.source.compare.interval", "500ms", ""},
	} {
		dir := t.TempDir()
		site := map[string]string{hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "kms.keystore"),
			"claviger.migration.ours": "both@1"}
		if c.name == "claviger.hsm.generate.lease" {
			site["claviger.hsm.generate"] = "implied" // a lease alone has no effect
		}
		site[c.name] = c.value
		kmstest.WriteSite(t, dir, site)
		conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
		if err != nil {
			t.Fatal(err)
		}
		if len(conf.Warnings()) > 0 {
			t.Errorf("%s: %v", c.name, conf.Warnings())
		}
		_, err = readSettings(conf)
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.name) ||
			!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "kms-site.xml")) {
			t.Errorf("%s = %q: %v, want an error that says %q", c.name, c.value, err, c.want)
		}
	}
}
