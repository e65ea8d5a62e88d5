package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"claviger"
	"claviger/internal/porttest"
	"claviger/terminal"
	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
)

// host is one of two trustees: a process that a test kills and starts again.
type host struct {
	t         *testing.T
	dir, addr string
	metrics   string
	peer      *host // nil: PostgreSQL has the second copy
	role      string
	cmd       *exec.Cmd
	log       bytes.Buffer
}

func (h *host) url() string { return "https://" + h.addr }

// freeAddr returns a free address of loopback. Each of two trustees needs the address of the other before that one
// runs.
func freeAddr(t *testing.T) string {
	t.Helper()
	address, err := porttest.Address()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// twoHosts makes the folders of two trustees with one identity, as rsync would copy them.
func twoHosts(t *testing.T) (a, b *host) {
	t.Helper()
	id, err := trustee.NewIdentity("keytrustee", "keytrustee Server Key", "keytrustee@h", 2048, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a = &host{t: t, dir: filepath.Join(t.TempDir(), ".keytrustee"), addr: freeAddr(t), metrics: freeAddr(t),
		role: "active"}
	b = &host{t: t, dir: filepath.Join(t.TempDir(), ".keytrustee"), addr: freeAddr(t), metrics: freeAddr(t),
		role: "passive", peer: a}
	a.peer = b
	if _, err := trustee.NewFolder(a.dir, id); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(a.dir, f.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(b.dir, f.Name()), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range []*host{a, b} {
		var said strings.Builder
		if err := initTrustee(t.Context(), terminal.To(&said), h.dir,
			location.InitOptions{Hosts: []string{"127.0.0.1"}}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.kill)
	}
	store, err := sqlite.Open(t.Context(), filepath.Join(a.dir, location.FileName), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.AddOrg(t.Context(), server.Org{Name: "ORG", UUID: "u", Auth: "walrus",
		Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func (h *host) start() {
	h.t.Helper()
	ready := filepath.Join(h.t.TempDir(), "ready")
	args := []string{"trustee", "serve", "--confdir", h.dir, "--listen", h.addr, "--metrics-listen", h.metrics,
		"--ready-file", ready}
	if h.peer != nil {
		args = append(args, "--peer", h.peer.url(), "--peer-cert", filepath.Join(h.peer.dir, trustee.TLSCert),
			"--role", h.role)
	}
	h.cmd = exec.Command("claviger", args...) //nolint:noctx // kill ends it
	h.cmd.Stdout, h.cmd.Stderr = &h.log, &h.log
	// If the test binary itself is killed, no cleanup runs.
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	for range 6000 {
		if text, err := os.ReadFile(ready); err == nil && len(text) > 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.kill()
	h.t.Fatalf("the trustee did not start:\n%s", &h.log)
}

// kill ends the process at once, like a power failure.
func (h *host) kill() {
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Kill() // it may have ended already
	_ = h.cmd.Wait()
	h.cmd = nil
}

// do runs a command of the operator on this host.
func (h *host) do(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	//nolint:gosec // this binary
	out, err := exec.CommandContext(ctx, "claviger", slices.Concat([]string{"trustee"}, args,
		[]string{"--confdir", h.dir, "--url", h.url()})...).CombinedOutput()
	return string(out), err
}

func (h *host) must(args ...string) string {
	h.t.Helper()
	out, err := h.do(args...)
	if err != nil {
		h.t.Fatalf("claviger trustee %s: %v\n%s", args, err, out)
	}
	return out
}

// await waits until the status fulfils a condition.
func (h *host) await(what string, digest bool, ok func(*replica.StatusReport) bool) {
	h.t.Helper()
	args := []string{"status", "-o", "json"}
	if digest {
		args = append(args, "--digest")
	}
	var out string
	for begun := time.Now(); time.Since(begun) < time.Minute; time.Sleep(100 * time.Millisecond) {
		var err error
		var failed *exec.ExitError
		if out, err = h.do(args...); err != nil && (!errors.As(err, &failed) || failed.ExitCode() != exitRefused) {
			continue
		}
		var r replica.StatusReport
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			h.t.Fatalf("%v: %s", err, out)
		}
		if ok(&r) {
			return
		}
	}
	h.t.Fatalf("%s did not come about: %s\n%s\nthe other:\n%s", what, out, &h.log, &h.peer.log)
}

func (h *host) awaitEqual(what string) {
	h.t.Helper()
	h.await(what, true, func(r *replica.StatusReport) bool {
		return r.Synced && !r.Alone && r.Peer != nil && r.Peer.Role == server.RolePassive && r.Digest != "" &&
			r.Digest == r.PeerDigest
	})
}

// load makes deposits at both trustees until it is stopped.
type load struct {
	t           *testing.T
	client      *trustee.Client
	acked       sync.Map // uuid: label
	count       atomic.Int64
	refused     atomic.Int64
	lastRefusal atomic.Value // the text of a refusal
	until       atomic.Int64 // workers pause when this number was acknowledged
	group       sync.WaitGroup
}

func startLoad(ctx context.Context, t *testing.T, c *trustee.Client) *load {
	l := &load{t: t, client: c}
	for w := range 4 {
		l.group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if l.count.Load() >= l.until.Load() {
					time.Sleep(5 * time.Millisecond)
					continue
				}
				label := fmt.Sprintf("deposit/%d/%d", w, n)
				uuid, err := c.Put(ctx, trustee.Deposit{Label: label, Content: []byte("content of " + label)}, "")
				switch {
				case err == nil:
					l.acked.Store(uuid, label)
					l.count.Add(1)
					time.Sleep(40 * time.Millisecond) // the operator's commands need the same cores
				case ctx.Err() == nil && !claviger.Is(err, claviger.Unavailable):
					t.Errorf("%s: %v", label, err)
				case ctx.Err() == nil:
					l.refused.Add(1)
					l.lastRefusal.Store(err.Error())
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}
	return l
}

// reach waits until n deposits are acknowledged. The load pauses at limit.
func (l *load) reach(n, limit int64) {
	l.t.Helper()
	l.until.Store(limit)
	for begun := time.Now(); l.count.Load() < n; time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > 30*time.Second {
			l.t.Fatalf("%d of %d deposits were acknowledged; %v", l.count.Load(), n, l.lastRefusal.Load())
		}
	}
}

// clientOfHosts returns the client with an identity at some hosts, the active one first.
func clientOfHosts(t *testing.T, id *trustee.Identity, hosts ...*host) *trustee.Client {
	t.Helper()
	cfg := trustee.ClientConfig{
		Identity: id, TLS: &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12},
		Timeout: 8 * time.Second}
	for _, h := range hosts {
		folder, err := trustee.LoadFolder(h.dir)
		if err != nil {
			t.Fatal(err)
		}
		pem, err := os.ReadFile(filepath.Join(h.dir, trustee.TLSCert))
		if err != nil || !cfg.TLS.RootCAs.AppendCertsFromPEM(pem) {
			t.Fatal(err)
		}
		cfg.Servers = append(cfg.Servers, trustee.Endpoint{URL: h.url(), Server: &folder.Identity.Party})
	}
	c, err := trustee.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// twoWithClient starts two trustees, which are equal, and registers a client of both.
func twoWithClient(t *testing.T) (a, b *host, id *trustee.Identity, c *trustee.Client) {
	t.Helper()
	a, b = twoHosts(t)
	a.start()
	b.start()
	a.awaitEqual("the first copy")
	id, err := trustee.NewIdentity("keytrustee", "client", "kms@h", 2048, time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	c = clientOfHosts(t, id, a, b)
	if active, err := c.Register(t.Context(), "ORG", "walrus", false); err != nil || !active {
		t.Fatalf("%t, %v", active, err)
	}
	return a, b, id, c
}

// TestTwoTrustees: 200 deposits are made. Meanwhile the passive trustee is killed, each trustee is promoted, the active
// one is killed, and both are killed. All acknowledged deposits can be read from both trustees, which are equal by
// digest.
func TestTwoTrustees(t *testing.T) {
	a, b, id, c := twoWithClient(t)
	ctx, cancel := context.WithCancel(t.Context())
	l := startLoad(ctx, t, c)
	defer func() { cancel(); l.group.Wait() }()

	// SIGHUP does not end a trustee, as with the other servers.
	for _, h := range []*host{a, b} {
		if err := h.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	killPassive(t, l, a, b)
	promoteEach(t, l, a, b)
	killActive(t, l, c, a, b)

	// Both are killed while deposits are made.
	l.until.Store(1000)
	time.Sleep(50 * time.Millisecond) // deposits are in progress then
	a.kill()
	b.kill()
	cancel()
	l.group.Wait()
	a.start()
	b.start()
	b.awaitEqual("equality after both were killed")
	for name, h := range map[string]*host{"one": a, "the other": b} {
		one := clientOfHosts(t, id, h)
		l.acked.Range(func(uuid, label any) bool {
			if d, err := one.Get(t.Context(), uuid.(string)); err != nil || d.Label != label ||
				string(d.Content) != "content of "+d.Label {
				t.Errorf("%s, from %s: %+v, %v", label, name, d, err)
			}
			return true
		})
	}
	a.wantMetrics("claviger_trustee_active 0\n", "claviger_trustee_synced 0\n")
	b.wantMetrics("claviger_trustee_active 1\n", "claviger_trustee_synced 1\n", "claviger_trustee_alone 0\n",
		"claviger_trustee_epoch 4\n")
	t.Logf("%d deposits acknowledged, %d refused; %s", l.count.Load(), l.refused.Load(), b.must("status"))
}

// killPassive kills b, the passive trustee. No deposit is acknowledged until the operator allows it.
func killPassive(t *testing.T, l *load, a, b *host) {
	t.Helper()
	l.reach(40, 60)
	b.kill()
	l.until.Store(1000)
	for begun := time.Now(); l.refused.Load() == 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > 20*time.Second {
			t.Fatal("no deposit was refused while the passive trustee was down")
		}
	}
	before := l.count.Load()
	time.Sleep(200 * time.Millisecond) // no deposit must be acknowledged in this time
	if text, _ := l.lastRefusal.Load().(string); l.count.Load() != before ||
		!strings.Contains(text, "claviger trustee alone on") {
		t.Errorf("%d deposits were acknowledged without the passive trustee; %s", l.count.Load()-before, text)
	}
	if out := a.must("alone", "on"); !strings.Contains(out, "active, epoch 1, alone true") {
		t.Error(out)
	}
	l.reach(before+30, before+40)
	a.await("being alone", false, func(r *replica.StatusReport) bool {
		return r.Alone && r.Peer == nil && r.PeerError != ""
	})
	b.start()
	a.awaitEqual("the passive trustee's return") // this ends alone
}

// promoteEach promotes b, and then a, while deposits are made. orgtool can write meanwhile.
func promoteEach(t *testing.T, l *load, a, b *host) {
	t.Helper()
	refused := l.refused.Load()
	l.reach(100, 1000)
	if out, err := command(t, "orgtool", "add", "--confdir", a.dir, "-n", "MORE"); err != nil {
		t.Errorf("orgtool: %v\n%s", err, out)
	}
	if out := b.must("promote"); !strings.Contains(out, "active, epoch 2, alone false") {
		t.Error(out)
	}
	l.reach(l.count.Load()+20, 1000)
	if out := a.must("promote"); !strings.Contains(out, "active, epoch 3, alone false") {
		t.Error(out)
	}
	now := l.count.Load()
	l.reach(now+20, now+30)
	// Each of the four clients waits for 3 s before a deposit is refused. More than two refusals for each client mean
	// that no trustee was active for long. This holds on a slow machine too.
	if n := l.refused.Load() - refused; n > 8 {
		t.Errorf("%d deposits were refused while the roles changed: %v", n, l.lastRefusal.Load())
	}
	a.awaitEqual("equality after both promotions")
}

// killActive kills a, the active trustee. b can still be read, and is promoted with --force.
func killActive(t *testing.T, l *load, c *trustee.Client, a, b *host) {
	t.Helper()
	l.until.Store(1000)
	time.Sleep(50 * time.Millisecond) // deposits are in progress then
	a.kill()
	l.acked.Range(func(uuid, label any) bool {
		if d, err := c.Get(t.Context(), uuid.(string)); err != nil || d.Label != label {
			t.Errorf("the passive trustee alone: %s: %v", label, err)
		}
		return false // one deposit is sufficient here
	})
	out, err := b.do("promote")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitRefused || !strings.Contains(out, "--force") {
		t.Errorf("%v: %s", err, out)
	}
	b.must("promote", "--force")
	b.must("alone", "on")
	l.reach(l.count.Load()+20, l.count.Load()+30)
	a.start() // in its old role
	b.awaitEqual("the return of the trustee that was active")
	l.reach(200, 230)
}

// wantMetrics checks that the metrics of a trustee have some lines.
func (h *host) wantMetrics(lines ...string) {
	h.t.Helper()
	resp, err := http.Get("http://" + h.metrics + "/metrics") //nolint:noctx // a server of this test
	if err != nil {
		h.t.Fatal(err)
	}
	figures, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	for _, line := range lines {
		if err != nil || !strings.Contains(string(figures), "\n"+line) {
			h.t.Errorf("%s metrics lack %q, %v:\n%s", h.role, line, err, figures)
		}
	}
}
