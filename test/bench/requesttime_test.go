package bench

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger"
	"claviger/bench"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms"
	"claviger/libcrypto"
	"claviger/pkcs11"
	"claviger/test/hadoop"
)

var requestTime = flag.Bool("request-time", false, "measure where the time of a request goes, for a minute; with "+
	"-write, write docs/performance/request-time.md")

// The role of a child that serves a KMS and writes a CPU profile of the time between two SIGUSR1.
const roleProfiled = "profiled"

// The environment variables of that child: its configuration folder, its ready file, and the file of its profile.
const confEnv, readyEnv, profileEnv = "CLAVIGER_BENCH_CONF", "CLAVIGER_BENCH_READY", "CLAVIGER_BENCH_PROFILE"

func serveProfiled() error {
	toggle := make(chan os.Signal, 1)
	signal.Notify(toggle, syscall.SIGUSR1)
	go func() {
		<-toggle
		file, err := os.Create(os.Getenv(profileEnv) + ".part")
		if err == nil {
			err = pprof.StartCPUProfile(file)
		}
		if err != nil {
			panic(err)
		}
		<-toggle
		pprof.StopCPUProfile()
		if err := os.Rename(file.Name(), os.Getenv(profileEnv)); err != nil {
			panic(err)
		}
	}()
	return kms.Serve(context.Background(), kms.Options{Dir: os.Getenv(confEnv), ReadyFile: os.Getenv(readyEnv),
		Log: slog.New(slog.DiscardHandler), Level: new(slog.LevelVar)})
}

// startProfiled starts a KMS on SoftHSM as a child.
func startProfiled(t *testing.T, ssl hadoop.Conf) (_ *target, _ *hadoop.Process, profile string) {
	t.Helper()
	o := options(t, true, nil, ssl)
	dir := t.TempDir()
	ready, profile := filepath.Join(dir, "ready"), filepath.Join(dir, "profile")
	cmd := child(t, roleProfiled, append(o.Env, confEnv+"="+o.Conf, readyEnv+"="+ready, profileEnv+"="+profile)...)
	hadoop.Conf{"hadoop.kms.http.port": fmt.Sprint(hadoop.FreePorts(t, 1)[0])}.Write(t,
		filepath.Join(o.Conf, "core-site.xml"))
	p := hadoop.Start(t, roleProfiled, cmd)
	var url string
	p.WaitFor("its ready file", func() bool {
		b, err := os.ReadFile(ready)
		url = strings.TrimSpace(string(b))
		return err == nil && strings.HasSuffix(string(b), "\n")
	})
	return newTarget(t, url, p.PID(), 0), p, profile
}

// child returns this binary in a role.
func child(t testing.TB, role string, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), exe)
	cmd.Env = append(os.Environ(), append(env, roleEnv+"="+role)...)
	return cmd
}

// timedLoad is a load whose time is measured.
type timedLoad struct {
	name, short string
	secure      bool
	token       bool // a delegation token; otherwise the cookie
	fresh       bool // a new connection for each request
	batch       bool
	connections int
	n           int
}

var timedLoads = []timedLoad{
	{name: "http, decrypt, 256 connections", short: "http", connections: 256, n: 150_000},
	{name: "https, decrypt, token, 16 connections", short: "token", secure: true, token: true, connections: 16,
		n: 80_000},
	{name: "https, decrypt, new connection, token", short: "new", secure: true, token: true, fresh: true,
		connections: 16, n: 6_000},
	{name: "https, batch of 1,000, 4 connections", short: "batch", secure: true, batch: true, connections: 4,
		n: 5_000},
}

// requestCost is the processor time of one request, in microseconds.
type requestCost struct {
	server, worker, empty float64
	layers                map[string]float64 // of server
}

// TestRequestTime measures the processor time of requests: of a KMS, layer by layer, and of an empty handler of
// net/http under the same load.
func TestRequestTime(t *testing.T) {
	if !*requestTime {
		t.Skip("it takes a minute; `make bench` runs it")
	}
	costs := make([]requestCost, len(timedLoads))
	for i, l := range timedLoads {
		t.Log(l.name)
		costs[i] = l.measure(t)
	}
	table, svg := costTable(costs)
	limits := limitsTable(t)
	if !*writePage {
		t.Logf("\n%s\n%s", table, limits)
		return
	}
	page := filepath.Join(hadoop.Root(), "docs", "performance", "request-time.md")
	replaceBetween(t, page, "costs", table)
	replaceBetween(t, page, "limits", limits)
	writePlot(t, "request-time.svg", svg)
}

func (l timedLoad) measure(t *testing.T) (c requestCost) {
	var ssl hadoop.Conf
	if l.secure {
		ssl, _ = keyPair(t, "rsa")
	}
	ours, p, profile := startProfiled(t, ssl)
	empty := startEmpty(t, l.secure)
	path, body, batchPath, batch := ours.requests(t)
	if l.batch {
		path, body = batchPath, batch
	}
	if l.token {
		ours.token = ours.delegation(t)
		empty.token = ours.token
	}
	for _, s := range []*target{ours, empty} {
		s.transport.DisableKeepAlives = l.fresh
		s.send(t, http.MethodPost, path, body, l.n/4, l.connections) // warm-up
	}
	signalChild(t, p)
	c.server, c.worker = l.cost(t, ours, path, body)
	signalChild(t, p)
	c.empty, _ = l.cost(t, empty, path, body)
	p.WaitFor("its profile", func() bool { _, err := os.Stat(profile); return err == nil })
	c.layers = layersOf(t, profile)
	return c
}

func signalChild(t *testing.T, p *hadoop.Process) {
	t.Helper()
	if err := syscall.Kill(p.PID(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
}

// cost sends the requests of a load and returns the processor time of each, in the server's main process and in the
// others.
func (l timedLoad) cost(t *testing.T, s *target, path string, body []byte) (main, others float64) {
	t.Helper()
	each := func(p bench.Processes) time.Duration {
		d, ok := p.CPU()
		if !ok && len(p) > 0 {
			t.Fatalf("no processor time of the processes %v", p)
		}
		return d
	}
	before, beforeOthers := each(s.pids[:1]), each(s.pids[1:])
	s.send(t, http.MethodPost, path, body, l.n, l.connections)
	micros := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(l.n) }
	return micros(each(s.pids[:1]) - before), micros(each(s.pids[1:]) - beforeOthers)
}

// layerOrder is the order of the layers in the table and in the plot.
var layerOrder = []string{layerSockets, layerHTTP, layerSignal, layerTLS, layerRequest, layerAuth, layerWire, layerKeys,
	layerAudit, layerToken, layerWorker, layerGarbage, layerSchedule, layerOther}

// costTable returns the table and the plot of the costs.
func costTable(costs []requestCost) (table, svg string) {
	var b bytes.Buffer
	row := func(name string, cell func(requestCost) string) {
		fmt.Fprintf(&b, "| %s |", name)
		for _, c := range costs {
			fmt.Fprintf(&b, " %s |", cell(c))
		}
		fmt.Fprintln(&b)
	}
	b.WriteString("| microseconds |")
	for _, l := range timedLoads {
		fmt.Fprintf(&b, " %s |", l.short)
	}
	fmt.Fprintf(&b, "\n|---%s|\n", strings.Repeat("|---", len(costs)))
	var bars []bar
	for _, layer := range layerOrder {
		row(layer, func(c requestCost) string { return fmt.Sprintf("%.1f", c.server*c.layers[layer]) })
	}
	row("**the server's process**", func(c requestCost) string { return fmt.Sprintf("**%.0f**", c.server) })
	row("the process of the HSM's library, with SoftHSM", func(c requestCost) string {
		return fmt.Sprintf("%.1f", c.worker)
	})
	row("an empty handler of net/http", func(c requestCost) string { return fmt.Sprintf("%.0f", c.empty) })
	row("empty handler / the server's process", func(c requestCost) string {
		return fmt.Sprintf("%.2f", c.empty/c.server)
	})
	for i, c := range costs {
		shares := bar{label: timedLoads[i].name, value: fmt.Sprintf("%.0f us", c.server)}
		for _, layer := range layerOrder {
			shares.parts = append(shares.parts, c.layers[layer])
		}
		bars = append(bars, shares)
	}
	return b.String(), plot("Where the processor time of a request goes (shares)", layerOrder, bars)
}

// limitsTable measures what no server on this machine can exceed.
func limitsTable(t *testing.T) string {
	t.Helper()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecdsaKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	fmt.Fprintln(&b, "| operation | microseconds | a second and core |\n|---|---|---|")
	line := func(name string, op func() error) {
		r := testing.Benchmark(func(b *testing.B) {
			for b.Loop() {
				if err := op(); err != nil {
					b.Fatal(err)
				}
			}
		})
		ns := float64(r.T.Nanoseconds()) / float64(r.N)
		fmt.Fprintf(&b, "| %s | %.1f | %s |\n", name, ns/1000, thousands(1e9/ns))
	}
	digest := sha256.Sum256([]byte("handshake"))
	sign := func(s crypto.Signer) func() error {
		return func() error {
			_, err := s.Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash,
				Hash: crypto.SHA256})
			return err
		}
	}
	line("a signature by RSA-2048, Go", sign(rsaKey))
	if s, err := libcrypto.NewSigner(rsaKey, func(err error) { t.Error(err) }); err != nil {
		t.Log(err)
	} else {
		line("a signature by RSA-2048, OpenSSL's libcrypto", sign(s))
	}
	line("a signature by ECDSA P-256, Go", func() error {
		_, err := ecdsaKey.Sign(rand.Reader, digest[:], crypto.SHA256)
		return err
	})
	token, id, check := tokenWithKey(t)
	for _, edeks := range []int{1, 64, 1000} {
		blocks := make([]byte, edeks*blocksPerEDEK*claviger.IVSize)
		line(fmt.Sprintf("one proved encryption by `pkcs11` and SoftHSM in the process, 256-bit EDEKs: %d", edeks),
			func() error { return token.EncryptAlone(t.Context(), id, "limit", check, blocks) })
	}
	return b.String()
}

// blocksPerEDEK is the number of counter blocks of an EDEK of a 256-bit DEK.
const blocksPerEDEK = 2

// tokenWithKey opens a SoftHSM token in this process, and makes a key.
func tokenWithKey(t *testing.T) (token *pkcs11.Token, id, check []byte) {
	t.Helper()
	made := softhsmtest.New(t)
	file := pkcs11.FileConfig{Module: made.Module, Token: made.Label, PINFile: made.PINFile, Profile: pkcs11.SoftHSM}
	cfg, err := file.Config(filepath.Join(t.TempDir(), "limit.keystore"))
	if err != nil {
		t.Fatal(err)
	}
	if token, err = pkcs11.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	})
	id = []byte("limit")
	if err := token.GenerateKey(t.Context(), id, "limit", 256); err != nil {
		t.Fatal(err)
	}
	if check, err = token.CheckValue(t.Context(), id, "limit"); err != nil {
		t.Fatal(err)
	}
	return token, id, check
}

// delegation gets a delegation token for the query of requests.
func (t *target) delegation(tb testing.TB) string {
	tb.Helper()
	answer, err := t.do(http.MethodGet, "/v1/?op=GETDELEGATIONTOKEN&renewer=bench", nil)
	if err != nil {
		tb.Fatal(err)
	}
	var made struct{ Token struct{ URLString string } }
	if err := json.Unmarshal(answer, &made); err != nil || made.Token.URLString == "" {
		tb.Fatalf("no token in %s: %v", answer, err)
	}
	return made.Token.URLString
}

// anyCertificate is the TLS of the benchmark's client: its servers have certificates that were made for the test.
func anyCertificate() *tls.Config { return &tls.Config{InsecureSkipVerify: true} } //nolint:gosec // loopback, made here
