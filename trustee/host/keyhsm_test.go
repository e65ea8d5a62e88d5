package host

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/console"
	"claviger/internal/hosttest"
	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/keyhsm"
	keyhsmhost "claviger/keyhsm/host"
	"claviger/pkcs11"
	"claviger/secret"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/web"
)

// hsmSite is a Key HSM, which trusts no trustee at first.
type hsmSite struct {
	t        *testing.T
	dir      string
	settings keyhsm.Settings
	log      hosttest.Log
}

// newKeyHSM makes the folder of a Key HSM at a token. keyID is the pair that it uses; "" is a new one.
func newKeyHSM(t *testing.T, tok softhsm.Token, keyID string) *hsmSite {
	t.Helper()
	setup := keyhsmhost.Setup{Folder: t.TempDir(), Bits: 2048, Hosts: []string{"127.0.0.1"}, Settings: keyhsm.Settings{
		HSM: pkcs11.SoftHSM, Module: tok.Module, Token: tok.Label, PINFile: tok.PINFile, KeyLabel: "claviger-keyhsm",
		KeyID: keyID, Listen: "127.0.0.1:0"}}
	err := setup.Complete()
	if err == nil {
		err = setup.Run(t.Context(), func(string) {})
	}
	if err != nil {
		t.Fatal(err)
	}
	return &hsmSite{t: t, dir: setup.Folder, settings: setup.Settings}
}

// trust has the Key HSM trust the certificate of a trustee.
func (h *hsmSite) trust(s *site) *hsmSite {
	h.t.Helper()
	if _, _, _, err := keyhsm.AddTrusted(filepath.Join(h.dir, "trust"),
		filepath.Join(s.dir, trustee.TLSCert)); err != nil {
		h.t.Fatal(err)
	}
	return h
}

// start runs the Key HSM until stop. c is the configuration of a trustee that uses the Key HSM.
func (h *hsmSite) start() (c Config, stop func()) {
	h.t.Helper()
	ready := filepath.Join(h.t.TempDir(), "ready")
	c.KeyHSM, stop = hosttest.Start(h.t, ready, func(ctx context.Context) error {
		return keyhsmhost.Run(ctx, keyhsmhost.Config{Folder: h.dir, Listen: "127.0.0.1:0", ReadyFile: ready,
			Metrics: "127.0.0.1:0", Log: h.log.Logger()})
	})
	c.KeyHSMCertificate, c.Metrics = filepath.Join(h.dir, keyhsm.CertificateFile), "127.0.0.1:0"
	return c, stop
}

// wrappedSite makes a trustee that holds the deposit "before", made without a Key HSM, and "after", which the
// Key HSM hsm wrapped.
func wrappedSite(t *testing.T) (s *site, hsm *hsmSite) {
	t.Helper()
	s = newSite(t, true)
	url, stop := s.start(Config{})
	s.register(url)
	s.put(s.connect(url), "before", "stored before")
	stop()
	hsm = newKeyHSM(t, softhsmtest.New(t), "").trust(s)
	c, stopHSM := hsm.start()
	defer stopHSM()
	url, stop = s.start(c)
	defer stop()
	s.put(s.connect(url), "after", "stored after")
	return s, hsm
}

// TestKeyHSMTrustsNoTrustee: a trustee does not start if its Key HSM does not trust it.
func TestKeyHSMTrustsNoTrustee(t *testing.T) {
	s := newSite(t, true)
	c, stop := newKeyHSM(t, softhsmtest.New(t), "").start()
	defer stop()
	err := Run(t.Context(), s.config(c))
	if err == nil || !strings.Contains(err.Error(), "claviger keyhsm trust "+filepath.Join(s.dir, trustee.TLSCert)) {
		t.Errorf("%v", err)
	}
}

// TestRunWithKeyHSM: a Key HSM wraps new deposits. Without the Key HSM, clients can read older deposits, but no
// wrapped one, and can make no deposit.
func TestRunWithKeyHSM(t *testing.T) {
	ctx := t.Context()
	s, hsm := wrappedSite(t)
	row, err := s.store.Find(ctx, s.client.Fingerprint(), "after")
	if err != nil || !row.Wrapped || strings.Contains(string(row.Sealed.Content), "stored after") {
		t.Errorf("in the store: %q, wrapped: %t, %v", row.Sealed.Content, row.Wrapped, err)
	}
	c, stopHSM := hsm.start()
	var log hosttest.Log
	c.Log = log.Logger()
	url, stop := s.start(c)
	defer stop()
	client := s.connect(url)
	s.put(client, "late", "stored late")
	s.find(client, "before", "stored before")
	s.find(client, "after", "stored after")
	// The trustee opened the deposit "after" once at its start, too.
	hsm.log.Contains(t, "/metrics", `claviger_keyhsm_request_seconds_count{op="wrap",result="ok"} 1`,
		`claviger_keyhsm_request_seconds_count{op="unwrap",result="ok"} 2`,
		`claviger_hsm_function_seconds_count{function="C_Decrypt",result="CKR_OK"}`,
		`claviger_certificate_expiry_seconds{name="server",subject=`, "claviger_keyhsm_refused_total 0")
	hsm.log.Contains(t, "/readyz", `"HSM key"`, `"ready": true`)
	log.Contains(t, "/readyz", `"Key HSM"`, `"ready": true`)
	stopHSM()
	if _, err := client.Find(ctx, "after"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a wrapped deposit without the Key HSM: %v", err)
	}
	later := trustee.Deposit{Label: "later", Content: []byte("x")}
	if _, err := client.Put(ctx, later, ""); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a new deposit without the Key HSM: %v", err)
	}
	s.find(client, "before", "stored before")
	if _, err := client.Find(ctx, "none"); !claviger.Is(err, claviger.KeyNotFound) {
		t.Error(err)
	}
	log.Contains(t, "/metrics", `claviger_trustee_request_seconds_count{op="put",result="ok"} 1`,
		`claviger_trustee_request_seconds_count{op="put",result="unavailable"} `,
		`claviger_trustee_request_seconds_count{op="find",result="ok"} 3`,
		`claviger_trustee_request_seconds_count{op="find",result="key not found"} 1`,
		`claviger_trustee_keyhsm_seconds_count{op="wrap",result="ok"} 1`,
		`claviger_trustee_keyhsm_seconds_count{op="unwrap",result="unavailable"} `,
		"claviger_trustee_deposits 3\n", "claviger_trustee_deposits_deleted 0\n",
		"claviger_trustee_store_errors_total 0\n",
		`claviger_certificate_expiry_seconds{name="server",subject="CN=127.0.0.1"}`)
}

// TestCheckKeyHSM checks that a trustee is not ready if its Key HSM does not answer.
func TestCheckKeyHSM(t *testing.T) {
	s := newSite(t, true)
	c, stopHSM := newKeyHSM(t, softhsmtest.New(t), "").trust(s).start()
	c = s.config(c)
	served, err := serverTLS(s.dir, false, c.Log)
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	keeper, err := openKeeper(t.Context(), c, served.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer keeper.Close() //nolint:errcheck // it closes idle connections only
	r := &running{store: s.store, tls: served, keeper: keeper, wrapped: server.NewWrapped(s.store, keeper),
		connections: web.NewConnections(c.Connections, c.Log),
		secrets:     console.WatchSecretFiles(c.Log, func() []secret.File { return nil })}
	checks := r.checks()
	i := slices.IndexFunc(checks, func(c console.Check) bool { return c.Name == "Key HSM" })
	if i < 0 {
		t.Fatalf("%+v", checks)
	}
	if err := checks[i].Run(t.Context()); err != nil {
		t.Error(err)
	}
	stopHSM()
	if err := checks[i].Run(t.Context()); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("without the Key HSM: %v", err)
	}
}

// TestSecondKeyHSM: two Key HSMs with different folders and certificates open each other's deposits if they use
// the same pair in the HSM.
func TestSecondKeyHSM(t *testing.T) {
	s, first := wrappedSite(t)
	second := first.settings
	c, stopHSM := newKeyHSM(t, softhsm.Token{Module: second.Module, Label: second.Token, PINFile: second.PINFile},
		second.KeyID).trust(s).start()
	url, stop := s.start(c)
	client := s.connect(url)
	s.find(client, "after", "stored after")
	s.put(client, "second", "by the second")
	stop()
	stopHSM()
	c, stopHSM = first.start()
	defer stopHSM()
	url, stop = s.start(c)
	defer stop()
	s.find(s.connect(url), "second", "by the second")
}

// TestRunWithoutItsKeyHSM: a trustee with wrapped deposits starts without a Key HSM only if WithoutKeyHSM is
// true, and then is not ready.
func TestRunWithoutItsKeyHSM(t *testing.T) {
	s, _ := wrappedSite(t)
	if err := Run(t.Context(), s.config(Config{})); err == nil ||
		!strings.Contains(err.Error(), "1 deposits are wrapped by a Key HSM, and --keyhsm is not given") {
		t.Errorf("without the Key HSM: %v", err)
	}
	var log hosttest.Log
	url, stop := s.start(Config{WithoutKeyHSM: true, Metrics: "127.0.0.1:0", Log: log.Logger()})
	defer stop()
	if _, err := s.connect(url).Find(t.Context(), "after"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a trustee that was started without its Key HSM: %v", err)
	}
	log.Contains(t, "/readyz", `"ready": false`, "1 deposits are wrapped by key ")
}

// TestAnotherPair: a Key HSM with another pair opens no deposit, and the trustee is not ready. The error has
// clients try the other trustee.
func TestAnotherPair(t *testing.T) {
	s, _ := wrappedSite(t)
	c, stopHSM := newKeyHSM(t, softhsmtest.New(t), "").trust(s).start()
	defer stopHSM()
	var log hosttest.Log
	c.Log = log.Logger()
	url, stop := s.start(c)
	defer stop()
	if _, err := s.connect(url).Find(t.Context(), "after"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("wrapped by a pair that the token does not hold: %v", err)
	}
	log.Contains(t, "/readyz", `"ready": false`, "which this Key HSM does not open")
	if !strings.Contains(log.String(), "not all deposits can be opened") {
		t.Errorf("log:\n%s", &log)
	}
}
