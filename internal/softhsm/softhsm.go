// Package softhsm makes SoftHSM 2 tokens, for the demo and for tests. A token is a folder of files. The
// configuration file that SOFTHSM2_CONF names has the path of the folder of the tokens. A process reads it when it
// initialises the library.
package softhsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// modulePaths are the places where distributions put the library.
var modulePaths = []string{
	"/usr/lib/softhsm/libsofthsm2.so",
	"/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib64/pkcs11/libsofthsm2.so",
	"/usr/lib64/softhsm/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so",
	"/opt/homebrew/lib/softhsm/libsofthsm2.so",
}

// utilTimeout bounds one call of softhsm2-util.
const utilTimeout = 30 * time.Second

// pin is the PIN of the user and of the security officer. It is not secret, because tokens are made in scratch folders.
const pin = "12345678"

// Token describes a token that Create has made.
type Token struct {
	Module  string   // path of the library
	Label   string   // label of the token
	Serial  string   // serial number of the token, 16 hexadecimal digits
	PINFile string   // file with the user's PIN, mode 0600
	Env     []string // environment variables that a process needs to use the token
}

// Module returns the path of the library. SOFTHSM2_MODULE can set another path.
func Module() (string, error) {
	if m := os.Getenv("SOFTHSM2_MODULE"); m != "" {
		if _, err := os.Stat(m); err != nil {
			return "", fmt.Errorf("SOFTHSM2_MODULE: %w", err)
		}
		return m, nil
	}
	for _, m := range modulePaths {
		if _, err := os.Stat(m); err == nil {
			return m, nil
		}
	}
	return "",
		errors.New("SoftHSM 2 is not installed: apt-get install softhsm2, or set SOFTHSM2_MODULE " +
			"to the path of libsofthsm2.so")
}

// Create makes a token in the folder dir. If the folder is missing it makes the folder. One folder may hold several
// tokens. Those with one label differ by their serial numbers, and share the PIN file.
func Create(dir, label string) (Token, error) {
	module, err := Module()
	if err != nil {
		return Token{}, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return Token{}, err
	}
	tokens := filepath.Join(dir, "tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return Token{}, err
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(conf,
		[]byte("directories.tokendir = "+tokens+"\nobjectstore.backend = file\nlog.level = ERROR\n"),
		0o600); err != nil {
		return Token{}, err
	}
	t := Token{Module: module, Label: label, PINFile: filepath.Join(dir, label+".pin"),
		Env: []string{"SOFTHSM2_CONF=" + conf}}
	if err := os.WriteFile(t.PINFile, []byte(pin+"\n"), 0o600); err != nil {
		return Token{}, err
	}
	before, err := t.util("--show-slots")
	if err != nil {
		return Token{}, err
	}
	if _, err := t.util("--init-token", "--free", "--label", label, "--so-pin", pin, "--pin", pin); err != nil {
		return Token{}, err
	}
	after, err := t.util("--show-slots")
	if err != nil {
		return Token{}, err
	}
	for _, m := range serialNumber.FindAllStringSubmatch(after, -1) {
		if !strings.Contains(before, m[1]) {
			t.Serial = m[1]
		}
	}
	if t.Serial == "" {
		return Token{}, fmt.Errorf("softhsm2-util made token %q and does not show it", label)
	}
	return t, nil
}

// Wipe initialises the token again with SoftHSM's own tool, as an operator may do beside a running server. Its objects
// are destroyed; its serial number and PIN stay.
func (t Token) Wipe() error {
	_, err := t.util("--init-token", "--serial", t.Serial, "--label", t.Label, "--so-pin", pin, "--pin", pin)
	return err
}

// Clone makes a second token with the same objects and the same PIN, as an HSM's own tools do. It copies the token's
// files, and changes label and serial number in the copy. No process may have the token open.
func (t Token) Clone(label string) (Token, error) {
	const labelSize = 32 // padded with spaces, as in CK_TOKEN_INFO
	pad := func(s string) []byte { return fmt.Appendf(nil, "%-*s", labelSize, s) }
	serial := []byte(t.Serial)
	last := len(serial) - 1 // the number of the slot is made of the last digits
	if serial[last] == '0' {
		serial[last] = '1'
	} else {
		serial[last] = '0'
	}
	tokens := filepath.Join(filepath.Dir(t.PINFile), "tokens")
	folders, err := os.ReadDir(tokens)
	if err != nil {
		return Token{}, err
	}
	for _, f := range folders {
		from := filepath.Join(tokens, f.Name())
		data, err := os.ReadFile(filepath.Join(from, "token.object"))
		if err != nil {
			return Token{}, err
		}
		if !bytes.Contains(data, []byte(t.Serial)) || !bytes.Contains(data, pad(t.Label)) {
			continue
		}
		to := filepath.Join(tokens, label)
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			return Token{}, err
		}
		data = bytes.Replace(data, []byte(t.Serial), serial, 1)
		data = bytes.Replace(data, pad(t.Label), pad(label), 1)
		if err := os.WriteFile(filepath.Join(to, "token.object"), data, 0o600); err != nil {
			return Token{}, err
		}
		clone := t
		clone.Label, clone.Serial = label, string(serial)
		return clone, nil
	}
	return Token{}, fmt.Errorf("no token in %s has the label %q and the serial number %s", tokens, t.Label, t.Serial)
}

// util runs softhsm2-util on the token's folder.
func (t Token) util(args ...string) (string, error) {
	util, err := exec.LookPath("softhsm2-util")
	if err != nil {
		return "", fmt.Errorf("softhsm2-util is not installed: apt-get install softhsm2 (%w)", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), utilTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, util, append([]string{"--module", t.Module}, args...)...)
	cmd.Env = append(os.Environ(), t.Env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("softhsm2-util %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// serialNumber matches a line of softhsm2-util --show-slots.
var serialNumber = regexp.MustCompile(`Serial number:\s+([0-9a-f]{16})`)
