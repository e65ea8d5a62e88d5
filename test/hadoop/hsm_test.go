package hadoop

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const tokenPIN = "1234"

// newToken makes a SoftHSM2 token labelled "claviger" and returns the
// environment that shows it to a process.
func newToken(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"SOFTHSM2_CONF=" + conf}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "softhsm2-util", "--init-token", "--free", "--label", "claviger", "--pin", tokenPIN, "--so-pin", "87654321")
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util (run `make setup` if it is missing): %v\n%s", err, out)
	}
	return env
}

// hsmOnly is the kms-site.xml of a server that is past its migration.
func hsmOnly(dir string) Conf {
	return Conf{
		"hadoop.kms.http.host":        "127.0.0.1",
		"hadoop.kms.key.provider.uri": "cloudera.hsmkp://file@" + filepath.Join(dir, "hsm.keystore"),
		"claviger.metastore.uri":      "sqlite://" + filepath.Join(dir, "claviger.db"),
	}
}

// clavigerConf makes the configuration folder of an HSM KMS that is to take
// over from source, with the properties of the procedure, and returns it with
// the environment of the server.
func clavigerConf(t *testing.T, source *KMS) (dir string, env []string) {
	t.Helper()
	dir = t.TempDir()
	env = append(newToken(t), "HADOOP_USER_NAME="+migrator)
	hsmOnly(dir).With(Conf{
		"hadoop.kms.key.provider.reencryption.source.uri": source.ProviderURI(),
		"hadoop.kms.reencryption.crypto.enable":           "true",
		"cloudera.hsmkp.initiatemigration":                "true",
	}).Write(t, filepath.Join(dir, "kms-site.xml"))
	siteACLs().Write(t, filepath.Join(dir, "kms-acls.xml"))
	noGroups.Write(t, filepath.Join(dir, "core-site.xml"))
	return dir, env
}
