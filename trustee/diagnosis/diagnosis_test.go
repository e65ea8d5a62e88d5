package diagnosis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/doctor"
	"claviger/doctor/doctortest"
	"claviger/internal/certtest"
	"claviger/internal/golden"
	"claviger/internal/hosttest"
	"claviger/internal/pgtest"
	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/keyhsm"
	keyhsmhost "claviger/keyhsm/host"
	"claviger/pkcs11"
	"claviger/pkcs11/worker"
	"claviger/trustee"
	"claviger/trustee/host"
	"claviger/trustee/location"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
	"claviger/web"
)

func TestMain(m *testing.M) {
	worker.Main(os.Args)
	os.Exit(pgtest.Main(m.Run))
}

// identity is that of the trustee and of its client. It has a short key, which takes less time.
var identity = sync.OnceValue(func() *trustee.Identity {
	id, err := trustee.NewIdentity("keytrustee", "test", "keytrustee@h", 2048, time.Now())
	if err != nil {
		panic(err)
	}
	return id
})

// lab is the folder of a trustee.
type lab struct {
	t    *testing.T
	dir  string
	base string // above dir
	o    doctor.Options
}

func newLab(t *testing.T) *lab {
	t.Helper()
	base := t.TempDir()
	l := &lab{t: t, dir: filepath.Join(base, ".keytrustee"), base: base}
	_, err := trustee.NewFolder(l.dir, identity())
	l.must(err)
	_, err = location.Init(t.Context(), l.dir, location.InitOptions{Hosts: []string{"127.0.0.1"}})
	l.must(err)
	store, err := sqlite.Open(t.Context(), filepath.Join(l.dir, location.FileName), false)
	l.must(err)
	l.must(errors.Join(store.AddOrg(t.Context(), server.Org{Name: "ORG", UUID: "u", Auth: "walrus",
		Created: time.Now()}), store.Close()))
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

// keyHSM runs a Key HSM with a new pair of keys until stop, and names it to the doctor.
func (l *lab) keyHSM(tok softhsm.Token, trusted bool) (stop func()) {
	l.t.Helper()
	setup := keyhsmhost.Setup{Folder: filepath.Join(l.t.TempDir(), "hsm"), Bits: 2048, Hosts: []string{"127.0.0.1"},
		Settings: keyhsm.Settings{HSM: pkcs11.SoftHSM, Module: tok.Module, Token: tok.Label, PINFile: tok.PINFile,
			KeyLabel: "claviger-keyhsm", Listen: "127.0.0.1:0"}}
	l.must(setup.Complete())
	l.must(setup.Run(l.t.Context(), func(string) {}))
	if trusted {
		_, _, _, err := keyhsm.AddTrusted(filepath.Join(setup.Folder, "trust"), l.path(trustee.TLSCert))
		l.must(err)
	}
	ready := filepath.Join(l.t.TempDir(), "ready")
	l.o.KeyHSM, stop = hosttest.Start(l.t, ready, func(ctx context.Context) error {
		return keyhsmhost.Run(ctx, keyhsmhost.Config{Folder: setup.Folder, Listen: "127.0.0.1:0", ReadyFile: ready,
			Log: slog.New(slog.DiscardHandler)})
	})
	l.o.KeyHSMCertificate = filepath.Join(setup.Folder, keyhsm.CertificateFile)
	return stop
}

// deposit makes a deposit that the Key HSM wraps.
func (l *lab) deposit() {
	l.t.Helper()
	ready := filepath.Join(l.t.TempDir(), "ready")
	url, stop := hosttest.Start(l.t, ready, func(ctx context.Context) error {
		return host.Run(ctx, host.Config{Folder: l.dir, Listen: "127.0.0.1:0", ReadyFile: ready, KeyHSM: l.o.KeyHSM,
			KeyHSMCertificate: l.o.KeyHSMCertificate, Connections: web.ConnectionLimits{Total: 64},
			Log: slog.New(slog.DiscardHandler)})
	})
	defer stop()
	pem, err := os.ReadFile(l.path(trustee.TLSCert))
	l.must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client, err := trustee.NewClient(trustee.ClientConfig{Identity: identity(), Servers: []trustee.Endpoint{
		{URL: url, Server: &identity().Party}}, TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}})
	l.must(err)
	defer client.Close()
	_, err = client.Register(l.t.Context(), "ORG", "walrus", true)
	l.must(err)
	_, err = client.Put(l.t.Context(), trustee.Deposit{Label: "wrapped", Content: []byte("secret")}, "")
	l.must(err)
}

// changing are the parts of a text that differ in each run.
var changing = []golden.Mask{{`127\.0\.0\.1:\d\d\d+`, "127.0.0.1:PORT"}, {`\d+\.\d\d ms`, "TIME"},
	{`PORT/test\d+`, "PORT/DATABASE"}, {`[0-9A-F]{40}`, "FINGERPRINT"},
	{`key [0-9a-f]{16,}`, "key ID"}, {`pair [0-9a-f]{16,}`, "pair ID"},
	{`"[0-9a-f]{32}"`, "UUID"}, {`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`, "AT"}}

// check runs the doctor, and returns the lines of one check.
func (l *lab) check(id string) string {
	l.t.Helper()
	o := l.o
	o.Conf = l.dir
	text, _ := doctortest.Run(l.t, o, Role()) // the text has the failures
	return golden.Masked(strings.ReplaceAll(doctortest.Lines(text, id), l.base, "BASE"), changing)
}

// TestFailures provokes each finding about a trustee, and compares the texts with testdata.
func TestFailures(t *testing.T) {
	tok := softhsmtest.New(t)
	sections := map[string]string{}
	for _, f := range failures(tok) {
		t.Run(f.name, func(t *testing.T) {
			l := newLab(t)
			f.provoke(l)
			sections[f.name] = l.check(f.id)
			if !regexp.MustCompile(`(?m)^  (warning|failure)  ` + f.id).MatchString(sections[f.name]) {
				t.Errorf("%s finds nothing:\n%s", f.id, sections[f.name])
			}
		})
	}
	golden.Sections(t, "testdata/trustee.golden", sections, true)
}

// failure provokes what one check finds.
type failure struct {
	name, id string
	provoke  func(l *lab)
}

func failures(tok softhsm.Token) []failure {
	return []failure{
		{"no folder", "D-trustee-folder", func(l *lab) { l.must(os.RemoveAll(l.dir)) }},
		{"a private ring that everybody reads", "D-trustee-secrets", func(l *lab) {
			l.must(os.Chmod(l.path(trustee.PrivateRing), 0o644)) //nolint:gosec // the fault of the test
		}},
		{"no certificate", "D-trustee-certificate", func(l *lab) { l.must(os.Remove(l.path(trustee.TLSCert))) }},
		{"a certificate that ends soon", "D-trustee-certificate", func(l *lab) {
			a := certtest.NewUntil(l.t, l.t.TempDir(), time.Now().Add(50*time.Hour))
			pem, err := os.ReadFile(a.Issue("kts", "h"))
			l.must(err)
			l.must(os.WriteFile(l.path(trustee.TLSCert), pem, 0o600))
			l.must(os.WriteFile(l.path(trustee.TLSKey), pem, 0o600))
		}},
		{"no store", "D-trustee-store", func(l *lab) { l.must(os.Remove(l.path(location.FileName))) }},
		{"no database", "D-trustee-store", func(l *lab) { l.database("postgresql://u@127.0.0.1:1/d") }},
		{"an empty database", "D-trustee-store", func(l *lab) { l.database(pgtest.Database(l.t)) }},
		{"the database of another trustee", "D-trustee-store", func(l *lab) {
			uri := pgtest.Database(l.t)
			l.claim(uri, "AB12")
			l.database(uri)
		}},
		{"a Key HSM that does not answer", "D-trustee-keyhsm", func(l *lab) {
			l.o.KeyHSM, l.o.KeyHSMCertificate = "https://127.0.0.1:1", l.path(trustee.TLSCert)
		}},
		{"a Key HSM that does not trust the trustee", "D-trustee-keyhsm", func(l *lab) {
			l.t.Cleanup(l.keyHSM(tok, false))
		}},
		{"a Key HSM with another pair", "D-trustee-keyhsm", func(l *lab) {
			stop := l.keyHSM(tok, true)
			l.deposit()
			stop()
			l.t.Cleanup(l.keyHSM(softhsmtest.New(l.t), true))
		}},
		{"a Key HSM that is not named", "D-trustee-keyhsm", func(l *lab) {
			stop := l.keyHSM(tok, true)
			l.deposit()
			text := l.check("D-trustee-keyhsm")
			if !strings.Contains(text, "is ready, with the pair") || !strings.Contains(text, "has wrapped: 1; one of") {
				l.t.Errorf("a healthy Key HSM:\n%s", text)
			}
			stop()
			l.o.KeyHSM = ""
		}},
	}
}
