package location

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
)

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

// TestLocation: without the property the metastore is beside the file that the
// first provider names, for every caller, HOME and working folder.
func TestLocation(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct{ provider, property, want, refusal string }{
		"an HSM": {"cloudera.hsmkp://file@" + dir + "/luna.keystore", "", "sqlite://" + dir +
			"/claviger.db", ""},
		"a Java keystore": {"jceks://file@" + dir + "/kms.jceks,kms://http@h:1/kms", "", "sqlite://" + dir +
			"/claviger.db", ""},
		"named":         {"pkcs11:token=x", "sqlite:///srv/x.db", "sqlite:///srv/x.db", ""},
		"several nodes": {"pkcs11:token=x", "postgresql://u@h:1/d", "postgresql://u@h:1/d", ""},
		"a token by a URI": {"pkcs11:token=x?module-path=/l.so", "", "",
			"of scheme pkcs11, names no file beside which the metastore could be; set it in kms-site.xml to " +
				"sqlite:///"},
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
				got, err := Of(conf)
				if c.refusal != "" {
					if err == nil || !strings.Contains(err.Error(), c.refusal) {
						t.Errorf("%+v, %v; want %q", got, err, c.refusal)
					}
					continue
				}
				if err != nil || got.URI != c.want {
					t.Errorf("%q, %v; want %q", got.URI, err, c.want)
				}
			}
		})
	}
}

// TestShowsNoPassword: a value that names no metastore is refused, and no part of it but a known
// scheme is repeated.
func TestShowsNoPassword(t *testing.T) {
	for uri, want := range map[string]string{
		"db1:5432:claviger:claviger:hunter2":            " has a value that names no metastore (not shown",
		"*:*:*:claviger:hunter2":                        " has a value that names no metastore (not shown",
		"host=db1 user=a password hunter2":              " has a value that names no metastore (not shown",
		"host=db1 user=a pa ssword=hunter2":             " has a value that names no metastore (not shown",
		"hunter2:x":                                     " has a value that names no metastore (not shown",
		"hunter2":                                       " has a value that names no metastore (not shown",
		"postgresql:/claviger/hunter2@db1:5432":         " has a value of the scheme postgresql that names no metastore",
		"POSTGRESQL://claviger@hunter2@db1/c":           " has a value of the scheme postgresql that names no metastore",
		"jdbc:postgresql://db1/c;user=a;hunter2":        " has a value of the scheme jdbc that names no metastore",
		"mysql://claviger/hunter2@db1/claviger":         " has a value of the scheme mysql that names no metastore",
		"sqlite:/var/lib/claviger/claviger.db?hunter2=": " has a value of the scheme sqlite that names no metastore",
	} {
		conf := siteConf(t, map[string]string{hadoopconf.MetastoreURI: uri})
		_, err := Of(conf)
		p, _ := conf.Lookup(hadoopconf.MetastoreURI)
		if err == nil || !strings.HasPrefix(err.Error(), p.Where()+": property claviger.metastore.uri"+want) ||
			!strings.Contains(err.Error(), "; it must be sqlite:// and an absolute path") ||
			strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", uri, err)
		}
		if _, err := Parse(uri); err == nil || !strings.HasPrefix(err.Error(), want[1:]) ||
			strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// TestForgottenStore: a store at the default place of earlier versions is not passed
// over for a new one.
func TestForgottenStore(t *testing.T) {
	home, dir := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	conf := siteConf(t, map[string]string{hadoopconf.ProviderURI: "jceks://file@" + dir + "/kms.jceks"})
	old, now := filepath.Join(home, FileName), filepath.Join(dir, FileName)
	for _, c := range []struct {
		old, now, refused bool
	}{{false, false, false}, {true, false, true}, {true, true, false}, {false, true, false}} {
		for path, there := range map[string]bool{old: c.old, now: c.now} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if there {
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		_, err := Of(conf)
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
