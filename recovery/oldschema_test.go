package recovery

import (
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/metastore/sqlite"
	"claviger/provider/hsm"
)

// TestOldSchema checks the error of Verify for a store of an older schema. It also checks that a restored copy without
// a store id gets the id of the store that it replaces, because the token is bound to that id.
func TestOldSchema(t *testing.T) {
	dump, err := os.ReadFile("../metastore/sqlite/testdata/schema3.sql")
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
	conf := kmstest.Conf(t, map[string]string{
		hadoopconf.ProviderURI:  "cloudera.hsmkp://file@/nowhere/luna.keystore",
		hadoopconf.MetastoreURI: "sqlite://" + now,
	})
	if _, err := Verify(t.Context(), conf, "", true, slog.New(slog.DiscardHandler)); err == nil ||
		!strings.Contains(err.Error(), "has schema version 3") {
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
	o := RestoreOptions{NoToken: true, PlainCopy: true, LoseKeys: true}
	r, err := Restore(t.Context(), conf, old, o, slog.New(slog.DiscardHandler))
	if err != nil || !r.Done || r.Facts.Schema != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	if store, err = sqlite.OpenReadOnly(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	if id, _, err := store.Setting(t.Context(), hsm.SettingID); err != nil || id != "0123" {
		t.Errorf("the id is %q, %v", id, err)
	}
}
