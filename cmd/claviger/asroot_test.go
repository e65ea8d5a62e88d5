package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/metastore/sqlite"
	"claviger/owner"
	"claviger/pkcs11"
	"claviger/provider/builtin"
	"claviger/provider/hsm"
	"claviger/secret"
)

// TestNotAsRoot: root must not write beside files of another user, because the server of that user could not use the
// new files. Root can read them.
func TestNotAsRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files to another user")
	}
	dir := t.TempDir()
	token := softhsmtest.New(t)
	keystore := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(keystore, pkcs11.FileConfig{Module: token.Module, Token: token.Label,
		PINFile: token.PINFile}); err != nil {
		t.Fatal(err)
	}
	jceks := filepath.Join(dir, "kms.jceks")
	store := filepath.Join(dir, "claviger.db")
	folder := t.TempDir()
	for _, c := range []struct {
		what, provider, store string
		foreign               string // a file that belongs to another user
		makes                 bool   // the file does not exist before
	}{
		{"the PIN", "cloudera.hsmkp://file@" + keystore, store, token.PINFile, false},
		{"the PIN of a pkcs11: URI", "pkcs11:token=" + token.Label + "?module-path=" + token.Module +
			"&amp;pin-source=file:" + token.PINFile, store, token.PINFile, false},
		{"the metastore", "cloudera.hsmkp://file@" + keystore, store, store, true},
		{"the folder of a new metastore", "cloudera.hsmkp://file@" + keystore,
			filepath.Join(folder, "c.db"), folder, false},
		{"the Java keystore", "jceks://file@" + jceks, store, jceks, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			conf := t.TempDir()
			kmstest.WriteSite(t, conf, map[string]string{hadoopconf.ProviderURI: c.provider,
				hadoopconf.MetastoreURI: "sqlite://" + c.store, "hadoop.kms.http.host": "127.0.0.1"})
			if c.makes {
				if err := os.WriteFile(c.foreign, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				defer os.Remove(c.foreign)
			}
			if err := os.Chown(c.foreign, stranger, stranger); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = os.Chown(c.foreign, 0, 0) }()
			set, err := hadoopconf.LoadKMS(conf, os.LookupEnv)
			if err != nil {
				t.Fatal(err)
			}
			var root *owner.RootError
			if err := owner.RefuseRoot(builtin.Files(set)...); !errors.As(err, &root) || root.File != c.foreign {
				t.Errorf("as root: %v", err)
			}
			for _, access := range []hsm.Access{hsm.Serve, hsm.Journal} {
				if svc, err := kms.Open(t.Context(), conf, "claviger migrate", access,
					slog.New(slog.DiscardHandler)); !errors.As(err, &root) {
					t.Errorf("access %v: %v, %v", access, svc, err)
				}
			}
		})
	}
}

// TestBackupAsRoot: a backup that root has made, for instance by cron, belongs to the owner of the store. The owner
// verifies and restores it.
func TestBackupAsRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files to another user")
	}
	dir := t.TempDir()
	store := filepath.Join(dir, "claviger.db")
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI:  "jceks://file@" + filepath.Join(dir, "kms.jceks"),
		hadoopconf.MetastoreURI: "sqlite://" + store})
	s, err := sqlite.Open(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), os.Chown(store, stranger, stranger)); err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(dir, "b.db")
	wants(t, true, []string{"metastore", "backup", "--conf", dir, "--out", backup}, "wrote ")
	st, err := os.Stat(backup)
	if err != nil {
		t.Fatal(err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Uid != stranger || sys.Gid != stranger ||
		st.Mode().Perm() != 0o600 {
		t.Errorf("the backup is %s", secret.Rights(backup))
	}
}
