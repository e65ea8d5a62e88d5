package host

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger/internal/hosttest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/keyhsm"
	"claviger/pkcs11"
)

// newFolder makes the folder of a Key HSM with a token of its own.
func newFolder(t *testing.T) (dir string) {
	t.Helper()
	tok := softhsmtest.New(t)
	s := Setup{Folder: filepath.Join(t.TempDir(), "keyhsm"), Bits: 2048, Hosts: []string{"127.0.0.1"},
		Settings: keyhsm.Settings{HSM: pkcs11.SoftHSM, Module: tok.Module, Token: tok.Label, PINFile: tok.PINFile,
			KeyLabel: "pair", Listen: "127.0.0.1:0"}}
	if err := s.Complete(); err != nil {
		t.Fatal(err)
	}
	var steps []string
	if err := s.Run(t.Context(), func(text string) { steps = append(steps, text) }); err != nil {
		t.Fatal(err)
	}
	if len(steps) != 4 || !strings.Contains(steps[1], `RSA pair "pair"`) ||
		!strings.Contains(steps[3], "wrote "+filepath.Join(s.Folder, keyhsm.SettingsFile)) {
		t.Errorf("steps of the setup: %q", steps)
	}
	return s.Folder
}

// settings reads the settings of a folder.
func settings(t *testing.T, dir string) *keyhsm.Settings {
	t.Helper()
	set, warnings, err := keyhsm.ReadSettings(dir)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%q, %v", warnings, err)
	}
	return &set
}

// trusted makes the folder of a client's certificate, and has the Key HSM in dir trust the certificate.
func trusted(t *testing.T, dir string) (client string) {
	t.Helper()
	client = t.TempDir()
	if err := keyhsm.CreateCertificate(client, []string{"localhost"}); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := keyhsm.AddTrusted(filepath.Join(dir, "trust"),
		filepath.Join(client, keyhsm.CertificateFile)); err != nil {
		t.Fatal(err)
	}
	return client
}

// connect returns a client of the Key HSM in dir, which shows the certificate in the folder client.
func connect(t *testing.T, dir, client, url string) *keyhsm.Client {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(client, keyhsm.CertificateFile),
		filepath.Join(client, keyhsm.PrivateKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, keyhsm.CertificateFile))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	c, err := keyhsm.NewClient(keyhsm.ClientConfig{URL: url, Servers: roots,
		Certificate: func() (*tls.Certificate, error) { return &cert, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // it closes idle connections only
	return c
}

// start runs a Key HSM until stop.
func start(t *testing.T, dir string, log *hosttest.Log) (url string, stop func()) {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	return hosttest.Start(t, ready, func(ctx context.Context) error {
		return Run(ctx, Config{Folder: dir, ReadyFile: ready, Metrics: "127.0.0.1:0", Log: log.Logger()})
	})
}

// TestRun: a trusted client wraps and unwraps, the metrics count the requests, and no second process serves
// the folder.
func TestRun(t *testing.T) {
	ctx, dir := t.Context(), newFolder(t)
	client := trusted(t, dir)
	var log hosttest.Log
	url, stop := start(t, dir, &log)
	process, err := Running(dir)
	if err != nil || process != (Process{os.Getpid(), url}) {
		t.Errorf("%+v, %v", process, err)
	}
	st, err := Status(ctx, settings(t, dir), process)
	if err != nil || st.State != keyhsm.Ready || st.KeyLabel != "pair" || st.KeyBits != 2048 || st.Trusted != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	const uuid = "0f4d6f5e-6a0f-4b6e-8b3c-0c7f6e3b9a11"
	c := connect(t, dir, client, url)
	wrapped, err := c.Wrap(ctx, uuid, []byte("deposit"))
	if err != nil || strings.Contains(string(wrapped), "deposit") {
		t.Fatalf("%q, %v", wrapped, err)
	}
	if content, err := c.Unwrap(ctx, uuid, wrapped); err != nil || string(content) != "deposit" {
		t.Errorf("%q, %v", content, err)
	}
	log.Contains(t, "/metrics", `claviger_keyhsm_request_seconds_count{op="wrap",result="ok"} 1`,
		`claviger_keyhsm_request_seconds_count{op="unwrap",result="ok"} 1`,
		`claviger_hsm_function_seconds_count{function="C_Decrypt",result="CKR_OK"}`,
		`claviger_certificate_expiry_seconds{name="server",subject=`, "claviger_keyhsm_refused_total 0")
	log.Contains(t, "/readyz", `"HSM key"`, `"ready": true`)
	second := Config{Folder: dir, Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)}
	if err := Run(ctx, second); err == nil || !strings.Contains(err.Error(), "runs with the folder "+dir+" already") {
		t.Errorf("a second server of the folder: %v", err)
	}
	stop()
	if _, err := Running(dir); err == nil || !strings.Contains(err.Error(), "no Key HSM runs") {
		t.Errorf("after the end of the server: %v", err)
	}
}

// TestReload: a running server trusts a new certificate after Reload. If a certificate cannot be read, Reload
// reports that, and the server keeps the certificates that it had.
func TestReload(t *testing.T) {
	ctx, dir := t.Context(), newFolder(t)
	trusted(t, dir)
	var log hosttest.Log
	url, stop := start(t, dir, &log)
	defer stop()
	process, err := Running(dir)
	if err != nil {
		t.Fatal(err)
	}
	late := connect(t, dir, trusted(t, dir), url)
	if _, err := late.Status(ctx); err == nil {
		t.Error("the server trusts a certificate before Reload")
	}
	if st, err := Reload(ctx, settings(t, dir), process); err != nil || st.Trusted != 2 {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := late.Status(ctx); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "trust", "broken.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := Reload(ctx, settings(t, dir), process)
	if err == nil || !strings.Contains(err.Error(), "the server keeps the certificates that it had") ||
		!strings.Contains(st.LoadError, "broken.pem") || st.Trusted != 2 {
		t.Errorf("with a broken file: %+v, %v", st, err)
	}
	if _, err := late.Status(ctx); err != nil {
		t.Error(err)
	}
}

// TestPairGone: a server whose pair is not in the token starts, but is not ready.
func TestPairGone(t *testing.T) {
	dir := newFolder(t)
	trusted(t, dir)
	path := filepath.Join(dir, keyhsm.SettingsFile)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	id := settings(t, dir).KeyID
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), id, "00"+id)), 0o600); err != nil {
		t.Fatal(err)
	}
	var log hosttest.Log
	_, stop := start(t, dir, &log)
	defer stop()
	process, err := Running(dir)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := Status(t.Context(), settings(t, dir), process); err != nil || st.State != keyhsm.KeyGone {
		t.Errorf("%+v, %v", st, err)
	}
	log.Contains(t, "/readyz", `"ready": false`, "the HSM key is gone")
}

// TestValidate: one part of a Key HSM is wrong in each row. Validate names the part, and does not try the checks
// that need it.
func TestValidate(t *testing.T) {
	dir := newFolder(t)
	validate := func(change func(*keyhsm.Settings)) (failed, passed []string) {
		set := settings(t, dir)
		change(set)
		for _, c := range Validate(t.Context(), set, Validation{}) {
			switch {
			case c.OK:
				passed = append(passed, c.Name)
			case !c.NotTried:
				failed = append(failed, c.Name)
			}
		}
		return failed, passed
	}
	wrongPIN := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(wrongPIN, []byte("87654321\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if failed, _ := validate(func(*keyhsm.Settings) {}); !slices.Equal(failed, []string{"trusted certificates"}) {
		t.Errorf("a Key HSM that trusts no certificate: %q", failed)
	}
	trusted(t, dir)
	for _, c := range []struct {
		name   string
		change func(*keyhsm.Settings)
		failed string
		passed int
	}{
		{"nothing is wrong", func(*keyhsm.Settings) {}, "", 8},
		{"no PIN file", func(s *keyhsm.Settings) { s.PINFile = filepath.Join(dir, "none") }, "PIN file", 2},
		{"no library", func(s *keyhsm.Settings) { s.Module = filepath.Join(dir, "none.so") }, "module loads", 3},
		{"no token", func(s *keyhsm.Settings) { s.Token = "none" }, "token is found", 4},
		{"wrong PIN", func(s *keyhsm.Settings) { s.PINFile = wrongPIN }, "login", 4},
		{"no pair", func(s *keyhsm.Settings) { s.KeyID = "00" + s.KeyID }, "key is on the token", 6},
		{"no certificate", func(s *keyhsm.Settings) { s.PrivateKey = filepath.Join(dir, "none") }, "certificates", 6},
	} {
		failed, passed := validate(c.change)
		if strings.Join(failed, ", ") != c.failed || len(passed) != c.passed {
			t.Errorf("%s: failed %q, passed %q", c.name, failed, passed)
		}
	}
}
