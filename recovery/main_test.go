package recovery

import (
	"os"
	"path/filepath"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }

// siteConf is a configuration folder with one kms-site.xml.
func siteConf(t *testing.T, site map[string]string) *hadoopconf.Conf {
	t.Helper()
	dir := t.TempDir()
	text := "<configuration>\n"
	for name, value := range site {
		text += "<property><name>" + name + "</name><value>" + value + "</value></property>\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "kms-site.xml"), []byte(text+"</configuration>\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	return conf
}
