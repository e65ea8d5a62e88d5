package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/provider/kmsclient"
	"claviger/terminal"
)

func TestMain(m *testing.M) {
	minDuration = shortest
	os.Exit(m.Run())
}

// shortest is the length of a round in these tests.
const shortest = 100 * time.Millisecond

// serveKMS runs a KMS with a keystore file and returns its URL.
func serveKMS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI:                "jceks://file@" + filepath.Join(dir, "kms.keystore"),
		hadoopconf.MetastoreURI:               "sqlite://" + filepath.Join(dir, "c.db"),
		"hadoop.kms.http.host":                "127.0.0.1",
		"hadoop.kms.key.authorization.enable": "false",
		"claviger.audit.file":                 filepath.Join(dir, "audit.log"),
	})
	return kmstest.Serve(t, func(ctx context.Context, ready string) error {
		return kms.Serve(ctx, kms.Options{Dir: dir, ReadyFile: ready, Log: slog.New(slog.DiscardHandler),
			Level: new(slog.LevelVar)})
	})
}

// command runs the command with a command line and returns its report.
func command(t *testing.T, args ...string) (*Report, string, error) {
	t.Helper()
	var o Options
	var out bytes.Buffer
	cmd := &cobra.Command{Use: Use, SilenceErrors: true, SilenceUsage: true, Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, urls []string) error {
			o.Client = kmsclient.Options{User: "bench"}
			return Run(context.Background(), &o, urls, io.Discard)
		}}
	o.Define(cmd)
	cmd.SetOut(&out)
	cmd.SetArgs(append([]string{"--duration", shortest.String(), "--warm-up", "0s", "--quiet"}, args...))
	err := cmd.Execute()
	var r Report
	if strings.HasPrefix(out.String(), "{") {
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
	}
	return &r, out.String(), err
}

// keys returns the names of the KMS's keys.
func keys(t *testing.T, base string) []string {
	t.Helper()
	p, err := kmsclient.New(strings.Replace(base, "http://", "kms://http@", 1), kmsclient.Options{User: "bench"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	names, err := p.Keys(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestLoads: each load of two KMSs is measured, with the processor time of this process, and leaves no key behind.
func TestLoads(t *testing.T) {
	one, two := serveKMS(t), serveKMS(t)
	page := filepath.Join(t.TempDir(), "report.html")
	r, _, err := command(t, one, two, "--load", "decrypt,generate,batch,mixed", "--rounds", "1", "--connections", "2",
		"-o", "json", "--html", page)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Measurements) != 8 || len(r.Ratios) != 4 || len(r.Missed) != 0 {
		t.Errorf("%d measurements, %d ratios, missed %q", len(r.Measurements), len(r.Ratios), r.Missed)
	}
	units := map[string]int{loadDecrypt: 1, loadGenerate: generateEDEKs, loadBatch: batchEDEKs}
	for _, m := range r.Measurements {
		q := m.Latency
		if m.Requests == 0 || m.Failures != 0 || m.PerCPUSecond == 0 || m.Memory == 0 || q.P50 > q.P99 ||
			q.P99 > q.Max {
			t.Errorf("%s: %+v", m.Load, m)
		}
		if n := units[m.Load]; n != 0 && m.EDEKs != n*m.Requests {
			t.Errorf("%s: %d EDEKs in %d requests", m.Load, m.EDEKs, m.Requests)
		}
	}
	for _, base := range []string{one, two} {
		if names := keys(t, base); len(names) != 0 {
			t.Errorf("keys %q are left behind", names)
		}
	}
	html, err := os.ReadFile(page)
	if err != nil || !strings.Contains(string(html), "</html>") || strings.Count(string(html), "<svg") != 12 {
		t.Errorf("%v, %d plots", err, strings.Count(string(html), "<svg"))
	}
}

// TestToken: a delegation token takes the place of the cookie, on new connections too.
func TestToken(t *testing.T) {
	base := serveKMS(t)
	var tokens, cookies, connections atomic.Int64
	proxy := newProxy(t, base, func(r *http.Request) {
		if strings.Contains(r.URL.RawQuery, "eek_op=generate&num_keys=350") {
			if r.Header.Get("X-Hadoop-Delegation-Token") != "" {
				tokens.Add(1)
			}
			if r.Header.Get("Cookie") != "" {
				cookies.Add(1)
			}
		}
	}, nil)
	proxy.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	proxy.Start()
	r, _, err := command(t, proxy.URL+"/kms", "--load", "generate", "--auth", "token", "--connect", "new", "--rounds",
		"1", "--connections", "2", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	n := int64(r.Measurements[0].Requests)
	if tokens.Load() < n || cookies.Load() != 0 || connections.Load() < n {
		t.Errorf("%d requests: %d with a token, %d with a cookie, %d connections", n, tokens.Load(), cookies.Load(),
			connections.Load())
	}
}

// newProxy returns a proxy of the KMS at base. The caller starts the proxy. see gets each request, change each answer.
func newProxy(t *testing.T, base string, see func(*http.Request), change func(*http.Response) error) *httptest.Server {
	t.Helper()
	to, err := url.Parse(strings.TrimSuffix(base, "/kms"))
	if err != nil {
		t.Fatal(err)
	}
	p := &httputil.ReverseProxy{ErrorLog: log.New(io.Discard, "", 0),
		ModifyResponse: change, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if see != nil {
			see(r)
		}
		p.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// material finds the first letter of a DEK in an answer.
var material = regexp.MustCompile(`"material"\s*:\s*"(.)`)

// TestWrongDEK: a KMS that answers a decrypt with another DEK, once, fails the command.
func TestWrongDEK(t *testing.T) {
	for what, args := range map[string][]string{"decrypt": {"--load", loadDecrypt}, "batch": {"--load", loadBatch},
		"generate":                     {"--load", loadGenerate},
		"in a warm-up":                 {"--warm-up", "100ms"},
		"in a sweep's warm-up":         {"--sweep", "--warm-up", "100ms"},
		"in a sweep without a warm-up": {"--sweep"}} {
		t.Run(what, func(t *testing.T) {
			var n atomic.Int64
			proxy := newProxy(t, serveKMS(t), nil, func(r *http.Response) error {
				// The first decrypts prepare the load and compare before it.
				decrypt := strings.Contains(r.Request.URL.RawQuery, "eek_op=decrypt")
				if !decrypt || n.Add(1) != decryptEDEKs+2*checkedEDEKs+1 {
					return nil
				}
				body, err := io.ReadAll(r.Body)
				if err != nil {
					return err
				}
				first := &body[material.FindSubmatchIndex(body)[2]]
				if *first == 'A' {
					*first = 'Q'
				} else {
					*first = 'A'
				}
				r.Body = io.NopCloser(bytes.NewReader(body))
				return nil
			})
			proxy.Start()
			_, _, err := command(t, append(args, proxy.URL+"/kms", "--rounds", "1", "--connections", "1")...)
			if err == nil || !strings.Contains(err.Error(), "WRONG") {
				t.Errorf("%v, want a wrong DEK", err)
			}
		})
	}
}

// TestFailures: failed requests are counted with their reason, and too many of them end the load. Even then
// the key is removed.
func TestFailures(t *testing.T) {
	base := serveKMS(t)
	var begun, every atomic.Int64
	every.Store(10)
	proxy := newProxy(t, base, nil, func(r *http.Response) error {
		if strings.Contains(r.Request.URL.RawQuery, "num_keys=350") && begun.Add(1)%every.Load() == 0 {
			r.StatusCode = http.StatusServiceUnavailable
		}
		return nil
	})
	proxy.Start()
	args := []string{proxy.URL + "/kms", "--load", "generate", "--rounds", "1", "--connections", "8", "--duration",
		"1s"}
	r, _, err := command(t, append(args, "-o", "json", "--max-failures", "0")...)
	if !errors.As(err, new(*claviger.RefusedError)) || r.Measurements[0].Failures == 0 || len(r.Missed) == 0 {
		t.Errorf("%v, %+v", err, r)
	}
	every.Store(1)
	if _, _, err = command(t, args...); !errors.Is(err, errTooManyFailures) || !strings.Contains(err.Error(), "503") {
		t.Errorf("%v, want too many failures with their reason", err)
	}
	if names := keys(t, base); len(names) != 0 {
		t.Errorf("keys %q are left behind", names)
	}
}

// TestOpenLoop: the latency shows that a server stalls: requests that are due during the stall count their waiting
// time.
func TestOpenLoop(t *testing.T) {
	const stall = 300 * time.Millisecond
	var n atomic.Int64
	proxy := newProxy(t, serveKMS(t), func(r *http.Request) {
		if strings.Contains(r.URL.RawQuery, "num_keys=350") && n.Add(1) == 10 {
			time.Sleep(stall) // the server stalls
		}
	}, nil)
	proxy.Start()
	r, _, err := command(t, proxy.URL+"/kms", "--load", "generate", "--rounds", "1", "--connections", "1", "--rate",
		"50", "--duration", "1s", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	// 15 of about 50 requests were due during the stall, so a tenth of all waited for most of it.
	m := r.Measurements[0]
	if m.Latency.P90 < 100 || m.Lateness == nil || m.Lateness.Max == 0 || m.Requests < 40 {
		t.Errorf("%+v", m)
	}
}

// TestSweep: the number of connections doubles up to the limit, and the knee is one of the steps.
func TestSweep(t *testing.T) {
	r, _, err := command(t, serveKMS(t), "--load", "decrypt", "--sweep", "--connections", "5", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var steps []int
	for _, m := range r.Measurements {
		steps = append(steps, m.Connections)
	}
	if len(steps) != 4 || steps[0] != 1 || steps[2] != 4 || steps[3] != 5 || len(r.Knees) != 1 ||
		r.Knees[0].Connections == 0 {
		t.Errorf("steps %v, knees %+v", steps, r.Knees)
	}
}

// TestCommandLine: a wrong command line, or another host without --i-mean-it, is refused before any request.
func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{
		{"https://kms.example.com:9600/kms"}, {"http://192.0.2.7:9600/kms"}, {"ftp://localhost/kms"},
		{"kms://http@localhost;localhost:9600/kms"}, {"http://localhost:9600/kms", "--load", "decrypts"},
		{"http://localhost:9600/kms", "--connections", "0"}, {"http://localhost:9600/kms", "--rate", "-1"},
		{"http://localhost:9600/kms", "--rate", "NaN"}, {"http://localhost:9600/kms", "--auth", "none"},
		{"http://localhost:9600/kms", "--connect", "often"}, {"http://localhost:9600/kms", "--rounds", "0"},
		{"http://localhost:9600/kms", "--rounds", "101"}, {"http://localhost:9600/kms", "--connections", "4097"},
		{"http://localhost:9600/kms", "--duration", "10ms"}, {"http://localhost:9600/kms", "--duration", "2h"},
		{"http://localhost:9600/kms", "--warm-up", "-1s"}, {"http://localhost:9600/kms", "--warm-up", "2h"},
		{"http://localhost:9600/kms", "--p99", "-1s"}, {"http://localhost:9600/kms", "--rate", "2e6"},
	} {
		if _, _, err := command(t, args...); !errors.As(err, new(*terminal.UsageError)) {
			t.Errorf("%q: %v, want an error of the command line", args, err)
		}
	}
	o := Options{Loads: loads, Connections: 1, Duration: time.Second, Rounds: 1, Auth: authCookie, Connect: connectKeep,
		AllowedHosts: []string{"192.0.2.7"}}
	if _, err := o.check([]string{"http://192.0.2.7:9600/kms"}); err != nil {
		t.Error(err)
	}
}

// TestMedianRound: the median round is chosen by the requests per CPU-second. The ratio compares the rounds of two
// servers pair by pair.
func TestMedianRound(t *testing.T) {
	of := func(work ...float64) (rounds []*Measurement) {
		for _, w := range work {
			rounds = append(rounds, &Measurement{PerCPUSecond: w})
		}
		return rounds
	}
	if m := medianRound(of(10, 30, 20)); m.PerCPUSecond != 20 {
		t.Errorf("the median is %v", m.PerCPUSecond)
	}
	if r := ratio(of(10, 30, 20), of(10, 10, 4)); r.Median != 3 || r.Low != 1 || r.High != 5 {
		t.Errorf("%+v", r)
	}
}
