package pkcs11

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
)

var update = flag.Bool("update", false, "write the golden files")

var serial = regexp.MustCompile(`serial [0-9a-f]{16}, slot \d+`)

// golden holds a message that a user sees. What differs from run to run is
// replaced.
func golden(t *testing.T, name string, err error, tok softhsm.Token) {
	t.Helper()
	if err == nil {
		t.Fatalf("%s: no error", name)
	}
	got := strings.ReplaceAll(err.Error(), tok.Module, "MODULE") + "\n"
	got = serial.ReplaceAllString(got, "serial SERIAL, slot SLOT")
	if i := strings.Index(got, os.TempDir()); i >= 0 {
		got = regexp.MustCompile(regexp.QuoteMeta(os.TempDir())+`/\S*/`).ReplaceAllString(got, "DIR/")
	}
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, rerr := os.ReadFile(path)
	if rerr != nil || got != string(want) {
		t.Errorf("%s says\n%swant\n%s%v", name, got, want, rerr)
	}
}

func TestMessages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "softhsm")
	tok := softhsmtest.In(t, dir, "one")
	softhsmtest.In(t, dir, "twin")
	softhsmtest.In(t, dir, "twin")
	text := filepath.Join(t.TempDir(), "no-library.so")
	if err := os.WriteFile(text, []byte("not a library"), 0o600); err != nil {
		t.Fatal(err)
	}
	blank := uint(3) // SoftHSM's free slot comes after the tokens
	for name, change := range map[string]func(*Config){
		"module-missing":      func(c *Config) { c.Module = "/nowhere/libCryptoki2_64.so" },
		"module-no-library":   func(c *Config) { c.Module = text },
		"token-missing":       func(c *Config) { c.TokenLabel = "three" },
		"token-twice":         func(c *Config) { c.TokenLabel = "twin" },
		"token-uninitialised": func(c *Config) { c.TokenLabel, c.Slot = "", &blank },
		"pin-file-missing":    func(c *Config) { c.PIN = pinFile(filepath.Join(dir, "nowhere.pin")) },
	} {
		t.Run(name, func(t *testing.T) {
			c := config(tok)
			change(&c)
			got, err := Open(t.Context(), c)
			if err == nil {
				_ = got.Close()
			}
			golden(t, name, err, tok)
		})
	}
}
