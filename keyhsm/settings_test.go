package keyhsm

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"claviger/pkcs11"
)

const sample = `# Key HSM
keyhsm.hsm = softhsm
keyhsm.module = /usr/lib/softhsm/libsofthsm2.so
keyhsm.token = keyhsm
keyhsm.pin.file = pin
keyhsm.key.label = deposits
keyhsm.key.id = 00ff10
keyhsm.listen = localhost:9090
keyhsm.tls.certificate = server.crt
keyhsm.tls.key = /etc/keyhsm/server.key
keyhsm.trust = trust
`

// TestSettings: settings that were written are read unchanged.
func TestSettings(t *testing.T) {
	dir := t.TempDir()
	slot := uint(7)
	want := Settings{HSM: pkcs11.Luna, Module: "/lib/x.so", Slot: &slot, PINFile: "/etc/pin", KeyLabel: "a = b",
		KeyID: "00ff", Listen: "[::1]:9090",
		Worker: pkcs11.WorkerYes, CallLimit: "1m",
		Certificate: "/c", PrivateKey: "/k", Trust: "/t", MaxConnections: 3, MaxPerAddress: new(int),
		Unlimited: new("10.0.0.0/8")}
	if err := WriteSettings(dir, want); err != nil {
		t.Fatal(err)
	}
	got, warnings, err := ReadSettings(dir)
	if err != nil || len(warnings) != 0 || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, %v", got, warnings, err)
	}
	if c, err := got.PKCS11(); err != nil || c.Worker != pkcs11.WorkerYes || c.CallLimit != time.Minute {
		t.Errorf("worker %q, limit %v, %v", c.Worker, c.CallLimit, err)
	}
	if err := WriteSettings(dir, want); err == nil || !strings.Contains(err.Error(), "not overwritten") {
		t.Errorf("written over: %v", err)
	}
	path := filepath.Join(dir, SettingsFile)
	writeFile(t, path, sample+"keyhsm.log.size = 100000000\n")
	got, warnings, err = ReadSettings(dir)
	if err != nil || got.PINFile != filepath.Join(dir, "pin") || got.PrivateKey != "/etc/keyhsm/server.key" ||
		got.Trust != filepath.Join(dir, "trust") || got.MaxConnections != 256 {
		t.Errorf("%+v, %v", got, err)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "keyhsm.log.size has no effect") {
		t.Errorf("warnings %q", warnings)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadSettings(dir); err == nil || !strings.Contains(err.Error(), "chmod o-w") {
		t.Errorf("anybody may write it: %v", err)
	}
	if _, _, err := ReadSettings(t.TempDir()); err == nil || !strings.Contains(err.Error(), "claviger keyhsm setup") {
		t.Errorf("none: %v", err)
	}
	if err := WriteSettings(t.TempDir(), Settings{KeyLabel: "a\nkeyhsm.module = /evil.so"}); err == nil {
		t.Error("a line break in a value was written")
	}
}

// TestSettingsRefused: the error of each wrong line of application.properties.
func TestSettingsRefused(t *testing.T) {
	without := func(name string) string {
		var out []string
		for _, l := range strings.Split(sample, "\n") {
			if !strings.HasPrefix(l, name) {
				out = append(out, l)
			}
		}
		return strings.Join(out, "\n")
	}
	for text, want := range map[string]string{
		"x":                               "x:1: there is no '='",
		"keyhsm.module =":                 "has no value",
		"keyhsm.modul = /x":               `"keyhsm.modul" is not known`,
		sample + "keyhsm.token = again\n": "is in the file twice",
		sample + "keyhsm.slot = 3\n":      "the token must be named once",
		without("keyhsm.token"):           "the token must be named once",
		without("keyhsm.key.label"):       "keyhsm.key.label is missing",
		without("keyhsm.trust"):           "keyhsm.trust is missing",
		sample + "keyhsm.pin = 1234\n":    "this file must not contain a PIN",
		"keyhsm.hsm = lunar":              "unknown profile",
		"keyhsm.worker = maybe":           `keyhsm.worker has the value "maybe"; it must be yes or no`,
		"keyhsm.call.limit = 25":          `has the value "25"; it must be a time from 1s to 10m`,
		sample + "keyhsm.worker = no\nkeyhsm.call.limit = 9s\n": "keyhsm.call.limit has no effect with",
		"keyhsm.slot = first":                                  "it must be a slot number",
		"keyhsm.max.connections.per.address = x":               "from 0 (no limit)",
		"keyhsm.max.connections = 0":                           "from 1 to 65536",
		without("keyhsm.module") + "keyhsm.module = x.so\n":    "an absolute path",
		without("keyhsm.key.id") + "keyhsm.key.id = xyz\n":     "hexadecimal",
		without("keyhsm.listen") + "keyhsm.listen = 9090\n":    "it must be like localhost:9090",
		"keyhsm.module = /" + strings.Repeat("x", maxSettings): "token too long",
	} {
		if _, _, err := parseSettings("x", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80q: %v; want %s", text, err, want)
		}
	}
	if _, _, err := parseSettings("x", []byte("keyhsm.pin = 31415926\n")); err == nil ||
		strings.Contains(err.Error(), "31415926") {
		t.Errorf("the error shows a PIN: %v", err)
	}
}

// FuzzSettings: parsed settings are complete, and writing and parsing them gives the same.
func FuzzSettings(f *testing.F) {
	if list, err := os.ReadDir(filepath.Join("testdata", "fuzz", f.Name())); err != nil || len(list) < 3 {
		f.Fatalf("%d seeds, %v", len(list), err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, _, err := parseSettings("x", data)
		if err != nil {
			return
		}
		out, err := s.format("x")
		if err != nil {
			t.Fatalf("%+v cannot be written: %v", s, err)
		}
		again, _, err := parseSettings("x", out)
		if err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("%+v is read back as %+v, %v", s, again, err)
		}
	})
}

// TestIdentity: a certificate is made once, and the server uses it with the certificates that it trusts.
func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	if err := CreateCertificate(dir, []string{"keyhsm.example.com", "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	if err := CreateCertificate(dir, []string{"x"}); err == nil {
		t.Error("a certificate was overwritten")
	}
	s := Settings{Certificate: filepath.Join(dir, CertificateFile), PrivateKey: filepath.Join(dir, PrivateKeyFile),
		Trust: filepath.Join(dir, "trust")}
	i, err := s.Identity()
	if err != nil || i.Trust.Len() != 0 {
		t.Fatal(i, err)
	}
	leaf := i.Certificate.Leaf
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	for _, host := range []string{"keyhsm.example.com", "127.0.0.1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: pool}); err != nil {
			t.Error(err)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "other.example.com", Roots: pool}); err == nil {
		t.Error("a certificate for any host was accepted")
	}
	if info, err := os.Stat(s.PrivateKey); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	if err := os.Chmod(s.PrivateKey, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Identity(); err == nil || !strings.Contains(err.Error(), "chmod o=") {
		t.Errorf("a private key for everybody: %v", err)
	}
	if err := inTime(leaf, leaf.NotAfter.Add(time.Second)); err == nil ||
		!strings.Contains(err.Error(), "is valid from") {
		t.Errorf("an old certificate: %v", err)
	}
	writeFile(t, filepath.Join(dir, "x.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	for _, name := range []string{"x.pem", "server.key", "nowhere"} {
		if _, _, _, err := AddTrusted(s.Trust, filepath.Join(dir, name)); err == nil ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	writeFile(t, filepath.Join(dir, "x.der"), string(leaf.Raw))
	if cert, file, added, err := AddTrusted(s.Trust, filepath.Join(dir, "x.der")); err != nil || !added ||
		!cert.Equal(leaf) || filepath.Dir(file) != s.Trust {
		t.Error(file, added, err)
	}
}

// TestConnections: an error about a limit on connections names the file and the property; a limit that is not set has a
// default.
func TestConnections(t *testing.T) {
	n, list := 300, "nat"
	for name, s := range map[string]Settings{
		propPerAddress: {MaxConnections: 256, MaxPerAddress: &n},
		propUnlimited:  {MaxConnections: 256, Unlimited: &list},
	} {
		want := "/etc/keyhsm/application.properties: " + name
		if _, err := s.Connections("/etc/keyhsm"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := Settings{MaxConnections: 256}
	if l, err := s.Connections("/etc/keyhsm"); err != nil || l.PerAddress != 128 || len(l.Unlimited) != 2 {
		t.Errorf("%+v, %v", l, err)
	}
}
