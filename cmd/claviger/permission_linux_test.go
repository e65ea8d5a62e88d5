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
	"claviger/kms/kmstest"
)

// permissionCase is a case of TestNotPermitted.
type permissionCase struct {
	what     string
	provider string            // "" is the token's
	props    string            // more properties of kms-site.xml
	files    map[string]string // more files in the configuration folder
	shut     []string          // files that only root can read; the message names the first
	args     []string          // nil starts the server
}

// permissionTest is the state of TestNotPermitted.
type permissionTest struct {
	base, program, conf string
	token               softhsm.Token
	tokenFiles          []string // folders of the token
}

// daemonUser is the uid of daemon. The test cannot use the user nobody: claviger advises no command that
// gives this user a right to a file.
const daemonUser = 1

// TestNotPermitted runs the program as a user who cannot read one of its files. The message names the file and the
// user. It never says that something is missing, or that the user should make a new one.
func TestNotPermitted(t *testing.T) {
	base, program := programOf(t, "run a program as another user")
	token, err := softhsm.Create(filepath.Join(base, "token"), "kms")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(base + "/token/tokens/*")
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	p := &permissionTest{base, program, filepath.Join(base, "conf"), token, files}
	for _, c := range p.cases() {
		t.Run(c.what, func(t *testing.T) {
			p.prepare(t, c)
			p.run(t, c)
		})
	}
}

func (p *permissionTest) file(name string) string { return filepath.Join(p.conf, name) }

func (p *permissionTest) cases() []permissionCase {
	const jceks = "jceks://file@"
	return []permissionCase{
		{what: "the token's folder", shut: []string{p.base + "/token/tokens"}},
		{what: "the token's folder, at init", shut: []string{p.base + "/token/tokens"},
			args: []string{"hsm", "init", "--module", p.token.Module, "--token", "kms", "--pin-file", p.token.PINFile,
				p.file("new.keystore")}},
		{what: "the token's files", shut: p.tokenFiles},
		{what: "the token's files, at init", shut: p.tokenFiles,
			args: []string{"hsm", "init", "--module", p.token.Module, "--token", "kms", "--pin-file", p.token.PINFile,
				p.file("new.keystore")}},
		{what: "SoftHSM's settings", shut: []string{p.base + "/token/softhsm2.conf"}},
		{what: "a PIN", shut: []string{p.token.PINFile}},
		{what: "the file that names the token", shut: []string{p.file("luna.keystore")}},
		{what: "the metastore", files: map[string]string{"claviger.db": ""}, shut: []string{p.file("claviger.db")}},
		{what: "the metastore, read", files: map[string]string{"claviger.db": ""},
			shut: []string{p.file("claviger.db")}, args: []string{"hsm", "list", "--conf", p.conf}},
		{what: "a keystore", provider: jceks + p.file("kms.keystore"), files: map[string]string{"kms.keystore": ""},
			shut: []string{p.file("kms.keystore")}},
		{what: "the rules", files: map[string]string{"kms-acls.xml": "<configuration/>"},
			shut: []string{p.file("kms-acls.xml")}},
		{what: "the rules, checked", files: map[string]string{"kms-acls.xml": "<configuration/>"},
			shut: []string{p.file("kms-acls.xml")}, args: []string{"acl", "check", "--conf", p.conf}},
		{what: "the properties", shut: []string{p.file("kms-site.xml")}},
		{what: "the folder of the configuration", shut: []string{p.conf}},
		{what: "kts-site.xml", provider: "keytrustee://file@" + p.conf + "/keytrustee/",
			files: map[string]string{"kts-site.xml": "<configuration/>"}, shut: []string{p.file("kts-site.xml")}},
		{what: "a keytab", props: property("hadoop.kms.authentication.type", "kerberos") +
			property("hadoop.kms.authentication.kerberos.keytab", p.file("http.keytab")) +
			property("hadoop.kms.authentication.kerberos.principal", "HTTP/h@EXAMPLE.COM"),
			files: map[string]string{"http.keytab": "\x05\x02"}, shut: []string{p.file("http.keytab")}},
		{what: "a secret of cookies", props: property("hadoop.kms.authentication.signer.secret.provider", "file") +
			property("hadoop.kms.authentication.signature.secret.file", p.file("signature")),
			files: map[string]string{"signature": "secret"}, shut: []string{p.file("signature")}},
	}
}

// prepare writes the configuration of a case, and takes away the rights.
func (p *permissionTest) prepare(t *testing.T, c permissionCase) {
	t.Helper()
	store, storeErr := os.ReadFile(p.file("claviger.db"))
	if err := os.RemoveAll(p.conf); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(p.conf, 0o700); err != nil {
		t.Fatal(err)
	}
	if storeErr == nil { // an earlier case may have bound the token to this store
		kmstest.WriteFile(t, p.file("claviger.db"), string(store))
	}
	if c.provider == "" {
		c.provider = "cloudera.hsmkp://file@" + p.file("luna.keystore")
		kmstest.WriteFile(t, p.file("luna.keystore"),
			"module = "+p.token.Module+"\ntoken = kms\npin-file = "+p.token.PINFile+"\nprofile = softhsm\n")
	}
	kmstest.WriteFile(t, p.file("kms-site.xml"), "<configuration>\n"+
		property("hadoop.kms.key.provider.uri", c.provider)+
		property("claviger.metastore.uri", "sqlite://"+p.file("claviger.db"))+c.props+"</configuration>\n")
	for name, text := range c.files {
		kmstest.WriteFile(t, p.file(name), text)
	}
	give(t, p.base, daemonUser)
	for _, file := range c.shut {
		if err := os.Chown(file, 0, 0); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, info.Mode().Perm()&^0o077); err != nil {
			t.Fatal(err)
		}
	}
}

// run runs the program as daemon, and checks its message.
func (p *permissionTest) run(t *testing.T, c permissionCase) {
	t.Helper()
	args := c.args
	if args == nil {
		args = []string{"kms", "--conf", p.conf, "--http-port", "0"}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.program, args...)
	cmd.Dir = p.base
	cmd.Env = append(append(os.Environ(), p.token.Env...), "HOME="+p.base)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: daemonUser, Gid: daemonUser}}
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
	// The last one is a part of the advised chown.
	for _, want := range []string{c.shut[0], "permission denied", "daemon", ", mode 0", "daemon " + p.base} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	for _, wrong := range []string{"initialise one", "initialise it", "does not exist", "there is no",
		"does not exist", "hsm init"} {
		if strings.Contains(text, wrong) {
			t.Errorf("it says %q:\n%s", wrong, text)
		}
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
