package main

import (
	"database/sql"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/metastore/sqlite"
	"claviger/provider/hsm"
)

// TestOldSchema: verify, before an upgrade, says what to do; and a copy from before it
// that is put in the place of today's store keeps the id that the token is bound to.
func TestOldSchema(t *testing.T) {
	dump, err := os.ReadFile("../../metastore/sqlite/testdata/schema3.sql")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	old, now := filepath.Join(dir, "old.db"), filepath.Join(dir, "claviger.db")
	for _, path := range []string{old, now} {
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range []string{string(dump), "PRAGMA application_id = 0x434c4156"} {
			if _, err := db.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	writeSite(t, dir, map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@/nowhere/luna.keystore", hadoopconf.MetastoreURI: "sqlite://" + now})
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifyStore(t.Context(), conf, "", true, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "has schema version 3") {
		t.Errorf("verify of a store of schema 3: %v", err)
	}
	store, err := sqlite.Open(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.SetSetting(t.Context(), hsm.SettingID, "0123"); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	f := restoreFlags{noToken: true, plain: true, lose: true}
	var out strings.Builder
	if err := f.restore(t.Context(), io.Writer(&out), conf, old, slog.New(slog.DiscardHandler)); err != nil || !strings.Contains(out.String(), "the older claviger that wrote it cannot use it any more") {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if store, err = sqlite.OpenReadOnly(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	if id, _, err := store.Setting(t.Context(), hsm.SettingID); err != nil || id != "0123" {
		t.Errorf("the id is %q, %v", id, err)
	}
}
