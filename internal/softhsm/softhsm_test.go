package softhsm_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"claviger/internal/softhsm"
)

// TestCreate: two tokens with the same label have different serial numbers.
func TestCreate(t *testing.T) {
	dir := t.TempDir()
	a, err := softhsm.Create(dir, "one")
	if err != nil {
		t.Fatal(err)
	}
	b, err := softhsm.Create(dir, "one")
	if err != nil {
		t.Fatal(err)
	}
	hex := regexp.MustCompile(`^[0-9a-f]{16}$`)
	if !hex.MatchString(a.Serial) || !hex.MatchString(b.Serial) || a.Serial == b.Serial {
		t.Errorf("serial numbers %q and %q", a.Serial, b.Serial)
	}
	if strings.Join(a.Env, " ") != strings.Join(b.Env, " ") {
		t.Errorf("two tokens of one folder need %v and %v", a.Env, b.Env)
	}
	fi, err := os.Stat(a.PINFile)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("PIN file: %v, %v", fi, err)
	}
}

// TestModuleFromEnvironment: SOFTHSM2_MODULE names the library, and must exist.
func TestModuleFromEnvironment(t *testing.T) {
	t.Setenv("SOFTHSM2_MODULE", "/nowhere/libsofthsm2.so")
	if _, err := softhsm.Module(); err == nil || !strings.Contains(err.Error(),
		"SOFTHSM2_MODULE: stat /nowhere/libsofthsm2.so") {
		t.Error(err)
	}
}
