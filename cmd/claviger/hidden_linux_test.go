package main

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/softhsm"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/provider/hsm"
)

// TestObjectsOfRoot: root made objects on the token of the server's user. No command calls them missing: each names a
// file, its owner and the remedy.
func TestObjectsOfRoot(t *testing.T) {
	base, program := programOf(t, "give files to another user")
	conf := tokenWithObjectsOfRoot(t, base)
	folders, err := filepath.Glob(base + "/token/tokens/*")
	if err != nil || len(folders) != 1 {
		t.Fatal(folders, err)
	}
	for _, args := range [][]string{{"metastore", "verify"}, {"hsm", "list"}, {"hsm", "inspect"},
		{"hsm", "adopt", "--rebind"}} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, append(args, "--conf", conf)...)
		cmd.Dir = base
		cmd.Env = append(os.Environ(), "HOME="+base)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != exitRefused {
			t.Errorf("%s: exit status %d, %v\n%s", args, code, err, out)
		}
		for _, want := range []string{".object: permission denied (of root:root, mode 0600)",
			"cure: chown -R nobody " + folders[0]} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: no %q in:\n%s", args, want, out)
			}
		}
		for _, wrong := range []string{"restore the token", "from its backup", "gives them up", "gives it up"} {
			if strings.Contains(string(out), wrong) {
				t.Errorf("%s says %q:\n%s", args, wrong, out)
			}
		}
	}
}

// tokenWithObjectsOfRoot makes a token with two keys, and the configuration of its server. All files belong to
// stranger, except the objects of the second key, which belong to root.
func tokenWithObjectsOfRoot(t *testing.T, base string) (conf string) {
	t.Helper()
	token, err := softhsm.Create(filepath.Join(base, "token"), "kms")
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range token.Env {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	conf = filepath.Join(base, "conf")
	if err := os.Mkdir(conf, 0o700); err != nil {
		t.Fatal(err)
	}
	keystore := filepath.Join(conf, "luna.keystore")
	kmstest.WriteFile(t, keystore,
		"module = "+token.Module+"\ntoken = kms\npin-file = "+token.PINFile+"\nprofile = softhsm\n")
	kmstest.WriteSite(t, conf, map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + keystore,
		hadoopconf.MetastoreURI: "sqlite://" + filepath.Join(conf, "claviger.db"), "hadoop.kms.http.host": "127.0.0.1"})
	objects := func() []string {
		files, err := filepath.Glob(base + "/token/tokens/*/*.object")
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	makeKeyOnToken(t, conf, "earlier")
	first := objects()
	makeKeyOnToken(t, conf, "ofroot")
	all := objects()
	give(t, base, stranger)
	for _, file := range all {
		if slices.Contains(first, file) {
			continue
		}
		if err := os.Chown(file, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	return conf
}

// makeKeyOnToken makes a key as the server of a configuration folder does.
func makeKeyOnToken(t *testing.T, conf, name string) {
	t.Helper()
	svc, err := kms.Open(t.Context(), conf, "claviger kms", hsm.Serve, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	makeKey(t, svc.Primary, newKey(name, ""))
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
}

// TestReadOnlyToken: the unit has made the file system of a token read-only. The message names the token's folder and
// the fault, and not the folder of another user's token beside it.
func TestReadOnlyToken(t *testing.T) {
	base, program := programOf(t, "mount")
	folders := func() (list []string) {
		list, _ = filepath.Glob(base + "/token/tokens/*")
		return list
	}
	if _, err := softhsm.Create(filepath.Join(base, "token"), "other"); err != nil {
		t.Fatal(err)
	}
	others := folders()[0]
	token, err := softhsm.Create(filepath.Join(base, "token"), "kms")
	if err != nil {
		t.Fatal(err)
	}
	var own string
	for _, f := range folders() {
		if f != others {
			own = f
		}
	}
	give(t, base, stranger)
	give(t, others, 0)
	run := func(prepare, label string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		script := prepare + ` exec setpriv --reuid 65534 --regid 65534 --clear-groups "$PROGRAM" hsm ` +
			`init --module "$MODULE" --token ` + label + ` --pin-file "$PIN" ` + base + "/new.keystore"
		cmd := exec.CommandContext(ctx, "unshare", "-m", "sh", "-c", script) //nolint:gosec // a constant script
		cmd.Dir = base
		cmd.Env = append(append(os.Environ(), token.Env...), "HOME="+base, "PROGRAM="+program, "MODULE="+token.Module,
			"PIN="+token.PINFile)
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), "unshare: ") || strings.Contains(string(out), "mount: ") {
			t.Skip("this machine lets no file system be mounted: ", string(out))
		}
		if err == nil {
			t.Fatalf("it succeeded:\n%s", out)
		}
		return string(out)
	}
	tokens := base + "/token/tokens"
	text := run("mount --bind "+tokens+" "+tokens+" && mount -o remount,ro,bind "+tokens+" || exit 1;", "kms")
	if !strings.Contains(text, own+": read-only file system") || !strings.Contains(text, "ReadWritePaths="+tokens) ||
		strings.Contains(text, others) {
		t.Errorf("read-only, it says:\n%s", text)
	}
	text = run("", "keyhsm")
	if !strings.Contains(text, others+" (of root:root, mode 0700)") ||
		!strings.Contains(text, "or it was not made yet") || !strings.Contains(text, `--label keyhsm`) {
		t.Errorf("a token that does not exist, it says:\n%s", text)
	}
}
