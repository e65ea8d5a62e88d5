package main

import (
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/metastore/sqlite"
)

// TestNoSecretOfACommandIsShown: a command that gets the URI of a store never shows the password in it.
func TestNoSecretOfACommandIsShown(t *testing.T) {
	dir := t.TempDir()
	kmstest.WriteSite(t, dir, map[string]string{hadoopconf.MetastoreURI: "sqlite://" + filepath.Join(dir, "c.db")})
	st, err := sqlite.Open(t.Context(), filepath.Join(dir, "c.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	for _, to := range append([]string{"jdbc:postgresql://127.0.0.1:1/x?user=u&password=hunter2",
		"postgresql:u:hunter2@127.0.0.1:1/x"}, kmstest.PasswordURIs...) {
		out, err := command(t, "metastore", "copy", "--conf", dir, "--to", to)
		if err == nil || !strings.Contains(out+err.Error(), "--to") {
			t.Errorf("--to %s: %v\n%s", to, err, out)
		}
		if strings.Contains(out+err.Error(), "hunter2") {
			t.Errorf("--to %s shows the password: %v\n%s", to, err, out)
		}
	}
}
