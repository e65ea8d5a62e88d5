package location

import (
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
)

// TestLocation checks that without the property the metastore is beside the file of the first provider, and that HOME
// and the working folder make no difference.
func TestLocation(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct{ provider, property, want, refusal string }{
		"an HSM": {"cloudera.hsmkp://file@" + dir + "/luna.keystore", "", "sqlite://" + dir + "/claviger.db", ""},
		"a Java keystore": {"jceks://file@" + dir + "/kms.jceks,kms://http@h:1/kms", "",
			"sqlite://" + dir + "/claviger.db", ""},
		"a property":    {"pkcs11:token=x", "sqlite:///srv/x.db", "sqlite:///srv/x.db", ""},
		"several nodes": {"pkcs11:token=x", "postgresql://u@h:1/d", "postgresql://u@h:1/d", ""},
		"a token by a URI": {"pkcs11:token=x?module-path=/l.so", "", "",
			"of scheme pkcs11, names no file beside which the metastore could be; set it in kms-site.xml to " +
				"sqlite:///"},
		"another KMS":         {"kms://http@h:1/kms", "", "", "of scheme kms, names no file"},
		"a Key Trustee":       {"keytrustee://host", "", "", "of scheme keytrustee, names no file"},
		"a keystore in HDFS":  {"jceks://hdfs@nn:8020/kms.jceks", "", "", "of scheme jceks, names no file"},
		"a URI of a keystore": {"jceks://file@/x", "claviger.db", "", "absolute path"},
		"no provider at all":  {",", "", "", "property claviger.metastore.uri is not set"},
	} {
		t.Run(name, func(t *testing.T) {
			site := map[string]string{hadoopconf.ProviderURI: c.provider}
			if c.property != "" {
				site[hadoopconf.MetastoreURI] = c.property
			}
			conf := kmstest.Conf(t, site)
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

// TestShowsNoPassword checks the error of a value that names no metastore. It may repeat a known scheme, but no other
// part of the value, which may be a password.
func TestShowsNoPassword(t *testing.T) {
	for uri, scheme := range map[string]string{
		"db1:5432:claviger:claviger:hunter2":            "",
		"*:*:*:claviger:hunter2":                        "",
		"host=db1 user=a password hunter2":              "",
		"host=db1 user=a pa ssword=hunter2":             "",
		"hunter2:x":                                     "",
		"/var/lib/hunter2":                              "",
		"sqlite://hunter2":                              "sqlite",
		"hunter2":                                       "",
		"postgresql:/claviger/hunter2@db1:5432":         "postgresql",
		"POSTGRESQL://claviger@hunter2@db1/c":           "postgresql",
		"jdbc:postgresql://db1/c;user=a;hunter2":        "jdbc",
		"mysql://claviger/hunter2@db1/claviger":         "mysql",
		"sqlite:/var/lib/claviger/claviger.db?hunter2=": "sqlite",
	} {
		want := " has a value that names no metastore (not shown"
		if scheme != "" {
			want = " has a value of the scheme " + scheme + " that names no metastore"
		}
		conf := kmstest.Conf(t, map[string]string{hadoopconf.MetastoreURI: uri})
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

// TestNoMissingFile checks that a PostgreSQL database is never a missing file.
func TestNoMissingFile(t *testing.T) {
	loc, err := Parse("postgresql://u@h:1/d")
	if err != nil || loc.File != "" || loc.Missing() {
		t.Errorf("%+v, missing %t, %v", loc, loc.Missing(), err)
	}
}

// TestHomes checks that the home folder of the environment and that of the user's account are both searched. A relative
// path depends on the working folder, so it is not searched.
func TestHomes(t *testing.T) {
	u, err := user.Current()
	if err != nil || !filepath.IsAbs(u.HomeDir) {
		t.Skipf("the user of the test has no home folder: %v, %v", u, err)
	}
	other := t.TempDir()
	for home, want := range map[string][]string{other: {other, u.HomeDir}, "relative": {u.HomeDir}, "": {u.HomeDir}} {
		t.Setenv("HOME", home)
		if got := homes(); !slices.Equal(got, want) {
			t.Errorf("HOME=%q: %q, want %q", home, got, want)
		}
	}
}

// TestForgottenStore checks that Of refuses the default location if it has no store, and the default location of
// earlier versions has one.
func TestForgottenStore(t *testing.T) {
	home, dir := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	conf := kmstest.Conf(t, map[string]string{hadoopconf.ProviderURI: "jceks://file@" + dir + "/kms.jceks"})
	old, now := filepath.Join(home, FileName), filepath.Join(dir, FileName)
	for _, c := range []struct {
		old, now, refused bool
	}{{false, false, false}, {true, false, true}, {true, true, false}, {false, true, false}} {
		for path, exists := range map[string]bool{old: c.old, now: c.now} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if exists {
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
			t.Fatalf("old %t, new %t: accepted", c.old, c.now)
		}
		for _, want := range []string{hadoopconf.MetastoreURI, old, now, "set the property to sqlite://" + old} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not in %v", want, err)
			}
		}
	}
}
