package main

import (
	"io"
	"log/slog"
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

// TestMetastorePlaceShowsNoPassword: what names no metastore is refused, by the property and
// by --to, and no part of it but a scheme that is known is repeated.
func TestMetastorePlaceShowsNoPassword(t *testing.T) {
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
		_, err := metastorePlace(conf)
		p, _ := conf.Lookup(hadoopconf.MetastoreURI)
		if err == nil || !strings.HasPrefix(err.Error(), p.Where()+": property claviger.metastore.uri"+want) ||
			!strings.Contains(err.Error(), "; it must be sqlite:// and an absolute path") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", uri, err)
		}
		whole := siteConf(t, map[string]string{hadoopconf.MetastoreURI: "sqlite://" + t.TempDir() + "/a.db"})
		if place, _ := metastorePlace(whole); os.WriteFile(place.file, nil, 0o600) != nil {
			t.Fatal("the metastore cannot be made")
		}
		err = copyStore(t.Context(), io.Discard, whole, uri, slog.New(slog.DiscardHandler))
		if err == nil || !strings.HasPrefix(err.Error(), "--to"+want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("--to %s: %v", uri, err)
		}
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
