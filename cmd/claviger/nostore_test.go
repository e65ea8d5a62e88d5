package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
)

// TestNoStoreIsMade: only commands that make keys or replace the store make a metastore. Commands that read, or write
// only the journal, leave no file.
func TestNoStoreIsMade(t *testing.T) {
	tok := softhsmtest.New(t)
	for _, line := range []string{
		"hsm list", "hsm inspect", "hsm adopt", "hsm adopt --all --dry-run", "hsm bench",
		"migrate plan", "migrate status", "migrate verify", "migrate finish", "migrate finish --yes", "migrate free k",
		"metastore verify", "metastore verify --no-token", "metastore backup --out backup", "metastore accept",
		"metastore accept --yes",
		"metastore copy --to sqlite:///nowhere/copy.db",
		"acl check", "acl explain alice DECRYPT_EEK k",
	} {
		t.Run(strings.ReplaceAll(line, " ", "_"), func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			keystore := filepath.Join(dir, "luna.keystore")
			if err := pkcs11.WriteKeystoreFile(keystore,
				pkcs11.FileConfig{Module: tok.Module, Token: tok.Label, PINFile: tok.PINFile,
					Profile: pkcs11.SoftHSM}); err != nil {
				t.Fatal(err)
			}
			kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), "<configuration/>")
			kmstest.WriteSite(t, dir, map[string]string{
				hadoopconf.ProviderURI:  "cloudera.hsmkp://file@" + keystore,
				hadoopconf.MetastoreURI: "sqlite://" + filepath.Join(dir, "claviger.db"),
				hadoopconf.SourceURI:    "jceks://file@" + filepath.Join(dir, "source.jceks"),
			})
			before := filesBelow(t, dir)
			out, err := command(t, append(strings.Fields(line), "--conf", dir)...)
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == exitUsage {
				t.Errorf("not a command of claviger: %s", out)
			}
			if after := filesBelow(t, dir); !slices.Equal(before, after) {
				t.Errorf("files %q, before %q\n%s\n%v", after, before, out, err)
			}
		})
	}
}

func filesBelow(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, _ fs.DirEntry, err error) error {
		files = append(files, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
