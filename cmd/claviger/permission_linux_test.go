package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger/internal/softhsm"
)

// TestNotPermitted runs the program as a user who may not read one of its files:
// it names the file and the user, and never says that something is missing or that
// a new one be made.
func TestNotPermitted(t *testing.T) {
	const stranger = 1 // daemon: nobody is given no right to a file
	base, program := programOf(t, "run a program as another user")
	allow := func(mode os.FileMode, paths ...string) {
		t.Helper()
		for _, p := range paths {
			if err := os.Chmod(p, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	token, err := softhsm.Create(filepath.Join(base, "token"), "kms")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(base + "/token/tokens/*")
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	conf := filepath.Join(base, "conf")
	file := func(name string) string { return filepath.Join(conf, name) }
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const jceks = "jceks://file@"
	for _, c := range []struct {
		what     string
		provider string            // else the token's
		props    string            // of kms-site.xml
		files    map[string]string // beside it
		shut     []string          // what root alone may read; the first is named
		args     []string          // else the server
	}{
		{what: "the token's folder", shut: []string{base + "/token/tokens"}},
		{what: "the token's folder, at init", shut: []string{base + "/token/tokens"},
			args: []string{"hsm", "init", "--module", token.Module, "--token", "kms", "--pin-file", token.PINFile,
				file("new.keystore")}},
		{what: "the token's files", shut: files},
		{what: "the token's files, at init", shut: files,
			args: []string{"hsm", "init", "--module", token.Module, "--token", "kms", "--pin-file", token.PINFile,
				file("new.keystore")}},
		{what: "SoftHSM's settings", shut: []string{base + "/token/softhsm2.conf"}},
		{what: "a PIN", shut: []string{token.PINFile}},
		{what: "the file that names the token", shut: []string{file("luna.keystore")}},
		{what: "the metastore", files: map[string]string{"claviger.db": ""}, shut: []string{file("claviger.db")}},
		{what: "the metastore, read", files: map[string]string{"claviger.db": ""}, shut: []string{file("claviger.db")},
			args: []string{"hsm", "list", "--conf", conf}},
		{what: "a keystore", provider: jceks + file("kms.keystore"), files: map[string]string{"kms.keystore": ""},
			shut: []string{file("kms.keystore")}},
		{what: "the rules", files: map[string]string{"kms-acls.xml": "<configuration/>"},
			shut: []string{file("kms-acls.xml")}},
		{what: "the rules, checked", files: map[string]string{"kms-acls.xml": "<configuration/>"},
			shut: []string{file("kms-acls.xml")}, args: []string{"acl", "check", "--conf", conf}},
		{what: "the properties", shut: []string{file("kms-site.xml")}},
		{what: "the folder of the configuration", shut: []string{conf}},
		{what: "kts-site.xml", provider: "keytrustee://file@" + conf + "/keytrustee/",
			files: map[string]string{"kts-site.xml": "<configuration/>"}, shut: []string{file("kts-site.xml")}},
		{what: "a keytab", props: property("hadoop.kms.authentication.type", "kerberos") +
			property("hadoop.kms.authentication.kerberos.keytab", file("http.keytab")) +
			property("hadoop.kms.authentication.kerberos.principal", "HTTP/h@EXAMPLE.COM"),
			files: map[string]string{"http.keytab": "\x05\x02"}, shut: []string{file("http.keytab")}},
		{what: "a secret of cookies", props: property("hadoop.kms.authentication.signer.secret.provider", "file") +
			property("hadoop.kms.authentication.signature.secret.file", file("signature")),
			files: map[string]string{"signature": "secret"}, shut: []string{file("signature")}},
	} {
		t.Run(c.what, func(t *testing.T) {
			store, storeErr := os.ReadFile(file("claviger.db"))
			if err := os.RemoveAll(conf); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(conf, 0o700); err != nil {
				t.Fatal(err)
			}
			if storeErr == nil { // a case before may have bound the token to it
				write("claviger.db", string(store))
			}
			if c.provider == "" {
				c.provider = "cloudera.hsmkp://file@" + file("luna.keystore")
				write("luna.keystore", "module = "+token.Module+"\ntoken = kms\npin-file = "+token.PINFile+
					"\nprofile = softhsm\n")
			}
			write("kms-site.xml", "<configuration>\n"+property("hadoop.kms.key.provider.uri", c.provider)+
				property("claviger.metastore.uri", "sqlite://"+file("claviger.db"))+c.props+"</configuration>\n")
			for name, text := range c.files {
				write(name, text)
			}
			give(t, base, stranger)
			for _, p := range c.shut {
				if err := os.Chown(p, 0, 0); err != nil {
					t.Fatal(err)
				}
				info, err := os.Stat(p)
				if err != nil {
					t.Fatal(err)
				}
				mode := info.Mode().Perm() &^ 0o077
				allow(mode, p)
			}
			args := c.args
			if args == nil {
				args = []string{"kms", "--conf", conf, "--http-port", "0"}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, program, args...)
			cmd.Dir = base
			cmd.Env = append(os.Environ(), token.Env...)
			cmd.Env = append(cmd.Env, "HOME="+base)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("it succeeded:\n%s", out)
			}
			var lines []string // without the log
			for line := range strings.Lines(string(out)) {
				if !strings.HasPrefix(line, "time=") {
					lines = append(lines, line)
				}
			}
			text := strings.Join(lines, "")
			// the last is of a chown
			for _, want := range []string{c.shut[0], "permission denied", "daemon", ", mode 0", "daemon " + base} {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in:\n%s", want, text)
				}
			}
			for _, wrong := range []string{"initialise one", "initialise it", "is not there", "there is no",
				"does not exist", "hsm init"} {
				if strings.Contains(text, wrong) {
					t.Errorf("it says %q:\n%s", wrong, text)
				}
			}
		})
	}
}

func property(name, value string) string {
	return "<property><name>" + name + "</name><value>" + value + "</value></property>\n"
}

func copyFile(t *testing.T, to, from string, mode os.FileMode) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, mode)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
