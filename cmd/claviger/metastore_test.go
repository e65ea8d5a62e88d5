package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
)

// TestMetastorePlace: without the property the metastore is beside the file that the
// first provider names, for every caller, HOME and working folder.
func TestMetastorePlace(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct{ provider, property, want, refusal string }{
		"an HSM":             {"cloudera.hsmkp://file@" + dir + "/luna.keystore", "", "sqlite://" + dir + "/claviger.db", ""},
		"a Java keystore":    {"jceks://file@" + dir + "/kms.jceks,kms://http@h:1/kms", "", "sqlite://" + dir + "/claviger.db", ""},
		"named":              {"pkcs11:token=x", "sqlite:///srv/x.db", "sqlite:///srv/x.db", ""},
		"several nodes":      {"pkcs11:token=x", "postgresql://u@h:1/d", "postgresql://u@h:1/d", ""},
		"a token by a URI":   {"pkcs11:token=x?module-path=/l.so", "", "", "of scheme pkcs11, names no file beside which the metastore could be; set it in kms-site.xml to sqlite:///"},
		"another KMS":        {"kms://http@h:1/kms", "", "", "of scheme kms, names no file"},
		"a Key Trustee":      {"keytrustee://host", "", "", "of scheme keytrustee, names no file"},
		"a path of no kind":  {"jceks://file@/x", "claviger.db", "", "absolute path"},
		"no provider at all": {",", "", "", "property claviger.metastore.uri is not set"},
	} {
		t.Run(name, func(t *testing.T) {
			site := map[string]string{hadoopconf.ProviderURI: c.provider}
			if c.property != "" {
				site[hadoopconf.MetastoreURI] = c.property
			}
			conf := siteConf(t, site)
			for range 2 {
				t.Setenv("HOME", t.TempDir())
				t.Chdir(t.TempDir())
				got, err := metastorePlace(conf)
				if c.refusal != "" {
					if err == nil || !strings.Contains(err.Error(), c.refusal) {
						t.Errorf("%+v, %v; want %q", got, err, c.refusal)
					}
					continue
				}
				if err != nil || got.uri != c.want {
					t.Errorf("%q, %v; want %q", got.uri, err, c.want)
				}
			}
		})
	}
}

// TestForgottenStore: a store at the default place of earlier versions is not passed
// over for a new one.
func TestForgottenStore(t *testing.T) {
	home, dir := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	conf := siteConf(t, map[string]string{hadoopconf.ProviderURI: "jceks://file@" + dir + "/kms.jceks"})
	old, now := filepath.Join(home, storeFile), filepath.Join(dir, storeFile)
	for _, c := range []struct {
		old, now, refused bool
	}{{false, false, false}, {true, false, true}, {true, true, false}, {false, true, false}} {
		for path, there := range map[string]bool{old: c.old, now: c.now} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if there {
				writeFile(t, path, "")
			}
		}
		_, err := metastorePlace(conf)
		if !c.refused {
			if err != nil {
				t.Errorf("old %t, new %t: %v", c.old, c.now, err)
			}
			continue
		}
		if err == nil {
			t.Fatalf("old %t, new %t: taken", c.old, c.now)
		}
		for _, want := range []string{hadoopconf.MetastoreURI, old, now, "set the property to sqlite://" + old} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not in %v", want, err)
			}
		}
	}
}
