package pkcs11

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

func write(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // the umask changes the mode that WriteFile gets
		t.Fatal(err)
	}
	return path
}

// TestKeystoreFile reads a file with blanks, a comment and the byte order mark of an editor.
func TestKeystoreFile(t *testing.T) {
	path := write(t, "luna.keystore", "\ufeff"+`module = /usr/safenet/lunaclient/lib/libCryptoki2_64.so

# the partition of the KMS
  serial=1238696044953
pin-file = luna.pin
profile = Luna
max-sessions = 30
worker = no
`, 0o600)
	c, warnings, err := ReadKeystoreFile(path)
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	pin := filepath.Join(filepath.Dir(path), "luna.pin") // a relative path is relative to the keystore file
	if c.Module != "/usr/safenet/lunaclient/lib/libCryptoki2_64.so" || c.Serial != "1238696044953" ||
		c.TokenLabel != "" || c.Slot != nil ||
		c.PINSource != "file "+pin || c.PINFile != pin || c.Profile != Luna || c.MaxSessions != 30 ||
		c.Worker != WorkerNo {
		t.Errorf("%+v", c)
	}
}

// TestKeystoreFileErrors: each error names the file, the line, the value and what to do.
func TestKeystoreFileErrors(t *testing.T) {
	const good = "module = /x.so\ntoken = kms\npin-file = /pin\n"
	for content, want := range map[string]string{
		"module\n": `:1: there is no '=' in this line; a keystore file has ` +
			`lines like "module = /path/of/library.so"; claviger hsm init writes one`,
		"\n# x\nmodule =\n":  `:3: module has no value; give it one or take the line out`,
		good + "token = x\n": `:4: token appears twice; keep one`,
		good + "libary = /x.so": `:4: "libary" is not known; known are module, token, ` +
			`serial, slot, pin-file, pin-env, credential, profile, max-sessions, worker, call-limit, standby`,
		good + "pin = 1234\n": `:4: a PIN must not be in this file; put it into a ` +
			`file of its own (mode 0400) and name that: pin-file = PATH`,
		good + "profile = lunar": `:4: unknown profile "lunar"; known ones: [luna ncipher ` +
			`softhsm cloudhsm generic]`,
		good + "max-sessions = 0": `:4: max-sessions has the value "0"; it must be a number ` +
			`from 1 to 4096`,
		good + "max-sessions = 4097": `:4: max-sessions has the value "4097"; it must be a number ` +
			`from 1 to 4096`,
		good + "max-sessions = ten": `:4: max-sessions has the value "ten"; it must be a number ` +
			`from 1 to 4096`,
		good + "worker = maybe": `:4: worker has the value "maybe"; it must be yes or no`,
		good + "call-limit = 25": `:4: call-limit has the value "25"; it must be a time from 1s to 10m, with its ` +
			`unit, such as 25s`,
		good + "call-limit = 999ms": `:4: call-limit has the value "999ms"; it must be a time from 1s to 10m, with ` +
			`its unit, such as 25s`,
		good + "call-limit = 601s": `:4: call-limit has the value "601s"; it must be a time from 1s to 10m, with its ` +
			`unit, such as 25s`,
		good + "call-limit = -25s": `:4: call-limit has the value "-25s"; it must be a time from 1s to 10m, with its ` +
			`unit, such as 25s`,
		good + "worker = no\ncall-limit = 30s": `: call-limit has no effect with worker = no, because a call in the ` +
			`server's own process cannot be ended; take out one of the two lines`,
		"slot = one\n": `:1: slot has the value "one"; it must be a slot number`,
		"token = kms\npin-file = /pin\n": `: module is missing: the path of the HSM's ` +
			`PKCS#11 library`,
		"module = x.so\ntoken = kms\npin-file = /pin\n": `: module has the value "x.so"; it must be an ` +
			`absolute path`,
		"module = /x.so\npin-file = /pin\n": `: the token must be named once, by one of token (its ` +
			`label), serial or slot`,
		good + "serial = 1\n": `: the token must be named once, by one of token (its ` +
			`label), serial or slot`,
		"module = /x.so\ntoken = kms\n": `: the place of the PIN must be named once, by one of ` +
			`pin-file, pin-env or credential`,
		good + "pin-env = PIN\n": `: the place of the PIN must be named once, by one of ` +
			`pin-file, pin-env or credential`,
		"\xfe\xed\xfe\xed\x00\x00\x00\x02": ` is not a keystore file of claviger (a Java keystore?); ` +
			`a keystore file has lines like "module = /path/of/library.so"; claviger hsm init writes one`,
		strings.Repeat("# a comment\n", maxFile/12) + good: ` is not a keystore file of claviger (a Java keystore?); ` +
			`a keystore file has lines like "module = /path/of/library.so"; claviger hsm init writes one`,
	} {
		path := write(t, "x.keystore", content, 0o640)
		_, _, err := ReadKeystoreFile(path)
		if err == nil || !strings.HasSuffix(err.Error(), path+want) {
			t.Errorf("%.60q:\n%v\nwant\n%s", content, err, path+want)
		}
		if err != nil && strings.Contains(err.Error(), "1234") {
			t.Errorf("the PIN is in %v", err)
		}
	}
}

// TestKeystoreFileMode: a file that other users may write is refused, since they could run code in the server.
func TestKeystoreFileMode(t *testing.T) {
	const good = "module = /x.so\ntoken = kms\npin-file = /pin\n"
	path := write(t, "x.keystore", good, 0o646)
	if _, _, err := ReadKeystoreFile(path); err == nil ||
		!strings.Contains(err.Error(), "may be written by everybody (mode 0646)") ||
		!strings.Contains(err.Error(), "cure: chmod o-w "+path) {
		t.Error(err)
	}
	_, warnings, err := ReadKeystoreFile(write(t, "x.keystore", good, 0o664))
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "may be written by its group (mode 0664)") {
		t.Error(warnings, err)
	}
}

// TestKeystoreFileUnread: a file that cannot be read is named with the reason.
func TestKeystoreFileUnread(t *testing.T) {
	dir := filepath.Dir(write(t, "file", "", 0o600))
	if err := os.Chmod(dir, 0o700); err != nil { // #nosec G302 -- a folder
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(write(t, "file", "", 0o600), "x.keystore")} {
		if _, _, err := ReadKeystoreFile(path); err == nil || !strings.HasPrefix(err.Error(), "keystore file: ") ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("keystore file: %v", err)
		}
		if pin, err := pinFile(path)(); err == nil || !strings.HasPrefix(err.Error(), "PIN file: ") ||
			!strings.Contains(err.Error(), path) || pin != nil {
			t.Errorf("PIN file: %s, %v", pin, err)
		}
	}
	noPIN := write(t, "x.keystore", "module = /x.so\ntoken = kms\ncredential = a/b\n", 0o600)
	if _, _, err := ReadKeystoreFile(noPIN); err == nil ||
		!strings.HasPrefix(err.Error(), "keystore file "+noPIN+": credential has the value") {
		t.Error(err)
	}
}

// TestCheckFileConfig: Check returns the error with which the file would not be written.
func TestCheckFileConfig(t *testing.T) {
	c := FileConfig{Module: "/x.so", Token: "t", PINFile: "/pin"}
	if err := c.Check("x.keystore"); err != nil {
		t.Error(err)
	}
	c.PINEnv = "PIN"
	if err := c.Check("x.keystore"); err == nil || !strings.Contains(err.Error(), "must be named once") {
		t.Error(err)
	}
	c = FileConfig{Module: "/x.so", Token: "t ", PINFile: "/pin"}
	if err := c.Check("x.keystore"); err == nil || !strings.HasPrefix(err.Error(), "keystore file x.keystore: token") {
		t.Error(err)
	}
	if err := CheckNew("/none"); err != nil {
		t.Error(err)
	}
}

// TestWriteKeystoreFile: a file that WriteKeystoreFile wrote is parsed to the same configuration. Only its owner can
// read it.
func TestWriteKeystoreFile(t *testing.T) {
	slot := uint(7)
	dir := t.TempDir()
	for name, c := range map[string]FileConfig{
		"label":      {Module: "/x.so", Token: "my token # 1 = one", PINFile: "/pin", Profile: NCipher},
		"serial":     {Module: "/x.so", Serial: "0123", PINEnv: "PIN", MaxSessions: 12},
		"slot":       {Module: "/x.so", Slot: &slot, Credential: "hsm-pin", Profile: Generic},
		"with space": {Module: "/a dir/x.so", Token: "t", PINFile: "pin"},
		"worker":     {Module: "/x.so", Token: "t", PINFile: "/pin", Worker: WorkerYes, CallLimit: 10 * time.Minute},
		"in process": {Module: "/x.so", Token: "t", PINFile: "/pin", Worker: WorkerNo},
		"limit":      {Module: "/x.so", Token: "t", PINFile: "/pin", CallLimit: time.Second},
	} {
		path := filepath.Join(dir, name)
		if err := WriteKeystoreFile(path, c); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseKeystore(path, data)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%s: read back as %+v, %v", name, got, err)
		}
		if err := WriteKeystoreFile(path, FileConfig{Module: "/y.so", Token: "t", PINFile: "/pin"}); err == nil ||
			!strings.Contains(err.Error(), "already exists and was not overwritten; move it away if it is no longer") {
			t.Errorf("%s: overwritten: %v", name, err)
		}
		if err := CheckNew(path); err == nil {
			t.Errorf("%s: CheckNew does not see the file", name)
		}
		if again, err := os.ReadFile(path); err != nil || string(again) != string(data) {
			t.Errorf("%s: changed: %q, %v", name, again, err)
		}
	}
	for _, c := range []FileConfig{
		{Module: "/x.so", Token: "t\nprofile = luna", PINFile: "/pin"}, // the file would have another content
		{Module: "/x.so", Token: " t", PINFile: "/pin"},
		{Module: "/x.so", Token: "t", PINFile: "/pin", MaxSessions: -1},
		{Module: "x.so", Token: "t", PINFile: "/pin"},
		{Module: "/x.so", Token: "t", Serial: "1", PINFile: "/pin"},
	} {
		path := filepath.Join(dir, "refused")
		if err := WriteKeystoreFile(path, c); err == nil {
			t.Errorf("written: %+v", c)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("there is a file: %v", err)
		}
	}
}

// TestPIN: the PIN from a file, an environment variable or a systemd credential, without the line end.
func TestPIN(t *testing.T) {
	t.Setenv("CLAVIGER_TEST_PIN", "in env")
	dir := filepath.Dir(write(t, "hsm-pin", "in credential\n", 0o400))
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	read := func(c FileConfig) (string, error) {
		c.Module, c.Token = "/x.so", "t"
		cfg, err := c.config("/etc/claviger")
		if err != nil {
			return "", err
		}
		pin, err := cfg.PIN()
		return string(pin), err
	}
	for _, c := range []struct {
		name string
		file FileConfig
		want string
	}{
		{"plain", FileConfig{PINFile: write(t, "pin", "1234", 0o600)}, "1234"},
		{"newline", FileConfig{PINFile: write(t, "pin", "1234\n", 0o640)}, "1234"},
		{"blanks", FileConfig{PINFile: write(t, "pin", " 12 34 \n", 0o600)}, " 12 34 "},
		{"from Windows", FileConfig{PINFile: write(t, "pin", "1234\r\n", 0o600)}, "1234"},
		{"environment", FileConfig{PINEnv: "CLAVIGER_TEST_PIN"}, "in env"},
		{"credential", FileConfig{Credential: "hsm-pin"}, "in credential"},
	} {
		if got, err := read(c.file); err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	open := write(t, "pin", "1234", 0o604)
	const more = "holds more than the PIN (another line, a control character or a byte order mark), and was not " +
		"tried at the HSM; write the PIN, and nothing else, into it"
	for _, c := range []struct {
		file FileConfig
		want string
	}{
		{FileConfig{PINFile: open}, "PIN file " + open + " may be read by everybody (mode 0604); cure: chmod o= " +
			open},
		{FileConfig{PINFile: write(t, "pin", "\n", 0o600)}, "is empty; write the PIN into it"},
		{FileConfig{PINFile: write(t, "pin", "1234\n\n", 0o600)}, more},
		{FileConfig{PINFile: write(t, "pin", "1234\n# of kms\n", 0o600)}, more},
		{FileConfig{PINFile: write(t, "pin", "\ufeff1234", 0o600)}, more},
		{FileConfig{PINFile: write(t, "pin", "12\x0034", 0o600)}, more},
		{FileConfig{PINFile: write(t, "pin", strings.Repeat("1", maxFile+1), 0o600)}, "is 65537 bytes long; that is " +
			"no PIN: write the PIN alone into it, or name the file that has it"},
		{FileConfig{PINFile: "nowhere"}, "PIN file /etc/claviger/nowhere does not exist; write the PIN, and nothing " +
			"else, into it (mode 0400), or name the file that has it"},
		{FileConfig{PINEnv: "CLAVIGER_TEST_UNSET"}, "environment variable CLAVIGER_TEST_UNSET, which should hold the " +
			"PIN, is not set"},
		{FileConfig{Credential: "../pin"}, `credential has the value "../pin"; it must be a name without a slash`},
	} {
		if got, err := read(c.file); err == nil || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%+v: %q, %v; want %s", c.file, got, err, c.want)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := read(FileConfig{Credential: "hsm-pin"}); err == nil ||
		!strings.Contains(err.Error(), "LoadCredential=hsm-pin:FILE") {
		t.Error(err)
	}
}

// TestParseURI: attributes of a PKCS #11 URI become a configuration. An unused attribute causes a warning, and a wrong
// one is refused.
func TestParseURI(t *testing.T) {
	c, warnings, err := ParseURI("pkcs11:serial=1238;token=My%20Token;object=x?module-path=/usr/lib/x.so&" +
		"pin-source=file:///etc/pin&x-claviger-profile=luna")
	if err != nil || c.TokenLabel != "My Token" || c.Serial != "1238" || c.Slot != nil || c.Module != "/usr/lib/x.so" ||
		c.PINSource != "file /etc/pin" || c.Profile != Luna {
		t.Errorf("%+v, %v", c, err)
	}
	if len(warnings) != 1 || warnings[0] != "pkcs11: URI: attribute object is not used" {
		t.Errorf("warnings: %q", warnings)
	}
	c, _, err = ParseURI("PKCS11:slot-id=0x1f?module-path=/x.so&pin-source=file:/etc/pin")
	if err != nil || c.Slot == nil || *c.Slot != 31 || c.TokenLabel != "" {
		t.Errorf("%+v, %v", c, err)
	}

	const rest = "?module-path=/x.so&pin-source=file:/etc/pin"
	for uri, want := range map[string]string{
		"jceks://file@/x":               `"jceks://file@/x" is no pkcs11: URI`,
		"pkcs11:token" + rest:           `"token" is no attribute; one is name=value`,
		"pkcs11:token=a;token=b" + rest: `attribute token appears twice`,
		"pkcs11:token=%zz" + rest:       `attribute token: invalid URL escape "%zz"`,
		"pkcs11:token=" + rest: `attribute token has the value ""; give it one or ` +
			`take it out`,
		"pkcs11:token=a%00b" + rest: `attribute token has the value "a\x00b"; give it one ` +
			`or take it out`,
		"pkcs11:slot-id=one" + rest:        `slot has the value "one"; it must be a slot number`,
		"pkcs11:serial=1;slot-id=1" + rest: `serial and slot-id both name the token; keep one`,
		"pkcs11:" + rest: `the token is not named; name it by token (its label), ` +
			`serial or slot-id`,
		"pkcs11:token=a?module-path=/x.so": `pin-source is missing: file: and the path of a file ` +
			`that holds the PIN`,
		"pkcs11:token=a?pin-source=file:/pin": `module-path is missing: the path of the HSM's ` +
			`PKCS#11 library`,
		"pkcs11:token=a?module-path=x.so": `module-path has the value "x.so"; it must be an ` +
			`absolute path`,
		"pkcs11:token=a?pin-source=pin": `pin-source has the value "pin"; it must be file: and ` +
			`an absolute path`,
		"pkcs11:token=a?pin-source=file:pin": `pin-source has the value "file:pin"; it must be file: ` +
			`and an absolute path`,
		"pkcs11:token=a?pin-source=%7Cpinomatic": `pin-source has the value "|pinomatic"; it must be ` +
			`file: and an absolute path`,
		"pkcs11:token=a;x-claviger-profile=lunar" + rest: `unknown profile "lunar"; known ones: [luna ncipher ` +
			`softhsm cloudhsm generic]`,
		"pkcs11:token=a" + rest + "&module-name=x": `module-path and module-name both name the ` +
			`library; keep one`,
		"pkcs11:token=a?module-name=/x&pin-source=file:/pin": `module-name has the value "/x"; a path is named by ` +
			`module-path`,
		"pkcs11:token=a?module-name=nope&pin-source=file:/pin": `module-name has the value "nope"; there is neither ` +
			`nope.so nor libnope.so in ` +
			strings.Join(moduleFolders, ", ") + `; name the library by module-path`,
	} {
		if _, _, err := ParseURI(uri); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s:\n%v\nwant\n%s", uri, err, want)
		}
	}
	for _, uri := range []string{"pkcs11:token=a?pin-value=98765", "pkcs11:token=a" + rest +
		"&pin-value=98765&pin-value=98765", "pkcs11:token=a?pin-value=98765%zz", "pkcs11:token=a?pin-value:98765"} {
		if _, _, err := ParseURI(uri); err == nil || strings.Contains(err.Error(), "98765") ||
			!strings.Contains(err.Error(), "use pin-source=file:/path") {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// TestParseKeyURI: the URI of a private key names the key beside its token.
func TestParseKeyURI(t *testing.T) {
	const rest = "?module-path=/x.so&pin-source=file:/etc/pin"
	for uri, want := range map[string]PrivateKeyName{
		"object=kms%20tls":                    {"kms tls", nil},
		"id=%01%00%ff":                        {"", []byte{1, 0, 255}},
		"object=k;id=%01;type=private":        {"k", []byte{1}},
		"type=private;object=k;x-vendor=else": {"k", nil},
	} {
		c, key, warnings, err := ParseKeyURI("pkcs11:token=a;" + uri + rest)
		if err != nil || c.TokenLabel != "a" || c.PINFile != "/etc/pin" || !reflect.DeepEqual(key, want) {
			t.Errorf("%s: %+v, %+v, %v", uri, c, key, err)
		}
		if strings.Contains(uri, "x-vendor") != (len(warnings) == 1) {
			t.Errorf("%s: warnings %q", uri, warnings)
		}
	}
	for uri, want := range map[string]string{
		"pkcs11:token=a" + rest:                     "the key is not named; name it by object (its label) or id",
		"pkcs11:object=k" + rest:                    "it by token (its label), serial or slot-id",
		"pkcs11:token=a;object=" + rest:             `attribute object has the value ""; give it one or take it out`,
		"pkcs11:token=a;object=k%00" + rest:         `has the value "k\x00"; give it one or take it out`,
		"pkcs11:token=a;object=k;type=cert" + rest:  `type has the value "cert"; it must be private`,
		"pkcs11:token=a;object=k?module-path=/x.so": "the path of a file that holds the PIN",
	} {
		c, key, _, err := ParseKeyURI(uri)
		if err == nil || !strings.HasSuffix(err.Error(), want) || c.Module != "" || key.Label != "" {
			t.Errorf("%s:\n%v\nwant\n%s", uri, err, want)
		}
	}
}

// TestModuleName finds a library in the folders of distributions.
func TestModuleName(t *testing.T) {
	lib := write(t, "libvendor.so", "", 0o600)
	old := moduleFolders
	t.Cleanup(func() { moduleFolders = old })
	moduleFolders = []string{filepath.Join(t.TempDir(), "none"), filepath.Dir(lib)}
	for _, name := range []string{"vendor", "libvendor"} {
		c, _, err := ParseURI("pkcs11:token=a?module-name=" + name + "&pin-source=file:/pin")
		if err != nil || c.Module != lib {
			t.Errorf("%s: %q, %v", name, c.Module, err)
		}
	}
}

// TestSettingsOfAnotherShell: a shell lacks a variable that the server's unit sets. The message says so. It does not
// lead the user to make a second token or to run a command blindly.
func TestSettingsOfAnotherShell(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	c := FileConfig{Module: "/m.so", Token: "kms", Credential: "pin"}
	if _, err := c.Config(""); err == nil || !strings.Contains(err.Error(), "systemd-run") ||
		!strings.Contains(err.Error(), "LoadCredential=pin:FILE") {
		t.Errorf("%v", err)
	}
	t.Setenv("SOFTHSM2_CONF", "")
	t.Setenv("HOME", t.TempDir())
	soft := &Config{Module: "/usr/lib/softhsm/libsofthsm2.so"}
	if text := soft.settingsHint(); !strings.Contains(text, "SOFTHSM2_CONF is not set here") ||
		!strings.Contains(text, "make no other token") {
		t.Error(text)
	}
	t.Setenv("SOFTHSM2_CONF", "/other.conf")
	if text := soft.settingsHint(); !strings.Contains(text, "/other.conf") {
		t.Error(text)
	}
}

// TestStandbyFile: the line standby names the keystore file of another token, which has no standby of its own.
func TestStandbyFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, c FileConfig) string {
		t.Helper()
		c.Module, c.PINEnv = "/opt/hsm/lib.so", "PIN"
		path := filepath.Join(dir, name)
		if err := WriteKeystoreFile(path, c); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("second", FileConfig{Token: "copy"})
	write("first", FileConfig{Token: "kms", Standby: "second"})
	write("back", FileConfig{Token: "copy", Standby: "mutual"})
	if err := os.WriteFile(filepath.Join(dir, "broken"), []byte("tokken = copy\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ standby, want string }{
		"absolute": {filepath.Join(dir, "second"), ""},
		"relative": {"second", ""},
		"itself":   {"itself", "it must name the keystore file of another token"},
		"missing":  {"nofile", "no such file"},
		"third":    {"first", "a standby has no standby of its own"},
		"mutual":   {"back", "a standby has no standby of its own"},
		"worse":    {"broken", "worse: standby: "},
	} {
		cfg, _, err := ReadKeystoreFile(write(name, FileConfig{Token: "kms", Standby: c.standby}))
		switch {
		case c.want != "":
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || cfg.Standby == nil || cfg.Standby.TokenLabel != "copy" || !cfg.Standby.OwnWorker ||
			cfg.OwnWorker:
			t.Errorf("%s: %+v, %v", name, cfg.Standby, err)
		}
	}
}

// TestSameFile: a file that cannot be looked at may be the same file. A file that does not exist is another one.
func TestSameFile(t *testing.T) {
	dir := t.TempDir()
	file, loop := filepath.Join(dir, "file"), filepath.Join(dir, "loop")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink("loop", loop)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		same bool
		err  error
	}{{file, true, nil}, {dir, false, nil}, {filepath.Join(dir, "none"), false, nil}, {loop, false, syscall.ELOOP}} {
		if same, err := sameFile(c.name, file); same != c.same || !errors.Is(err, c.err) {
			t.Errorf("%s: %t, %v", c.name, same, err)
		}
	}
}
