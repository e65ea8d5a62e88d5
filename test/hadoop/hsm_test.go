package hadoop

import (
	"path/filepath"
	"testing"

	"claviger/internal/softhsm"
)

// hsmOnly returns the kms-site.xml of a server after its migration.
func hsmOnly(dir string) Conf {
	return Conf{
		"hadoop.kms.http.host":        "127.0.0.1",
		"hadoop.kms.key.provider.uri": "cloudera.hsmkp://file@" + filepath.Join(dir, "hsm.keystore"),
		"claviger.metastore.uri":      "sqlite://" + filepath.Join(dir, "claviger.db"),
	}
}

// clavigerConf makes the configuration folder of an HSM KMS that migrates from source, with the properties of the
// procedure. It returns the folder and the environment of the server.
func clavigerConf(t *testing.T, source origin) (dir string, env []string) {
	t.Helper()
	dir = t.TempDir()
	token, err := softhsm.Create(filepath.Join(dir, "token"), "claviger")
	if err != nil {
		t.Fatal(err)
	}
	env = append(token.Env, "HADOOP_USER_NAME="+migrator)
	Claviger(t, env, "hsm", "init", "--module", token.Module, "--token", token.Label, "--pin-file", token.PINFile,
		filepath.Join(dir, "hsm.keystore"))
	more := Conf{}
	if source.beside != nil {
		more = source.beside(dir)
	}
	hsmOnly(dir).With(Conf{
		"hadoop.kms.key.provider.reencryption.source.uri": source.kms.ProviderURI(),
		"hadoop.kms.reencryption.crypto.enable":           "true",
		"cloudera.hsmkp.initiatemigration":                "true",
	}, more).Write(t, filepath.Join(dir, "kms-site.xml"))
	siteACLs().Write(t, filepath.Join(dir, "kms-acls.xml"))
	noGroups.Write(t, filepath.Join(dir, "core-site.xml"))
	return dir, env
}
