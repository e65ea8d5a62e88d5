package console_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"claviger/console"
	"claviger/internal/logtest"
	"claviger/metastore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// get sends a request to a handler and returns its answer.
func get(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

var otherPaths = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })

type ready struct {
	Ready  bool
	Checks []struct {
		Name, Error, Took string
		OK, Informational bool
	}
}

func readyz(t *testing.T, h http.Handler) (int, ready) {
	t.Helper()
	w := get(h, "GET", "/readyz")
	var r ready
	if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || w.Header().Get("Content-Type") != "application/json" ||
		w.Header().Get("Cache-Control") != "no-store" {
		t.Fatalf("%v %s: %v", w.Header(), w.Body, err)
	}
	return w.Code, r
}

func fails(text string) func(context.Context) error {
	return func(context.Context) error { return errors.New(text) }
}

func works(context.Context) error { return nil }

// TestPaths: the console answers its own paths and passes all others on.
func TestPaths(t *testing.T) {
	with := console.New(console.Config{Metrics: console.NewMetrics(nil)}, otherPaths)
	without := console.New(console.Config{}, otherPaths)
	for _, c := range []struct {
		h            http.Handler
		method, path string
		status       int
	}{
		{with, "GET", "/healthz", 200}, {with, "HEAD", "/healthz", 200}, {with, "POST", "/healthz", 405},
		{with, "GET", "/readyz", 200}, {with, "DELETE", "/readyz", 405},
		{with, "GET", "/metrics", 200}, {with, "PUT", "/metrics", 405},
		{without, "GET", "/metrics", http.StatusTeapot},
		{with, "GET", "/kms/v1/keys/names", http.StatusTeapot}, {with, "POST", "/", http.StatusTeapot},
		{with, "GET", "/healthz/", http.StatusTeapot}, {with, "GET", "//healthz", http.StatusTeapot},
	} {
		w := get(c.h, c.method, c.path)
		if w.Code != c.status || (w.Code == 405) != (w.Header().Get("Allow") == "GET, HEAD") {
			t.Errorf("%s %s: %d %v", c.method, c.path, w.Code, w.Header())
		}
	}
}

// TestMethods: each page answers GET and HEAD only.
func TestMethods(t *testing.T) {
	h := console.New(console.Config{Metrics: console.NewMetrics(nil)}, http.NotFoundHandler())
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/none"} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND",
			"get", "FOO"} {
			want := http.StatusMethodNotAllowed
			switch {
			case path == "/none":
				want = http.StatusNotFound
			case method == "GET" || method == "HEAD":
				want = http.StatusOK
			}
			if w := get(h, method, path); w.Code != want ||
				(want == http.StatusMethodNotAllowed) == (w.Header().Get("Allow") == "") {
				t.Errorf("%s %s: %d %v", method, path, w.Code, w.Header())
			}
		}
	}
}

// TestReady: the status is 503 if a check fails that is not informational.
func TestReady(t *testing.T) {
	informational := console.Check{Name: "source", Informational: true, Run: fails("circuit breaker open")}
	for _, c := range []struct {
		what   string
		checks []console.Check
		status int
		errors []string
	}{
		{"no checks", nil, 200, nil},
		{"all is well", []console.Check{{Name: "provider", Run: works}}, 200, []string{""}},
		{"only an informational check fails", []console.Check{{Name: "provider", Run: works}, informational}, 200,
			[]string{"", "circuit breaker open"}},
		{"a check that is not informational fails", []console.Check{
			{Name: "provider", Run: fails("CKR_DEVICE_REMOVED")}, {Name: "audit", Run: works}, informational}, 503,
			[]string{"CKR_DEVICE_REMOVED", "", "circuit breaker open"}},
	} {
		status, r := readyz(t, console.New(console.Config{Checks: c.checks}, otherPaths))
		var texts []string
		for i, check := range r.Checks {
			texts = append(texts, check.Error)
			if check.Name != c.checks[i].Name || check.OK != (check.Error == "") ||
				check.Informational != c.checks[i].Informational || check.Took == "" {
				t.Errorf("%s: %+v", c.what, check)
			}
		}
		if status != c.status || r.Ready != (status == 200) || !slices.Equal(texts, c.errors) {
			t.Errorf("%s: %d %+v", c.what, status, r)
		}
	}
}

// TestManyProbes: requests at the same time share one run of a check. The check runs again when
// its result is too old.
func TestManyProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		h := console.New(console.Config{Checks: []console.Check{{Name: "hsm", Run: func(context.Context) error {
			time.Sleep(100 * time.Millisecond)
			if runs.Add(1) > 1 {
				return errors.New("gone")
			}
			return nil
		}}}}, otherPaths)
		probe := func(want int) {
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if w := get(h, "GET", "/readyz"); w.Code != want {
						t.Errorf("%d %s", w.Code, w.Body)
					}
				})
			}
			wg.Wait()
		}
		probe(200)
		time.Sleep(500 * time.Millisecond)
		probe(200)
		if n := runs.Load(); n != 1 {
			t.Errorf("the check ran %d times for 100 probes within a second", n)
		}
		time.Sleep(time.Second)
		probe(503)
		if n := runs.Load(); n != 2 {
			t.Errorf("the check ran %d times, want 2", n)
		}
	})
}

// TestStuckCheck: /readyz answers in time although a check ignores its context, and does not
// start the check again while it runs.
func TestStuckCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var runs atomic.Int32
		h := console.New(console.Config{Checks: []console.Check{{Name: "hsm",
			Run: func(context.Context) error { runs.Add(1); <-release; return nil }}, {Name: "audit", Run: works}}},
			otherPaths)
		for range 3 {
			began := time.Now()
			status, r := readyz(t, h)
			if took := time.Since(began); status != 503 || r.Checks[0].Error != "no answer yet" || !r.Checks[1].OK ||
				took > 5*time.Second {
				t.Errorf("after %v %d %+v", took, status, r)
			}
		}
		if n := runs.Load(); n != 1 {
			t.Errorf("%d runs at once", n)
		}
		close(release)
		synctest.Wait()
		if status, _ := readyz(t, h); status != 200 {
			t.Errorf("after the check has ended: %d", status)
		}
	})
}

func metrics(t *testing.T, m *console.Metrics, log *slog.Logger) string {
	t.Helper()
	w := get(console.New(console.Config{Metrics: m, Log: log}, otherPaths), "GET", "/metrics")
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// TestMetrics: each event that a KMS reports appears in /metrics under the documented name, with its labels.
func TestMetrics(t *testing.T) {
	last := time.UnixMilli(1795442610500)
	m := console.NewMetrics(func(context.Context) ([]metastore.Use, error) {
		return []metastore.Use{{Source: "kms://http@old:9600/kms", Version: `k"\1@0`, Op: "decrypt", Count: 42,
			Last: last}}, nil
	})
	m.Observe("decrypt_eek", 200, 1, 3*time.Millisecond)
	m.Observe("reencrypt_eek_batch", 200, 1000, 30*time.Millisecond)
	m.Observe("reencrypt_eek_batch", 400, 1000, time.Millisecond)
	m.Waited("decrypt", 20*time.Millisecond, true)
	m.Waited("generate", time.Second, false)
	m.Refused("impersonation")
	call := m.HSM(func() (int, int) { return 3, 8 })
	call(5, 1000, time.Millisecond, 20*time.Millisecond, nil)
	call(1, 1, 0, time.Second, errors.New("gone"))
	m.Function("C_Login", "CKR_PIN_INCORRECT", time.Millisecond)
	m.Expiries("claviger_certificate_expiry_seconds", "x", func() ([]console.Expiry, error) {
		return []console.Expiry{{Name: "ssl.server.keystore.location", Subject: "CN=kms1", Ends: last}}, nil
	})
	text := metrics(t, m, nil)
	for _, line := range []string{
		`claviger_kms_slot_wait_seconds_bucket{class="decrypt",le="0.03"} 1`,
		`claviger_kms_slot_wait_seconds_count{class="generate"} 1`,
		`claviger_kms_slot_refused_total{class="generate"} 1`,
		`claviger_kms_refused_total{reason="impersonation"} 1`,
		`claviger_hsm_call_seconds_bucket{result="ok",le="0.03"} 1`,
		`claviger_hsm_call_seconds_count{result="error"} 1`,
		`claviger_hsm_call_blocks_bucket{le="512"} 1`,
		`claviger_hsm_call_blocks_bucket{le="1024"} 2`,
		`claviger_hsm_call_callers_sum 6`,
		`claviger_hsm_wait_seconds_bucket{le="0.001"} 2`,
		`claviger_hsm_sessions_in_use 3`,
		`claviger_hsm_sessions_max 8`,
		`claviger_hsm_function_seconds_count{function="C_Login",result="CKR_PIN_INCORRECT"} 1`,
		`claviger_certificate_expiry_seconds{name="ssl.server.keystore.location",subject="CN=kms1"} 1.79544261e+09`,
		`claviger_kms_request_seconds_count{op="decrypt_eek",status="200"} 1`,
		`claviger_kms_request_seconds_bucket{op="decrypt_eek",status="200",le="0.0025"} 0`,
		`claviger_kms_request_seconds_bucket{op="decrypt_eek",status="200",le="0.005"} 1`,
		`claviger_kms_request_seconds_count{op="reencrypt_eek_batch",status="400"} 1`,
		`claviger_kms_edeks_total{op="reencrypt_eek_batch"} 1000`,
		`claviger_source_edeks_total{op="decrypt",source="kms://http@old:9600/kms",version="k\"\\1@0"} 42`,
		`claviger_source_last_use_seconds{op="decrypt",source="kms://http@old:9600/kms",version="k\"\\1@0"} ` +
			`1.7954426105e+09`,
		`go_goroutines `,
	} {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
}

// TestDetails: a peer that Details does not admit gets each status and metric, but no name of
// a key, host, user or file. The log gets each failure once.
func TestDetails(t *testing.T) {
	m := console.NewMetrics(func(context.Context) ([]metastore.Use, error) {
		use := func(version string, count int64) metastore.Use {
			return metastore.Use{Source: "kms://http@secrethost:9600/kms", Version: version, Op: "decrypt",
				Count: count, Last: time.Unix(count, 0)}
		}
		return []metastore.Use{use("payroll@1", 42), use("payroll@0", 4)}, nil
	})
	m.Observe("decrypt_eek", 200, 1, 3*time.Millisecond)
	m.Expiries("claviger_certificate_expiry_seconds", "x", func() ([]console.Expiry, error) {
		return []console.Expiry{{Name: "ssl.server.keystore.location", Subject: "CN=secrethost"}}, nil
	})
	var log logtest.Buffer
	const wrong = "key payroll of alice cannot be read from /secret/file"
	h := console.New(console.Config{
		Metrics: m, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Details: func(r *http.Request) bool { return r.Header.Get("X-Test") == "local" },
		Checks: []console.Check{
			{Name: "source kms://http@secrethost:9600/kms", Anonymous: "source 1", Informational: true,
				Run: fails("secrethost: connection refused")},
			{Name: "encryptions", Run: fails(wrong)},
			{Name: "acls", Run: works},
		},
	}, otherPaths)
	request := func(path, from string) string {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("X-Test", from)
		h.ServeHTTP(w, r)
		return fmt.Sprint(w.Code, w.Header(), w.Body)
	}
	for _, path := range []string{"/healthz", "/readyz", "/readyz?for=decrypt", "/metrics"} {
		text := request(path, "far")
		for _, secret := range []string{"payroll", "alice", "secret", "connection refused"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s names %q to a peer that Details does not admit: %s", path, secret, text)
			}
		}
	}
	for path, want := range map[string][]string{
		"/readyz": {"503", `"source 1"`, `"encryptions"`, `"ok": true`, `"decrypt": false`,
			"not shown to this address; send the request from an address that the property " +
				"claviger.console.details names"},
		"/metrics": {"claviger_kms_request_seconds_count",
			`claviger_certificate_expiry_seconds{name="ssl.server.keystore.location"}`,
			`claviger_source_edeks_total{op="decrypt"} 46`, `claviger_source_last_use_seconds{op="decrypt"} 42`},
	} {
		text := request(path, "far")
		for _, want := range want {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %q for a peer that Details does not admit: %s", path, want, text)
			}
		}
	}
	for path, want := range map[string]string{"/readyz": wrong, "/metrics": `version="payroll@0"`} {
		if text := request(path, "local"); !strings.Contains(text, want) {
			t.Errorf("%s lacks %q for a peer that Details admits: %s", path, want, text)
		}
	}
	if text := log.String(); strings.Count(text, wrong) != 1 || strings.Count(text, "connection refused") != 1 {
		t.Errorf("the log: %s", text)
	}
}

// TestInFlight: a request counts until it ends, even by a panic. Requests to the console do not
// count.
func TestInFlight(t *testing.T) {
	m := console.NewMetrics(nil)
	var during string
	h := console.New(console.Config{Metrics: m}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		during = metrics(t, m, nil)
		panic(http.ErrAbortHandler)
	}))
	func() {
		defer func() { _ = recover() }()
		get(h, "GET", "/kms/v1/keys/names")
	}()
	const name = "\nclaviger_kms_requests_in_flight "
	if after := metrics(t, m, nil); !strings.Contains(during, name+"1\n") || !strings.Contains(after, name+"0\n") {
		t.Errorf("during the request:\n%s\nafterwards:\n%s", during, after)
	}
}

// TestMetricsWithoutStore: if the use of sources cannot be read, the other metrics are served.
func TestMetricsWithoutStore(t *testing.T) {
	m := console.NewMetrics(func(context.Context) ([]metastore.Use, error) { return nil, errors.New("disk I/O error") })
	m.Observe("get_keys", 200, 0, time.Millisecond)
	var log strings.Builder
	text := metrics(t, m, slog.New(slog.NewTextHandler(&log, nil)))
	if !strings.Contains(text, `claviger_kms_request_seconds_count{op="get_keys",status="200"} 1`) ||
		!strings.Contains(log.String(), "disk I/O error") {
		t.Errorf("log %s\n%s", &log, text)
	}
}

// TestMetricsHang: if a store does not answer, only its own metric is missing.
func TestMetricsHang(t *testing.T) {
	m := console.NewMetrics(func(ctx context.Context) ([]metastore.Use, error) { <-ctx.Done(); return nil, ctx.Err() })
	m.Query("claviger_never", "x", func(ctx context.Context) (float64, error) { <-ctx.Done(); return 0, ctx.Err() })
	m.Query("claviger_always", "x", func(context.Context) (float64, error) { return 7, nil })
	text := metrics(t, m, nil)
	if !strings.Contains(text, "\nclaviger_always 7\n") || strings.Contains(text, "\nclaviger_never ") ||
		strings.Contains(text, "\nclaviger_source_edeks_total") {
		t.Errorf("%s", text)
	}
}

// TestMetricsForeignBytes: names in labels may hold bytes that are not UTF-8.
func TestMetricsForeignBytes(t *testing.T) {
	m := console.NewMetrics(func(context.Context) ([]metastore.Use, error) {
		return []metastore.Use{{Source: "kms://http@old:9600/kms", Version: "k\xff@0", Op: "decrypt", Count: 1}}, nil
	})
	m.Expiries("claviger_expiry", "x", func() ([]console.Expiry, error) {
		return []console.Expiry{{Name: "store", Subject: "CN=\xe9", Ends: time.Unix(1, 0)}}, nil
	})
	text := metrics(t, m, nil)
	for _, want := range []string{
		`claviger_source_edeks_total{op="decrypt",source="kms://http@old:9600/kms",version="k\uFFFD@0"} 1`,
		`claviger_expiry{name="store",subject="CN=\uFFFD"} 1`,
	} {
		if want = strings.ReplaceAll(want, `\uFFFD`, "\uFFFD"); !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

// TestMetricsOften: many requests of /metrics cause few queries of a store.
func TestMetricsOften(t *testing.T) {
	m := console.NewMetrics(nil)
	queries := 0
	m.Query("claviger_figure", "x", func(context.Context) (float64, error) { queries++; return 0, nil })
	began := time.Now()
	for range 20 {
		metrics(t, m, nil)
	}
	if most := 1 + int(time.Since(began)/time.Second); queries < 1 || queries > most {
		t.Errorf("a store got %d queries, want at most %d", queries, most)
	}
}
