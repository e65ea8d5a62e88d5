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
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/internal/hosttest"
	"claviger/internal/softhsm"
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

// newTrustee makes the folder of a trustee with the organization ORG, whose secret is walrus. Its certificate is
// valid for 127.0.0.1.
func newTrustee(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), ".keytrustee")
	if _, err := location.Init(t.Context(), dir, location.InitOptions{Hosts: []string{"127.0.0.1"}}); err != nil {
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
	return dir
}

// startTrustee runs a server until stop.
func startTrustee(t *testing.T, f trusteeFlags) (url string, stop func()) {
	t.Helper()
	f.listen, f.ready = "127.0.0.1:0", filepath.Join(t.TempDir(), "ready")
	f.connections = connectionFlags{total: 1024, perAddress: -1, unlimited: web.Loopback}
	return hosttest.Start(t, f.ready, func(ctx context.Context) error {
		return serveTrustee(ctx, f, slog.New(slog.DiscardHandler))
	})
}

// newKeyHSM makes a Key HSM in the folder conf, which trusts a trustee. It makes a new key pair with this label on the
// token.
func newKeyHSM(t *testing.T, conf, label string, tok softhsm.Token, trusteeDir string) {
	t.Helper()
	setup := keyhsmhost.Setup{Folder: conf, Bits: 2048, Hosts: []string{"127.0.0.1"}, Settings: keyhsm.Settings{
		HSM: pkcs11.SoftHSM, Module: tok.Module, Token: tok.Label, PINFile: tok.PINFile, KeyLabel: label,
		Listen: "127.0.0.1:0"}}
	if err := setupKeyHSM(t.Context(), terminal.To(io.Discard), &setup); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := keyhsm.AddTrusted(filepath.Join(conf, "trust"),
		filepath.Join(trusteeDir, trustee.TLSCert)); err != nil {
		t.Fatal(err)
	}
}

// depositByKeyHSM makes one deposit at a trustee, which the Key HSM in the folder conf wraps.
func depositByKeyHSM(t *testing.T, dir, conf string) {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	hsm, stopHSM := hosttest.Start(t, ready, func(ctx context.Context) error {
		return keyhsmhost.Run(ctx, keyhsmhost.Config{Folder: conf, ReadyFile: ready,
			Log: slog.New(slog.DiscardHandler)})
	})
	defer stopHSM()
	url, stop := startTrustee(t, trusteeFlags{dir: dir, keyhsm: hsm,
		keyhsmCert: filepath.Join(conf, keyhsm.CertificateFile)})
	defer stop()
	folder, err := trustee.LoadFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	id, err := trustee.NewIdentity("keytrustee", "client", "kms@h", 2048, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, trustee.TLSCert))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	c, err := trustee.NewClient(trustee.ClientConfig{Identity: id,
		Servers: []trustee.Endpoint{{URL: url, Server: &folder.Identity.Party}},
		TLS:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Register(t.Context(), "ORG", "walrus", false); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(t.Context(), trustee.Deposit{Label: "l", Content: []byte("x")}, ""); err != nil {
		t.Fatal(err)
	}
}

// TestKeyHSMValidatesDeposits: keyhsm validate --trustee fails with a wrong pair, although that pair works. Without
// --trustee, it reports that it did not check deposits. It does not change the store of an older trustee. With wrapped
// deposits in its store, the trustee starts by --without-keyhsm.
func TestKeyHSMValidatesDeposits(t *testing.T) {
	dir, conf, another := newTrustee(t), t.TempDir(), t.TempDir()
	tok := softhsmtest.New(t)
	newKeyHSM(t, conf, "claviger-keyhsm", tok, dir)
	depositByKeyHSM(t, dir, conf)
	validate := func(conf, want string, more ...string) {
		t.Helper()
		out, err := command(t, append([]string{"keyhsm", "validate", "--conf", conf}, more...)...)
		if !strings.Contains(strings.Join(strings.Fields(out), " "), want) ||
			(err != nil) != strings.HasPrefix(want, "FAILED") {
			t.Errorf("%v; want %q, got:\n%s", err, want, out)
		}
	}
	id := keyIDOf(t, conf)
	opened := "ok deposits 1 wrapped by " + id + ", one of each was opened"
	validate(conf, opened, "--trustee", dir)
	validate(conf, "- deposits without --trustee DIR")
	newKeyHSM(t, another, "new-pair", tok, dir)
	validate(another, "- deposits without --trustee DIR")
	validate(another, "FAILED deposits 1 deposits are wrapped by key "+id+", which this Key HSM does not open",
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
	validate(conf, opened, "--trustee", older)
	if content() != before {
		t.Error("validate has changed the store of an older trustee")
	}
	_, stop := startTrustee(t, trusteeFlags{dir: dir, withoutKeyHSM: true})
	stop()
}

// olderTrustee copies a trustee's folder, with the store in the schema of an older release.
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

// TestTrusteeInitKilled: a second init completes an init that was killed while it made the identity. No file of the
// first init is left.
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
	if err := os.Rename(ring, ring+".new"); err != nil { // init renames it last
		t.Fatal(err)
	}
	if out, err := command(t, "trustee", "serve", "--confdir", dir); err == nil ||
		!strings.Contains(out, "killed while it made the identity") {
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
