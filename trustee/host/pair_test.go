package host

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger/console"
	"claviger/internal/hosttest"
	"claviger/internal/porttest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/keystore"
	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/web"
)

// follow makes a second trustee with the identity of a site, and returns the configurations of both.
func (s *site) follow() (second *site, active, passive Config) {
	s.t.Helper()
	second = &site{t: s.t, dir: filepath.Join(s.t.TempDir(), ".keytrustee")}
	if err := os.CopyFS(second.dir, os.DirFS(s.dir)); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(second.dir, location.FileName)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := location.Init(s.t.Context(), second.dir,
		location.InitOptions{Hosts: []string{"127.0.0.1"}, Empty: true}); err != nil {
		s.t.Fatal(err)
	}
	active, passive = s.config(Config{Metrics: "127.0.0.1:0"}), second.config(Config{Metrics: "127.0.0.1:0"})
	var err error
	for _, c := range []*Config{&active, &passive} {
		if c.Listen, err = porttest.Address(); err != nil {
			s.t.Fatal(err)
		}
		c.Pair.Cert = filepath.Join(s.dir, trustee.TLSCert) // both have the same certificate
	}
	active.Pair.URL, active.Pair.First = "https://"+passive.Listen, server.RoleActive
	passive.Pair.URL, passive.Pair.First = "https://"+active.Listen, server.RolePassive
	return second, active, passive
}

// eventually waits until the page of a console has all texts.
func eventually(t *testing.T, log *hosttest.Log, page string, texts ...string) {
	t.Helper()
	var body string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		body = log.Page(t, page)
		missing := false
		for _, text := range texts {
			missing = missing || !strings.Contains(body, text)
		}
		if !missing {
			return
		}
	}
	t.Errorf("%s does not contain %q\n%s", page, texts, body)
}

// TestRunPair runs two trustees. The active one brings the passive one up to date, and accepts a deposit then. The end
// of the active one closes its connections to the passive one.
func TestRunPair(t *testing.T) {
	s := newSite(t, true)
	_, active, passive := s.follow()
	var logA, logB hosttest.Log
	active.Log, passive.Log = logA.Logger(), logB.Logger()
	_, stopB := hosttest.Start(t, passive.ReadyFile, func(ctx context.Context) error { return Run(ctx, passive) })
	defer stopB()
	url, stopA := hosttest.Start(t, active.ReadyFile, func(ctx context.Context) error { return Run(ctx, active) })
	eventually(t, &logA, "/metrics", "\nclaviger_trustee_active 1\n", "\nclaviger_trustee_synced 1\n",
		"\nclaviger_trustee_alone 0\n", "\nclaviger_trustee_epoch 1\n", "\nclaviger_trustee_change ")
	s.register(url)
	s.put(s.connect(url), "l", "x")
	logA.Contains(t, "/readyz", `"the other trustee"`, `"ready": true`)
	logB.Contains(t, "/metrics", "\nclaviger_trustee_active 0\n", "\nclaviger_trustee_synced 0\n",
		"\nclaviger_trustee_deposits 1\n")
	stopA()
	eventually(t, &logB, "/metrics", "\nclaviger_http_connections 0\n")
}

// TestFiguresWithoutStore checks that a figure of the store is left out if the store cannot be read. A 0 would be
// wrong.
func TestFiguresWithoutStore(t *testing.T) {
	s := newSite(t, true)
	pair, closePeer, err := replica.Open(t.Context(), s.folder, s.store, replica.Pair{URL: "https://127.0.0.1:1",
		Cert: filepath.Join(s.dir, trustee.TLSCert), First: server.RoleActive}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer closePeer()
	served, err := serverTLS(s.dir, false, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	r := &running{folder: s.folder, store: s.store, tls: served, replica: pair,
		connections: web.NewConnections(web.ConnectionLimits{Total: 7}, slog.New(slog.DiscardHandler))}
	figures := []string{"claviger_trustee_deposits ", "claviger_trustee_deposits_deleted ", "claviger_trustee_active ",
		"claviger_trustee_change "}
	scrape := func() string {
		page := httptest.NewRecorder()
		cfg := server.Config{Store: s.store}
		console.New(console.Config{Log: slog.New(slog.DiscardHandler), Metrics: r.metrics(&cfg)},
			http.NotFoundHandler()).ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		return page.Body.String()
	}
	page := scrape()
	for _, name := range append(figures, "claviger_http_connections_max 7", "claviger_build_info{",
		"claviger_certificate_expiry_seconds{") {
		if !strings.Contains(page, "\n"+name) {
			t.Errorf("%s is not in\n%s", name, page)
		}
	}
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	page = scrape()
	for _, name := range figures {
		if strings.Contains(page, "\n"+name) {
			t.Errorf("%s is there, although the store is closed", name)
		}
	}
}

// TestRunCloses checks that nothing of a server is left after its end: neither its console, nor its connections to the
// Key HSM.
func TestRunCloses(t *testing.T) {
	s := newSite(t, true)
	c, stopHSM := newKeyHSM(t, softhsmtest.New(t), "").trust(s).start()
	defer stopHSM()
	var log hosttest.Log
	c.Log = log.Logger()
	before := goleak.IgnoreCurrent()
	_, stop := s.start(c)
	log.Contains(t, "/readyz", `"ready": true`)
	stop()
	goleak.VerifyNone(t, before)
	for _, text := range []string{"msg=claviger version=", "deposits are wrapped by the Key HSM"} {
		if !strings.Contains(log.String(), text) {
			t.Errorf("%q is not in the log:\n%s", text, &log)
		}
	}
	if strings.Contains(log.String(), "not all deposits can be opened") {
		t.Errorf("log:\n%s", &log)
	}
}

// blocking is a handler of a log that waits with one message.
type blocking struct {
	slog.Handler
	message       string
	began, resume chan struct{}
}

func (b *blocking) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == b.message {
		close(b.began)
		<-b.resume
	}
	return b.Handler.Handle(ctx, r)
}

// TestRunWaits checks that a server warns of the end of its certificate, and that Run ends only after its tasks in the
// background.
func TestRunWaits(t *testing.T) {
	s := newSite(t, true)
	cert, key, err := keystore.SelfSigned("127.0.0.1", []string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{trustee.TLSCert: cert, trustee.TLSKey: key} {
		if err := os.WriteFile(filepath.Join(s.dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	b := &blocking{slog.NewTextHandler(&log, nil), "the server's certificate must be renewed", make(chan struct{}),
		make(chan struct{})}
	c := s.config(Config{Log: slog.New(b)})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, c) }()
	select {
	case <-b.began:
	case err := <-ended:
		t.Fatalf("the server ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("no warning")
	}
	cancel()
	select {
	case <-ended:
		t.Error("Run ended before a task in the background")
	case <-time.After(500 * time.Millisecond):
	}
	close(b.resume)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if cure := "replace " + filepath.Join(s.dir, trustee.TLSCert); !strings.Contains(log.String(), cure) {
		t.Errorf("%q is not in the log:\n%s", cure, &log)
	}
}

// TestHangup checks that SIGHUP does not end a server.
func TestHangup(t *testing.T) {
	s := newSite(t, true)
	var log hosttest.Log
	url, stop := s.start(Config{Log: log.Logger()})
	defer stop()
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); !strings.Contains(log.String(), "SIGHUP: nothing to do"); {
		if time.Now().After(end) {
			t.Fatalf("log:\n%s", &log)
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.register(url)
}
