package pkcs11

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/golden"
	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
)

var (
	serial = regexp.MustCompile(`serial [0-9a-f]{16}, slot \d+`)
	blanks = regexp.MustCompile(`\(empty: slot [\d, ]+\)`)
)

// wantMessage compares a message with its golden file. Parts that differ from run to run are replaced.
func wantMessage(t *testing.T, name string, err error, tok softhsm.Token) {
	t.Helper()
	if err == nil {
		t.Fatalf("%s: no error", name)
	}
	got := strings.ReplaceAll(err.Error(), tok.Module, "MODULE") + "\n"
	got = serial.ReplaceAllString(got, "serial SERIAL, slot SLOT")
	got = blanks.ReplaceAllString(got, "(empty: slot SLOTS)")
	if i := strings.Index(got, os.TempDir()); i >= 0 {
		got = regexp.MustCompile(regexp.QuoteMeta(os.TempDir())+`/\S*/`).ReplaceAllString(got, "DIR/")
	}
	golden.Compare(t, "testdata/"+name+".golden", got)
}

// flagged is a library whose tokens have other flags, or that shows no token.
type flagged struct {
	Boundary
	set, clear uint
	empty      bool
}

func (f flagged) GetSlotList(present bool) ([]uint, error) {
	if f.empty {
		return nil, nil
	}
	return f.Boundary.GetSlotList(present)
}

func (f flagged) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	info, err := f.Boundary.GetTokenInfo(slot)
	info.Flags = info.Flags&^f.clear | f.set
	return info, err
}

// TestMessages: for each wrong setting, the message names the setting and the cure.
func TestMessages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "softhsm")
	tok := softhsmtest.NewIn(t, dir, "one")
	softhsmtest.NewIn(t, dir, "twin")
	softhsmtest.NewIn(t, dir, "twin")
	text := write(t, "no-library.so", "not a library", 0o600)
	other := filepath.Join(t.TempDir(), "other.so")
	// #nosec G204 -- a constant command; cgo needs the compiler anyway
	if out, err := exec.CommandContext(t.Context(), "cc", "-shared", "-o", other, "-x", "c",
		os.DevNull).CombinedOutput(); err != nil {
		t.Fatalf("cc: %v: %s", err, out)
	}
	blank := uint(3) // the empty slot of SoftHSM, after the tokens
	as := func(f flagged) func(*Config) {
		return func(c *Config) {
			c.Wrap = func(b Boundary) Boundary {
				f.Boundary = b
				return f
			}
		}
	}
	for name, change := range map[string]func(*Config){
		"module-missing":       func(c *Config) { c.Module = "/nowhere/libCryptoki2_64.so" },
		"module-no-library":    func(c *Config) { c.Module = text },
		"module-other-library": func(c *Config) { c.Module = other },
		"token-none":           as(flagged{empty: true}),
		"token-all-blank":      as(flagged{clear: flagTokenInitialized}),
		"token-missing":        func(c *Config) { c.TokenLabel = "three" },
		"token-twice":          func(c *Config) { c.TokenLabel = "twin" },
		"token-uninitialised":  func(c *Config) { c.TokenLabel, c.Slot = "", &blank },
		"pin-locked":           as(flagged{set: flagPINLocked}),
		"pin-last-try":         as(flagged{set: flagPINFinalTry}),
		"pin-unset":            as(flagged{clear: flagPINInitialized}),
		"pin-locked-unseen": func(c *Config) { // the token does not set the flag for a locked PIN
			m := new(Meter)
			m.Fail("Login", 1, p11.Error(p11.CKR_PIN_LOCKED))
			c.Wrap = m.Wrap
		},
		"pin-file-missing": func(c *Config) { c.PIN = pinFile(filepath.Join(dir, "nowhere.pin")) },
		"pin-file-open":    func(c *Config) { c.PIN = pinFile(write(t, "kms.pin", "12345678", 0o644)) },
		"pin-file-empty":   func(c *Config) { c.PIN = pinFile(write(t, "kms.pin", "\n", 0o600)) },
		"pin-file-lines":   func(c *Config) { c.PIN = pinFile(write(t, "kms.pin", "12345678\n\n", 0o600)) },
		"pin-file-long": func(c *Config) {
			c.PIN = pinFile(write(t, "kms.pin",
				strings.Repeat("1", maxFile+1), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := config(tok)
			change(&c)
			got, err := Open(t.Context(), c)
			if err == nil {
				_ = got.Close()
			}
			wantMessage(t, name, err, tok)
		})
	}
}

// TestKeystoreMessages compares the messages about keystore files.
func TestKeystoreMessages(t *testing.T) {
	for name, content := range map[string]string{
		"keystore-java":        "\xfe\xed\xfe\xed\x00\x00\x00\x02",
		"keystore-form":        "module /usr/lib/libCryptoki2_64.so\n",
		"keystore-pin-in-file": "module = /x.so\ntoken = kms\npin = 98765\n",
		"keystore-no-pin":      "module = /x.so\ntoken = kms\n",
		"keystore-profile":     "module = /x.so\ntoken = kms\npin-file = pin\nprofile = lunar\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := ReadKeystoreFile(write(t, "luna.keystore", content, 0o600))
			if err != nil && strings.Contains(err.Error(), "98765") {
				t.Error("the PIN is in the message")
			}
			wantMessage(t, name, err, softhsm.Token{Module: "none"})
		})
	}
	_, _, err := ReadKeystoreFile(filepath.Join(t.TempDir(), "luna.keystore"))
	wantMessage(t, "keystore-missing", err, softhsm.Token{Module: "none"})
}
