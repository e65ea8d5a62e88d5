package main

import (
	"path/filepath"
	"testing"

	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms/kmstest"
	"claviger/metastore/sqlite"
	"claviger/pkcs11"
)

// TestVerifyAsAdopt: verify calls exactly those keys unknown that adopt can adopt. A key with a label of claviger and
// another CKA_ID is foreign to both.
func TestVerifyAsAdopt(t *testing.T) {
	token := softhsmtest.New(t)
	dir := t.TempDir()
	keystore := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(keystore, pkcs11.FileConfig{Module: token.Module, Token: token.Label,
		PINFile: token.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	kmstest.WriteSite(t, dir, map[string]string{"hadoop.kms.key.provider.uri": "cloudera.hsmkp://file@" + keystore})
	store, err := sqlite.Open(t.Context(), filepath.Join(dir, "claviger.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	cfg, _, err := pkcs11.ReadKeystoreFile(keystore)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		label string
		id    []byte
		want  int
	}{{"short@0", []byte{1, 2, 3, 4}, 0}, {"k@0", []byte{1, 2, 3, 4, 5, 6, 7, 8}, exitRefused}} {
		tok, err := pkcs11.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := tok.GenerateKey(t.Context(), step.id, step.label, 128); err != nil {
			t.Fatal(err)
		}
		if err := tok.Close(); err != nil {
			t.Fatal(err)
		}
		for _, command := range [][]string{{"metastore", "verify"}, {"hsm", "adopt"}} {
			if got := run(append(command, "--conf", dir)); got != step.want {
				t.Errorf("%s: %v ends with %d, want %d", step.label, command, got, step.want)
			}
		}
	}
}
