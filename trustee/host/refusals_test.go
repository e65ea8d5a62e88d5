package host

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger/internal/softhsm/softhsmtest"
	"claviger/keyhsm"
	"claviger/owner"
	"claviger/secret"
	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
)

// runRefused runs a server that must end by itself, and returns its error.
func (s *site) runRefused(c Config) error {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	err := Run(ctx, c)
	if ctx.Err() != nil {
		s.t.Errorf("Run did not end by itself: %v", err)
	}
	return err
}

// without returns a change of a site that removes a file.
func without(name string) func(*site, *Config) {
	return func(s *site, _ *Config) {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// TestRunRefuses checks that no server starts if a part is missing or wrong. The error names the part. Everything
// that was opened before is closed.
func TestRunRefuses(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a port of this test
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for name, c := range map[string]struct {
		change func(s *site, c *Config)
		want   string
	}{
		"no folder": {func(s *site, c *Config) { c.Folder = s.dir + "-missing" }, "does not exist"},
		"no store":  {without(location.FileName), "the trustee's store"},
		"another server of the store": {func(s *site, _ *Config) {
			release, err := location.Claim(s.folder)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(release)
		}, "only one trustee may serve it"},
		"no certificate": {without(trustee.TLSCert), "is missing: a copy of a folder without .ssl"},
		"no key":         {without(trustee.TLSKey), "is missing: a copy of a folder without .ssl"},
		"a damaged certificate": {func(s *site, _ *Config) {
			if err := os.WriteFile(filepath.Join(s.dir, trustee.TLSCert), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, trustee.TLSCert + " and "},
		"a Key HSM without a certificate": {func(_ *site, c *Config) {
			c.KeyHSM = "https://h"
		}, "--keyhsm-cert: open"},
		"the other trustee is not named": {func(s *site, _ *Config) { s.makeActive() }, "is the active one of two"},
		"the address is in use": {func(_ *site, c *Config) { c.Listen = other.Addr().String() },
			"--listen: listen"},
		"the console's address is in use": {func(_ *site, c *Config) {
			c.Metrics, c.MetricsName = other.Addr().String(), "--metrics"
		}, "--metrics: listen"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, true)
			cfg := s.config(Config{})
			c.change(s, &cfg)
			before := goleak.IgnoreCurrent()
			if err := s.runRefused(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q", err, c.want)
			}
			goleak.VerifyNone(t, before)
		})
	}
}

// makeActive makes the server of a site the active one of two.
func (s *site) makeActive() {
	s.t.Helper()
	st, ok := s.store.(*sqlite.Store)
	if !ok {
		s.t.Fatalf("the store is a %T", s.store)
	}
	if _, err := st.UpdatePosition(s.t.Context(), func(p *replica.Position) error {
		p.Role = server.RoleActive
		return nil
	}); err != nil {
		s.t.Fatal(err)
	}
}

// TestRunAsRoot checks that root does not serve the folder of another user.
func TestRunAsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a folder of another user")
	}
	s := newSite(t, true)
	if err := os.Chown(s.dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := s.runRefused(s.config(Config{})); !errors.As(err, new(*owner.RootError)) {
		t.Error(err)
	}
}

// TestOpenKeeperRefuses checks the errors of the flags of the Key HSM.
func TestOpenKeeperRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := keyhsm.CreateCertificate(dir, []string{"localhost"}); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ url, cert, want string }{
		"a file without a certificate": {"https://h", text, text + " holds no certificate in PEM"},
		"not a URL":                    {"%", filepath.Join(dir, keyhsm.CertificateFile), "--keyhsm: "},
	} {
		got, err := openKeeper(t.Context(), Config{KeyHSM: c.url, KeyHSMCertificate: c.cert}, &tls.Config{})
		if err == nil || got != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v; want %q", name, got, err, c.want)
		}
	}
}

// TestKeyHSMNotReady checks that a trustee does not start if its Key HSM has lost its key, and that no connection to
// the Key HSM stays open.
func TestKeyHSMNotReady(t *testing.T) {
	s := newSite(t, true)
	hsm := newKeyHSM(t, softhsmtest.New(t), "").trust(s)
	path := filepath.Join(hsm.dir, keyhsm.SettingsFile)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lost := strings.ReplaceAll(string(text), hsm.settings.KeyID, "00"+hsm.settings.KeyID)
	if err := os.WriteFile(path, []byte(lost), 0o600); err != nil {
		t.Fatal(err)
	}
	c, stop := hsm.start()
	defer stop()
	before := goleak.IgnoreCurrent()
	if err := s.runRefused(s.config(c)); err == nil || !strings.Contains(err.Error(), "its state is ") {
		t.Error(err)
	}
	goleak.VerifyNone(t, before)
}

// TestSecretFiles checks that the files of the store are watched, and for a database the files with its passwords.
func TestSecretFiles(t *testing.T) {
	paths := func(f *trustee.Folder) (list []string) {
		for _, file := range SecretFiles(f) {
			if file == (secret.File{}) {
				t.Error("an empty file")
			}
			list = append(list, file.Path)
		}
		return list
	}
	f := &trustee.Folder{Path: "/f"}
	store, key := filepath.Join(f.Path, location.FileName), filepath.Join(f.Path, trustee.TLSKey)
	if list := paths(f); !slices.Contains(list, store) || !slices.Contains(list, key) {
		t.Errorf("a file: %q", list)
	}
	f.Store = "postgresql://u@h/d?passfile=/secret/pass"
	if list := paths(f); !slices.Contains(list, "/secret/pass") || !slices.Contains(list, key) ||
		slices.Contains(list, store) {
		t.Errorf("a database: %q", list)
	}
}
