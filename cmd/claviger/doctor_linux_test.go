package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
)

// doctorAs runs the doctor as a user, and returns its output and exit status.
func doctorAs(t *testing.T, program string, user uint32, env []string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, append([]string{"doctor"}, args...)...)
	cmd.Env, cmd.Dir = append(os.Environ(), env...), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestDoctorAsUser: for the service's user the doctor finds a healthy site. For root it says whose rights it judges,
// and makes no key on a token whose files belong to that user. For a third user it says that this user sees less.
func TestDoctorAsUser(t *testing.T) {
	base, program := programOf(t, "give files to another user")
	token := softhsmtest.NewIn(t, filepath.Join(base, "softhsm"), "doctor")
	conf := filepath.Join(base, "conf")
	if err := os.Mkdir(conf, 0o755); err != nil { //nolint:gosec // another user enters it
		t.Fatal(err)
	}
	if err := pkcs11.WriteKeystoreFile(filepath.Join(conf, "luna.keystore"), pkcs11.FileConfig{Module: token.Module,
		Token: token.Label, PINFile: token.PINFile}); err != nil {
		t.Fatal(err)
	}
	kmstest.WriteSite(t, conf, map[string]string{
		hadoopconf.ProviderURI:  "cloudera.hsmkp://file@" + filepath.Join(conf, "luna.keystore"),
		hadoopconf.MetastoreURI: "sqlite://" + filepath.Join(conf, "c.db"),
		"claviger.audit.file":   filepath.Join(conf, "audit.log"), "hadoop.kms.http.port": "0"})
	kmstest.WriteFile(t, filepath.Join(conf, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.DECRYPT_EEK", "alice"))
	for _, name := range []string{"kms-site.xml", "kms-acls.xml", "luna.keystore"} {
		if err := os.Chmod(filepath.Join(conf, name), 0o644); err != nil { //nolint:gosec // a third user reads it
			t.Fatal(err)
		}
	}
	give(t, conf, stranger)
	give(t, filepath.Join(base, "softhsm"), stranger)
	const another = 1
	for _, tt := range []struct {
		user   uint32
		args   []string
		status int
		wants  []string
	}{
		{stranger, nil, exitOK, []string{"ok       D-conf-user        nobody, the user of this process",
			"ok       D-hsm-template", "no failure, no warning"}},
		{0, nil, exitOK, []string{"warning  D-conf-user        this process runs as root, and",
			"cure: run the doctor as that user (sudo -u nobody claviger doctor", "skipped  D-hsm-template",
			"user nobody may read", "no failure, 1 warning (D-conf-user)"}},
		{0, []string{"--user", "nobody"}, exitOK, []string{
			"ok       D-conf-user        nobody; this process runs as root", "skipped  D-hsm-template",
			"no failure, no warning"}},
		{another, []string{"--user", "nobody"}, exitRefused, []string{"warning  D-conf-user", "runs as user daemon"}},
	} {
		text, status := doctorAs(t, program, tt.user, token.Env, append(tt.args, "--conf", conf)...)
		if status != tt.status {
			t.Errorf("uid %d, %q: exit status %d, want %d", tt.user, tt.args, status, tt.status)
		}
		for _, want := range tt.wants {
			if !strings.Contains(text, want) {
				t.Errorf("uid %d, %q: %q is not in\n%s", tt.user, tt.args, want, text)
			}
		}
	}
}
