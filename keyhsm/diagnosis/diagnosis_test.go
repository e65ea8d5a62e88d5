package diagnosis

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/doctor"
	"claviger/doctor/doctortest"
	"claviger/internal/golden"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/keyhsm"
	"claviger/keyhsm/host"
	"claviger/pkcs11"
	"claviger/pkcs11/worker"
)

func TestMain(m *testing.M) {
	worker.Main(os.Args)
	os.Exit(m.Run())
}

// changing are the parts of a text that differ in each run.
var changing = []golden.Mask{{`/\S*/softhsm/`, "TOKENS/"}, {`(serial|slot) "?[0-9a-f]+"?`, "$1 ID"},
	{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`, "AT"}, {`until \d{4}-\d\d-\d\d`, "until DAY"}, {`\b[0-9a-f]{32}\b`, "KEYID"},
	{`with SHA-\d+`, "with SHA-N"}}

// TestFailures provokes each finding about a Key HSM, and compares the whole text with testdata.
func TestFailures(t *testing.T) {
	tok := softhsmtest.New(t)
	const other = "00112233445566778899aabbccddeeff"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	for _, f := range []struct {
		name, id string
		provoke  func(dir string, set *keyhsm.Settings, o *doctor.Options)
	}{
		{"settings that cannot be read", "D-keyhsm-settings", func(dir string, _ *keyhsm.Settings, _ *doctor.Options) {
			must(os.WriteFile(filepath.Join(dir, keyhsm.SettingsFile), []byte("hsm.bits = many\n"), 0o600))
		}},
		{"a private key that everybody reads", "D-keyhsm-secrets", func(dir string, _ *keyhsm.Settings,
			_ *doctor.Options) {
			must(os.Chmod(filepath.Join(dir, keyhsm.PrivateKeyFile), 0o644)) //nolint:gosec // the fault of the test
		}},
		{"no such token", "D-keyhsm-token", func(dir string, set *keyhsm.Settings, _ *doctor.Options) {
			set.Token = "other"
			must(errors.Join(os.Remove(filepath.Join(dir, keyhsm.SettingsFile)), keyhsm.WriteSettings(dir, *set)))
		}},
		{"a pair that is not on the token", "D-keyhsm-pair", func(dir string, set *keyhsm.Settings, _ *doctor.Options) {
			set.KeyID = other
			must(errors.Join(os.Remove(filepath.Join(dir, keyhsm.SettingsFile)), keyhsm.WriteSettings(dir, *set)))
		}},
		{"no trusted certificate", "D-keyhsm-certificates", func(string, *keyhsm.Settings, *doctor.Options) {}},
		{"no such folder of a trustee", "D-keyhsm-deposits", func(_ string, _ *keyhsm.Settings, o *doctor.Options) {
			o.Trustee = "/nowhere/.keytrustee"
		}},
	} {
		setup := host.Setup{Folder: filepath.Join(t.TempDir(), "hsm"), Bits: 2048, Hosts: []string{"127.0.0.1"},
			Settings: keyhsm.Settings{HSM: pkcs11.SoftHSM, Module: tok.Module, Token: tok.Label, PINFile: tok.PINFile,
				KeyLabel: "claviger-keyhsm", Listen: "127.0.0.1:0"}}
		must(setup.Complete())
		must(setup.Run(t.Context(), func(string) {}))
		o := doctor.Options{Conf: setup.Folder, Only: []string{f.id}}
		f.provoke(setup.Folder, &setup.Settings, &o)
		text, err := doctortest.Run(t, o, Role())
		if err == nil {
			t.Errorf("%s: no check failed", f.name)
		}
		_, text, _ = strings.Cut(text, "\n\n")
		text = strings.ReplaceAll(strings.ReplaceAll(text, setup.Folder, "DIR"), tok.Module, "MODULE")
		fmt.Fprintf(&b, "# %s\n%s\n", f.name, golden.Masked(text, changing))
	}
	golden.Compare(t, "testdata/keyhsm.golden", b.String())
}
