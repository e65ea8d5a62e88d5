package kms

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger"
	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/metastore/sqlite"
	"claviger/provider/hsm"
)

// TestNoOtherKeys: a server uses only keys of the configured provider: not those of Hadoop's
// default provider, and not those of a keystore file if the metastore holds keys of an HSM.
func TestNoOtherKeys(t *testing.T) {
	dir := t.TempDir()
	jceks := "jceks://file@" + filepath.Join(dir, "kms.keystore")
	beside := filepath.Join(dir, location.FileName)
	named := filepath.Join(t.TempDir(), "hsm.db")
	empty := filepath.Join(t.TempDir(), "empty.db")
	for _, path := range []string{named, empty} {
		store, err := sqlite.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if path == named {
			err = store.Insert(t.Context(), metastore.Key{Metadata: claviger.Metadata{Name: "zone1",
				Cipher: claviger.DefaultCipher, BitLength: 128},
				List: []metastore.Version{{ID: "0", Object: "01"}}})
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	type site = map[string]string
	for name, c := range map[string]struct {
		site site
		want []string // nil: it opens
	}{
		"no provider named": {site{hadoopconf.MetastoreURI: "sqlite://" + named},
			[]string{"property " + hadoopconf.ProviderURI + " is not set", "cloudera.hsmkp://file@", "is not used"}},
		"a misspelt property": {site{"hadoop.kms.key.provider.url": "cloudera.hsmkp://file@/x"},
			[]string{"kms-site.xml:2", "did you mean " + hadoopconf.ProviderURI + "?"}},
		"a keystore beside the keys of an HSM": {site{hadoopconf.ProviderURI: jceks,
			hadoopconf.MetastoreURI: "sqlite://" + named},
			[]string{"kms-site.xml", hadoopconf.ProviderURI, "holds 1 keys of an HSM, for example zone1", named,
				hadoopconf.MetastoreURI}},
		"an empty metastore": {site{hadoopconf.ProviderURI: jceks,
			hadoopconf.MetastoreURI: "sqlite://" + empty}, nil},
		"a metastore that does not exist": {site{hadoopconf.ProviderURI: jceks,
			hadoopconf.MetastoreURI: "sqlite://" + empty + ".not"}, nil},
		"no metastore": {site{hadoopconf.ProviderURI: jceks}, nil},
		"a provider without a file, and no metastore named": {site{hadoopconf.ProviderURI: "memory://"},
			[]string{"unknown scheme"}},
	} {
		for _, access := range []hsm.Access{hsm.Serve, hsm.Make, hsm.Read, hsm.Journal} {
			t.Run(name, func(t *testing.T) { wantOpen(t, dir, c.site, access, c.want) })
		}
	}
	if err := os.Rename(named, beside); err != nil {
		t.Fatal(err)
	}
	wantOpen(t, dir, site{hadoopconf.ProviderURI: jceks}, hsm.Serve, []string{"holds 1 keys of an HSM", beside,
		"built-in default"})
}

// wantOpen opens a configuration. want are parts of the error; nil means no error.
func wantOpen(t *testing.T, dir string, site map[string]string, access hsm.Access, want []string) {
	t.Helper()
	kmstest.WriteSite(t, dir, site)
	svc, err := Open(t.Context(), dir, "claviger test", access, slog.New(slog.DiscardHandler))
	if err == nil {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	}
	if (err == nil) != (want == nil) {
		t.Fatalf("access %v: error %v, want %q", access, err, want)
	}
	for _, part := range want {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("access %v: %v; want %q", access, err, part)
		}
	}
}
