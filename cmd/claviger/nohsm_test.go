package main

import (
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
)

// TestTokenCommandsNeedAnHSM: a command on a token says what to pass if the configuration has no token.
func TestTokenCommandsNeedAnHSM(t *testing.T) {
	dir := t.TempDir()
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "kms.keystore")})
	for _, name := range []string{"list", "inspect"} {
		out, err := command(t, "hsm", name, "--conf", dir)
		if err == nil || !strings.Contains(out, "kms-site.xml") ||
			!strings.Contains(out, "is not an HSM. With --conf, name the configuration folder of a server with "+
				"an HSM") ||
			!strings.Contains(out, "claviger key list --provider") {
			t.Errorf("hsm %s: %v\n%s", name, err, out)
		}
	}
}

// TestCommandsCheckMigrationSettings: a command refuses a wrong value of a migration's property, as the server does.
func TestCommandsCheckMigrationSettings(t *testing.T) {
	dir := t.TempDir()
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI:        "jceks://file@" + filepath.Join(dir, "kms.keystore"),
		"claviger.migration.versions": "bogus"})
	out, err := command(t, "migrate", "status", "--conf", dir)
	if err == nil || !strings.Contains(out, "it must be auto, all or current") {
		t.Errorf("migrate status: %v\n%s", err, out)
	}
}
