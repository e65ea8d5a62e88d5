package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/keyhsm"
	keyhsmhost "claviger/keyhsm/host"
	"claviger/pkcs11"
	"claviger/terminal"
	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
	"claviger/web"
)

// newTrustee is the folder of a trustee with an organization ORG, whose secret is walrus. Its
// certificate is good for hosts. said is what init said.
func newTrustee(t *testing.T, hosts ...string) (dir, said string) {
	t.Helper()
	var out strings.Builder
	dir = filepath.Join(t.TempDir(), ".keytrustee")
	if err := initTrustee(t.Context(), terminal.To(&out), dir, location.InitOptions{Hosts: hosts}); err != nil {
		t.Fatal(err)
	}
	store, err := sqlite.Open(t.Context(), filepath.Join(dir, location.FileName), false)
	if err != nil {
		t.Fatal(err)
	}
	org := server.Org{Name: "ORG", UUID: "u", Auth: "walrus", Created: time.Now()}
	if err := errors.Join(store.AddOrg(t.Context(), org), store.Close()); err != nil {
		t.Fatal(err)
	}
	return dir, out.String()
}

// TestTrustee runs the server that init made, with a client that registers, makes
// a deposit, and finds it after a restart.
func TestTrustee(t *testing.T) {
	dir, said := newTrustee(t, "127.0.0.1", "trustee.example.com")
	pem, err := os.ReadFile(filepath.Join(dir, trustee.TLSCert))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate")
	}
	for _, host := range []string{"127.0.0.1", "trustee.example.com"} {
		cert, err := tls.LoadX509KeyPair(filepath.Join(dir, trustee.TLSCert), filepath.Join(dir, trustee.TLSKey))
		if err != nil {
			t.Fatal(err)
		}
		if err := cert.Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	id, err := trustee.NewIdentity("keytrustee", "client", "kms@h", 2048, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		url, stop := startTrustee(t, trusteeFlags{dir: dir})
		ask := &http.Client{Transport: &http.Transport{TLSClientConfig: conf}}
		resp, err := ask.Get(url + "/?a=fingerprint") //nolint:noctx // of this test's own server
		if err != nil {
			t.Fatal(err)
		}
		fingerprint, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		ask.CloseIdleConnections()
		if !strings.Contains(said, "Initialized directory for "+string(fingerprint)) ||
			!strings.HasPrefix(string(fingerprint), "4096R/") {
			t.Errorf("%s, %q", said, fingerprint)
		}
		endpoint := trustee.Endpoint{URL: url}
		c, err := trustee.NewClient(trustee.ClientConfig{Identity: id, Servers: []trustee.Endpoint{endpoint},
			TLS: conf})
		if err != nil {
			t.Fatal(err)
		}
		if endpoint.Server, err = c.Introduce(t.Context(), url); err != nil {
			t.Fatal(err)
		}
		if c, err = trustee.NewClient(trustee.ClientConfig{Identity: id, Servers: []trustee.Endpoint{endpoint},
			TLS: conf}); err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			if _, err := c.Find(t.Context(), "l"); !claviger.Is(err, claviger.Denied) {
				t.Error(err)
			}
			if active, err := c.Register(t.Context(), "ORG", "walrus", false); err != nil || !active {
				t.Fatalf("%t, %v", active, err)
			}
			if _, err := c.Put(t.Context(), trustee.Deposit{Label: "l", Content: []byte("x")}, ""); err != nil {
				t.Fatal(err)
			}
		}
		if d, err := c.Find(t.Context(), "l"); err != nil || string(d.Content) != "x" {
			t.Errorf("%+v, %v", d, err)
		}
		c.Close()
		stop()
		if _, err := c.Find(t.Context(), "l"); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("a server that has ended: %v", err)
		}
	}
}

// TestTrusteeWithKeyHSM: with a Key HSM, deposits in the store are wrapped once
// more; without it they cannot be read, and what was stored before still can.
func TestTrusteeWithKeyHSM(t *testing.T) {
	ctx, dir, conf := t.Context(), filepath.Join(t.TempDir(), ".keytrustee"), t.TempDir()
	if err := initTrustee(ctx, terminal.To(io.Discard), dir,
		location.InitOptions{Hosts: []string{"127.0.0.1", "trustee.example.com"}}); err != nil {
		t.Fatal(err)
	}
	tok := softhsmtest.New(t)
	setup := keyhsmhost.Setup{Folder: conf, Bits: 2048, Hosts: []string{"127.0.0.1"}, Settings: keyhsm.Settings{
		HSM: pkcs11.SoftHSM, Module: tok.Module, Token: tok.Label, PINFile: tok.PINFile, KeyLabel: "claviger-keyhsm",
		Listen: "127.0.0.1:0"}}
	if err := setupKeyHSM(ctx, terminal.To(io.Discard), &setup); err != nil {
		t.Fatal(err)
	}
	var hsmLog, log metricsLog
	startHSM := func(conf string) (url string, stop func()) {
		ready := filepath.Join(t.TempDir(), "ready")
		return untilReady(t, ready, func(ctx context.Context) error {
			return keyhsmhost.Run(ctx, keyhsmhost.Config{Folder: conf, Listen: "127.0.0.1:0", ReadyFile: ready,
				Metrics: "127.0.0.1:0", Log: hsmLog.logger()})
		})
	}
	store, err := sqlite.Open(ctx, filepath.Join(dir, location.FileName), false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }() // it was read only
	if err := store.AddOrg(ctx, server.Org{Name: "ORG", UUID: "u", Auth: "walrus", Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, trustee.TLSCert))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	folder, err := trustee.LoadFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	id, err := trustee.NewIdentity("keytrustee", "client", "kms@h", 2048, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	client := func(url string) *trustee.Client {
		t.Helper()
		c, err := trustee.NewClient(
			trustee.ClientConfig{Identity: id, Servers: []trustee.Endpoint{{URL: url, Server: &folder.Identity.Party}},
				TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	find := func(c *trustee.Client, label, want string) {
		t.Helper()
		if d, err := c.Find(ctx, label); err != nil || string(d.Content) != want {
			t.Errorf("%s: %q, %v", label, d.Content, err)
		}
	}

	url, stop := startTrustee(t, trusteeFlags{dir: dir})
	c := client(url)
	if _, err := c.Register(ctx, "ORG", "walrus", false); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(ctx, trustee.Deposit{Label: "before", Content: []byte("stored before")}, ""); err != nil {
		t.Fatal(err)
	}
	stop()

	hsm, stopHSM := startHSM(conf)
	f := trusteeFlags{dir: dir, keyhsm: hsm, keyhsmCert: filepath.Join(conf, keyhsm.CertificateFile),
		listen: "127.0.0.1:0", connections: connectionFlags{total: 64, perAddress: -1}}
	if err := serveTrustee(ctx, f, slog.New(slog.DiscardHandler)); err == nil ||
		!strings.Contains(err.Error(), "claviger keyhsm trust "+filepath.Join(dir, trustee.TLSCert)) {
		t.Errorf("a Key HSM that does not trust us: %v", err)
	}
	stopHSM()
	if _, _, _, err := keyhsm.AddTrusted(filepath.Join(conf, "trust"),
		filepath.Join(dir, trustee.TLSCert)); err != nil {
		t.Fatal(err)
	}
	f.keyhsm, stopHSM = startHSM(conf)
	f.metrics = "127.0.0.1:0"
	url, stop = startTrusteeBy(t, f, log.logger())
	c = client(url)
	if _, err := c.Put(ctx, trustee.Deposit{Label: "after", Content: []byte("stored after")}, ""); err != nil {
		t.Fatal(err)
	}
	find(c, "before", "stored before")
	find(c, "after", "stored after")
	row, err := store.Find(ctx, id.Fingerprint(), "after")
	if err != nil || !row.Wrapped || strings.Contains(string(row.Sealed.Content), "stored after") {
		t.Errorf("in the store it is %q (%v)", row.Sealed.Content, err)
	}
	validateDeposits(t, setup, dir)
	hsmLog.figures(t, "/metrics", `claviger_keyhsm_request_seconds_count{op="wrap",result="ok"} 1`,
		`claviger_keyhsm_request_seconds_count{op="unwrap",result="ok"} 1`,
		`claviger_hsm_function_seconds_count{function="C_Decrypt",result="CKR_OK"}`,
		`claviger_certificate_expiry_seconds{name="server",subject=`, "claviger_keyhsm_refused_total 0")
	hsmLog.figures(t, "/readyz", `"HSM key"`, `"ready": true`)
	log.figures(t, "/readyz", `"Key HSM"`, `"ready": true`)
	stopHSM()
	if _, err := c.Find(ctx, "after"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("without the Key HSM: %v", err)
	}
	late := trustee.Deposit{Label: "later", Content: []byte("x")}
	if _, err := c.Put(ctx, late, ""); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a deposit without the Key HSM: %v", err)
	}
	find(c, "before", "stored before")
	if _, err := c.Find(ctx, "none"); !claviger.Is(err, claviger.KeyNotFound) {
		t.Error(err)
	}
	log.figures(t, "/metrics", `claviger_trustee_request_seconds_count{op="put",result="ok"} 1`,
		`claviger_trustee_request_seconds_count{op="put",result="unavailable"} `,
		`claviger_trustee_request_seconds_count{op="find",result="ok"} 3`,
		`claviger_trustee_request_seconds_count{op="find",result="key not found"} 1`,
		`claviger_trustee_keyhsm_seconds_count{op="wrap",result="ok"} 1`,
		`claviger_trustee_keyhsm_seconds_count{op="unwrap",result="unavailable"} `,
		"claviger_trustee_deposits 2\n", "claviger_trustee_deposits_deleted 0\n",
		"claviger_trustee_store_errors_total 0\n",
		`claviger_certificate_expiry_seconds{name="server",subject="CN=127.0.0.1"}`)
	stop()

	// A second Key HSM, of another folder and certificate, with the same key of the HSM.
	second := keyhsmhost.Setup{Folder: t.TempDir(), Bits: 2048, Hosts: []string{"127.0.0.1"}, Settings: setup.Settings}
	second.Settings.Certificate, second.Settings.PrivateKey, second.Settings.Trust = "", "", ""
	if err := setupKeyHSM(ctx, terminal.To(io.Discard), &second); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := keyhsm.AddTrusted(filepath.Join(second.Folder, "trust"),
		filepath.Join(dir, trustee.TLSCert)); err != nil {
		t.Fatal(err)
	}
	f.keyhsm, stopHSM = startHSM(second.Folder)
	f.keyhsmCert = filepath.Join(second.Folder, keyhsm.CertificateFile)
	url, stop = startTrusteeBy(t, f, slog.New(slog.DiscardHandler))
	c = client(url)
	find(c, "after", "stored after")
	if _, err := c.Put(ctx, trustee.Deposit{Label: "second", Content: []byte("by the second")}, ""); err != nil {
		t.Error(err)
	}
	stop()
	stopHSM()
	f.keyhsm, stopHSM = startHSM(conf)
	f.keyhsmCert = filepath.Join(conf, keyhsm.CertificateFile)
	url, stop = startTrusteeBy(t, f, slog.New(slog.DiscardHandler))
	find(client(url), "second", "by the second")
	stop()
	stopHSM()

	without := trusteeFlags{dir: dir, listen: "127.0.0.1:0", connections: f.connections}
	if err := serveTrustee(ctx, without, slog.New(slog.DiscardHandler)); err == nil ||
		!strings.Contains(err.Error(), "2 deposits are wrapped by a Key HSM, and --keyhsm is not given") {
		t.Errorf("without the Key HSM: %v", err)
	}
	without.withoutKeyHSM, without.metrics = true, "127.0.0.1:0"
	var withoutLog metricsLog
	url, stop = startTrusteeBy(t, without, withoutLog.logger())
	if _, err := client(url).Find(ctx, "after"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a trustee that was started without its Key HSM: %v", err)
	}
	withoutLog.figures(t, "/readyz", `"ready": false`, "2 deposits are wrapped by key ")
	stop()

	// A Key HSM with another key of the HSM opens none, says so, and has clients ask the
	// other trustee.
	tok = softhsmtest.New(t)
	other := keyhsmhost.Setup{Folder: t.TempDir(), Bits: 2048, Hosts: []string{"127.0.0.1"}, Settings: setup.Settings}
	other.Settings.Certificate, other.Settings.PrivateKey, other.Settings.Trust = "", "", ""
	other.Settings.Token, other.Settings.PINFile = tok.Label, tok.PINFile
	other.Settings.KeyID = ""
	if err := setupKeyHSM(ctx, terminal.To(io.Discard), &other); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := keyhsm.AddTrusted(filepath.Join(other.Folder, "trust"),
		filepath.Join(dir, trustee.TLSCert)); err != nil {
		t.Fatal(err)
	}
	f.keyhsm, stopHSM = startHSM(other.Folder)
	defer stopHSM()
	f.keyhsmCert = filepath.Join(other.Folder, keyhsm.CertificateFile)
	var otherLog metricsLog
	url, stop = startTrusteeBy(t, f, otherLog.logger())
	defer stop()
	if _, err := client(url).Find(ctx, "after"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("wrapped by a key that is not there: %v", err)
	}
	otherLog.figures(t, "/readyz", `"ready": false`, "which this Key HSM does not open")
}

// startTrustee runs a server until stop.
func startTrustee(t *testing.T, f trusteeFlags) (url string, stop func()) {
	t.Helper()
	return startTrusteeBy(t, f, slog.New(slog.DiscardHandler))
}

func startTrusteeBy(t *testing.T, f trusteeFlags, log *slog.Logger) (url string, stop func()) {
	t.Helper()
	f.listen, f.ready = "127.0.0.1:0", filepath.Join(t.TempDir(), "ready")
	f.connections = connectionFlags{total: 1024, perAddress: -1, unlimited: web.Loopback}
	return untilReady(t, f.ready, func(ctx context.Context) error { return serveTrustee(ctx, f, log) })
}

// untilReady runs a server until stop, and returns its URL.
func untilReady(t *testing.T, ready string, serve func(context.Context) error) (url string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx) }()
	for range 1000 {
		if text, err := os.ReadFile(ready); err == nil {
			return strings.TrimSpace(string(text)), func() {
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("the server ended: %v", err)
				}
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("the server did not start: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatal("the server did not start in time")
	return "", nil
}

// validateDeposits: keyhsm validate knows the pair that the trustee's deposits are wrapped
// by from another one, that works as well, and says nothing of deposits that it has not
// seen.
func validateDeposits(t *testing.T, setup keyhsmhost.Setup, dir string) {
	t.Helper()
	validate := func(conf, want string, more ...string) {
		t.Helper()
		out, err := command(t, append([]string{"keyhsm", "validate", "--conf", conf}, more...)...)
		if !strings.Contains(strings.Join(strings.Fields(out), " "), want) ||
			(err != nil) != strings.HasPrefix(want, "FAILED") {
			t.Errorf("%v; want %q, got:\n%s", err, want, out)
		}
	}
	id := keyIDOf(t, setup.Folder)
	validate(setup.Folder, "ok deposits 1 wrapped by "+id+", one of each was opened", "--trustee", dir)
	validate(setup.Folder, "- deposits which pair")
	another := keyhsmhost.Setup{Folder: t.TempDir(), Bits: 2048, Hosts: setup.Hosts,
		Settings: keyhsm.Settings{HSM: setup.Settings.HSM, Module: setup.Settings.Module,
			Token: setup.Settings.Token, PINFile: setup.Settings.PINFile, KeyLabel: "new-pair", Listen: "127.0.0.1:0"}}
	if err := setupKeyHSM(t.Context(), terminal.To(io.Discard), &another); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := keyhsm.AddTrusted(filepath.Join(another.Folder, "trust"),
		filepath.Join(dir, trustee.TLSCert)); err != nil {
		t.Fatal(err)
	}
	validate(another.Folder, "- deposits which pair")
	validate(another.Folder, "FAILED deposits 1 deposits are wrapped by key "+id+", which this Key HSM does not open",
		"--trustee", dir)
	older := olderTrustee(t, dir)
	content := func() string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(older, location.FileName))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := content()
	validate(setup.Folder, "ok deposits 1 wrapped by "+id+", one of each was opened", "--trustee", older)
	if content() != before {
		t.Error("validate has changed an older trustee's store")
	}
}

// olderTrustee copies a trustee's folder, with its store as an older program keeps it.
func olderTrustee(t *testing.T, dir string) (older string) {
	t.Helper()
	older = filepath.Join(t.TempDir(), "older")
	err := os.Mkdir(older, 0o700)
	for _, name := range []string{trustee.ConfFile, trustee.PublicRing, trustee.PrivateRing} {
		var text []byte
		if err == nil {
			text, err = os.ReadFile(filepath.Join(dir, name))
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(older, name), text, 0o600)
		}
	}
	for _, step := range []struct{ dir, statement string }{
		{dir, "VACUUM INTO '" + filepath.Join(older, location.FileName) + "'"},
		{older, "DROP TABLE change"}, {older, "DROP TABLE standing"},
		{older, "DELETE FROM goose_db_version WHERE version_id = 3"},
	} {
		var db *sql.DB
		if err == nil {
			db, err = sql.Open("sqlite", filepath.Join(step.dir, location.FileName))
		}
		if err == nil {
			_, err = db.ExecContext(t.Context(), step.statement)
			err = errors.Join(err, db.Close())
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return older
}

func keyIDOf(t *testing.T, conf string) string {
	t.Helper()
	set, _, err := keyhsm.ReadSettings(conf)
	if err != nil {
		t.Fatal(err)
	}
	return set.KeyID
}

// TestTrusteeInitKilled: an init that was killed while it made the identity is finished by
// a second one, in whose folder no file of the first is left.
func TestTrusteeInitKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), ".keytrustee")
	id, err := trustee.NewIdentity("keytrustee", "", "kts@h.example.com", 2048, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trustee.NewFolder(dir, id); err != nil {
		t.Fatal(err)
	}
	ring := filepath.Join(dir, trustee.PrivateRing)
	if err := os.Rename(ring, ring+".new"); err != nil { // it gets its name last
		t.Fatal(err)
	}
	if out, err := command(t, "trustee", "serve", "--confdir", dir); err == nil ||
		!strings.Contains(out, "killed while it made it") {
		t.Errorf("served: %v, %s", err, out)
	}
	if out, err := command(t, "trustee", "init", "--confdir", dir, "--hostname", "h"); err != nil ||
		strings.Contains(out, id.String()) {
		t.Fatalf("%v: %s", err, out)
	}
	if f, err := location.Load(dir); err != nil || f.Identity.String() == id.String() {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := os.Stat(ring + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what the first one left: %v", err)
	}
}
