package trustee

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// gnupg runs a GnuPG program with its own home folder.
type gnupg struct {
	t       *testing.T
	program string
	home    string
}

func newGnuPG(t *testing.T, program string) *gnupg {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("CLAVIGER_REQUIRE_GPG") == "1" {
			t.Fatalf("%s is missing: run `make setup`, or install it (on Debian and Ubuntu: apt-get install gnupg "+
				"gnupg1)", program)
		}
		t.Skipf("%s is missing; `make test` runs this test", program)
	}
	// Paths of the agent's sockets may have 107 bytes.
	home, err := os.MkdirTemp("", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	g := &gnupg{t, program, home}
	t.Cleanup(func() {
		if program == "gpg" {
			_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run() // no agent may run
		}
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	return g
}

// run returns the standard output of the program.
func (g *gnupg) run(stdin []byte, args ...string) []byte {
	g.t.Helper()
	cmd := exec.CommandContext(g.t.Context(), g.program, append([]string{"--homedir", g.home, "--batch", "--no-tty",
		"--yes"}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		g.t.Fatalf("%s %s: %v\n%s", g.program, strings.Join(args, " "), err, &stderr)
	}
	return out
}

// both runs a test with GnuPG 1, whose rings have our format, and with GnuPG 2.
func both(t *testing.T, f func(t *testing.T, g *gnupg)) {
	for _, program := range []string{"gpg1", "gpg"} {
		t.Run(program, func(t *testing.T) { f(t, newGnuPG(t, program)) })
	}
}

// TestGnuPGReadsOurs: GnuPG reads our rings, messages and signatures.
func TestGnuPGReadsOurs(t *testing.T) {
	both(t, func(t *testing.T, g *gnupg) {
		f, path := folder(t)
		for _, name := range []string{PublicRing, PrivateRing} {
			data, err := os.ReadFile(filepath.Join(path, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(g.home, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		id := f.Identity
		for _, list := range []string{"--list-keys", "--list-secret-keys"} {
			if out := string(g.run(nil, "--with-colons", "--fingerprint", list)); !strings.Contains(out,
				id.Fingerprint()) || !strings.Contains(out, "keytrustee (client) <kms@a.example.com>") {
				t.Errorf("%s: %s", list, out)
			}
		}
		now := time.Now()
		sealed, err := id.Seal([]byte("of an EZ key"), now)
		if err != nil {
			t.Fatal(err)
		}
		if out := g.run(sealed, "--decrypt"); string(out) != "of an EZ key" {
			t.Errorf("it decrypts %q", out)
		}
		signature, err := id.sign([]byte("a request"), now)
		if err != nil {
			t.Fatal(err)
		}
		text, sig := filepath.Join(g.home, "text"), filepath.Join(g.home, "text.sig")
		for file, data := range map[string][]byte{text: []byte("a request"), sig: signature} {
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		g.run(nil, "--verify", sig, text)
	})
}

// TestWeReadGnuPGs: LoadFolder accepts an identity that GnuPG made, in the rings of GnuPG.
func TestWeReadGnuPGs(t *testing.T) {
	both(t, func(t *testing.T, g *gnupg) {
		protection := "%no-protection\n" // the default of GnuPG 1
		if g.program == "gpg1" {
			protection = ""
		}
		g.run([]byte(protection+`Key-Type: RSA
Key-Length: 2048
Subkey-Type: RSA
Subkey-Length: 2048
Name-Real: keytrustee
Name-Comment: client
Name-Email: kms@h.example.com
%commit
`), "--gen-key")
		var fingerprint string
		for line := range strings.Lines(string(g.run(nil, "--with-colons", "--fingerprint", "--list-keys"))) {
			if f := strings.Split(line, ":"); f[0] == "fpr" && fingerprint == "" {
				fingerprint = f[9]
			}
		}
		path := filepath.Join(t.TempDir(), ".keytrustee")
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{
			ConfFile:    fmt.Appendf(nil, `{"LOCAL_FINGERPRINT": "2048R/%s"}`, fingerprint),
			PublicRing:  g.run(nil, "--export"),
			PrivateRing: g.run(nil, "--export-secret-keys"),
		} {
			if g.program == "gpg1" && name != ConfFile { // use its own files
				var err error
				if data, err = os.ReadFile(filepath.Join(g.home, name)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(path, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f, err := LoadFolder(path)
		if err != nil {
			t.Fatal(err)
		}
		sealed := g.run([]byte("of an EZ key"), "--trust-model", "always", "--encrypt", "--sign", "--recipient",
			fingerprint)
		if out, err := f.Identity.Open(sealed, time.Now().Add(time.Minute)); err != nil ||
			string(out) != "of an EZ key" {
			t.Errorf("we open %q, %v", out, err)
		}
		if out, err := f.Identity.Open(g.run([]byte("x"), "--trust-model", "always", "--encrypt", "--recipient",
			fingerprint), time.Now().Add(time.Minute)); err == nil {
			t.Errorf("a message without a signature is %q", out)
		}
	})
}

// TestLockedRing: the error about a key with a passphrase names the command that removes the passphrase.
func TestLockedRing(t *testing.T) {
	g := newGnuPG(t, "gpg1")
	g.run([]byte("Key-Type: RSA\nKey-Length: 2048\nName-Real: keytrustee\nPassphrase: walrus\n%commit\n"), "--gen-key")
	path := filepath.Join(t.TempDir(), ".keytrustee")
	if err := os.Rename(g.home, path); err != nil {
		t.Fatal(err)
	}
	g.home = path
	out := string(g.run(nil, "--with-colons", "--fingerprint", "--list-keys"))
	_, rest, _ := strings.Cut(out, "\nfpr:::::::::")
	fingerprint, _, _ := strings.Cut(rest, ":")
	if err := os.WriteFile(filepath.Join(path, ConfFile), fmt.Appendf(nil, `{"LOCAL_FINGERPRINT": "2048R/%s"}`,
		fingerprint), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadFolder(path); err == nil || !strings.Contains(err.Error(), "locked by a passphrase") ||
		!strings.Contains(err.Error(), "--edit-key "+fingerprint+" passwd") {
		t.Errorf("%q: %v", fingerprint, err)
	}
}
