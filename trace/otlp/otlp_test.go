package otlp

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger/internal/logtest"
	"claviger/internal/otlptest"
	"claviger/trace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// opened is an Exporter with its log.
type opened struct {
	*Exporter
	log logtest.Buffer
}

func open(t *testing.T, url string, ratio float64, trust *tls.Config) *opened {
	t.Helper()
	endpoint, err := ParseEndpoint(url)
	if err != nil {
		t.Fatal(err)
	}
	o := &opened{}
	o.Exporter, err = Open(Config{Endpoint: endpoint, Ratio: ratio, TLS: trust, Version: "1.2.3", Host: "h",
		Log: slog.New(slog.NewTextHandler(&o.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close() })
	return o
}

// requests makes the spans of n requests.
func requests(tracer *trace.Tracer, n int, header http.Header) {
	for range n {
		s := tracer.Request(header)
		s.Rename("decrypt_eek")
		s.End()
	}
}

// TestExport: the collector gets the spans, with the program's name, at the end at the latest.
func TestExport(t *testing.T) {
	collector := otlptest.New(t)
	o := open(t, collector.URL, 1, nil)
	requests(o.Tracer(), 3, nil)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	spans := collector.Spans()
	if len(spans) != 3 || o.Figures() != (Figures{Sent: 3}) {
		t.Fatalf("%d spans, %+v", len(spans), o.Figures())
	}
	r := spans[0].Resource
	if spans[0].Name != "decrypt_eek" || r["service.name"] != "claviger" || r["service.version"] != "1.2.3" ||
		r["host.name"] != "h" || spans[0].Trace == spans[1].Trace {
		t.Errorf("%+v", spans[0])
	}
	if text := o.log.String(); text != "" {
		t.Errorf("the log: %s", text)
	}
}

// TestExportWithoutEnd: the collector gets spans while the program runs, within seconds.
func TestExportWithoutEnd(t *testing.T) {
	collector := otlptest.New(t)
	o := open(t, collector.URL, 1, nil)
	requests(o.Tracer(), 1, nil)
	eventually(t, func() bool { return len(collector.Spans()) == 1 && o.Figures() == Figures{Sent: 1} })
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 20 s")
		}
	}
}

// TestHungCollector: spans beyond the queue are lost at once and counted, and Close ends in time, with a log line.
func TestHungCollector(t *testing.T) {
	collector := otlptest.New(t)
	collector.Hang()
	o := open(t, collector.URL, 1, nil)
	var group sync.WaitGroup
	const each, others = queueSize, 3
	for range others {
		group.Go(func() { requests(o.Tracer(), each, nil) })
	}
	group.Wait()
	if f := o.Figures(); f.Waiting != queueSize || f.Lost != others*each-queueSize || f.Sent != 0 {
		t.Errorf("%+v", f)
	}
	begun := time.Now()
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 2*flushTimeout {
		t.Errorf("Close took %v", took)
	}
	if f := o.Figures(); f.Lost != others*each || f.Waiting != 0 {
		t.Errorf("%+v", f)
	}
	if text := o.log.String(); strings.Count(text, "spans of traces were lost") != 1 ||
		!strings.Contains(text, collector.URL) {
		t.Errorf("the log: %s", text)
	}
	requests(o.Tracer(), 1, nil) // after the end
}

// TestRetry: a batch is sent again if the collector answers that it is busy. If it answers anything else, the spans are
// lost, and the log has the answer.
func TestRetry(t *testing.T) {
	collector := otlptest.New(t)
	collector.Answer(http.StatusServiceUnavailable, nil)
	o := open(t, collector.URL, 1, nil)
	requests(o.Tracer(), 1, nil)
	eventually(t, func() bool { return collector.Posts() >= 2 })
	collector.Answer(http.StatusOK, nil)
	eventually(t, func() bool { return o.Figures() == Figures{Sent: 1} })

	collector.Answer(http.StatusBadRequest, bytes.Repeat([]byte("no "), 1000))
	posts := collector.Posts()
	requests(o.Tracer(), 1, nil)
	eventually(t, func() bool { return o.Figures() == Figures{Sent: 1, Lost: 1} })
	if n := collector.Posts() - posts; n != 1 {
		t.Errorf("%d requests with a batch that the collector refused", n)
	}
	text := o.log.String()
	if !strings.Contains(text, "400 Bad Request") || !strings.Contains(text, "no no") || len(text) > 1000 {
		t.Errorf("the log: %s", text)
	}
}

// TestLogOnceAMinute: of many losses the log gets one line, and at the end the number of all others.
func TestLogOnceAMinute(t *testing.T) {
	collector := otlptest.New(t)
	collector.Answer(http.StatusBadRequest, nil)
	o := open(t, collector.URL, 1, nil)
	for i := range int64(3) {
		requests(o.Tracer(), batchSize, nil)
		eventually(t, func() bool { return o.Figures().Lost == (i+1)*batchSize })
	}
	if n := strings.Count(o.log.String(), "\n"); n != 1 {
		t.Errorf("%d lines:\n%s", n, o.log.String())
	}
	_ = o.Close()
	if text := o.log.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "spans=1024") {
		t.Errorf("%s", text)
	}
}

// TestPartialSuccess: spans that the collector takes not from a batch count as lost.
func TestPartialSuccess(t *testing.T) {
	collector := otlptest.New(t)
	collector.Answer(http.StatusOK, []byte{0x0a, 0x06, 0x08, 0x02, 0x12, 0x02, 'n', 'o'}) // {1: {1: 2, 2: "no"}}
	o := open(t, collector.URL, 1, nil)
	requests(o.Tracer(), 5, nil)
	_ = o.Close()
	if f := o.Figures(); f != (Figures{Sent: 3, Lost: 2}) {
		t.Errorf("%+v", f)
	}
}

// FuzzRejectedSpans: an answer of a collector is read without a panic.
func FuzzRejectedSpans(f *testing.F) {
	f.Fuzz(func(t *testing.T, answer []byte) {
		if n := rejectedSpans(answer); n < 0 || n > batchSize {
			t.Errorf("%d spans", n)
		}
	})
}

// TestSampling: a ratio of the requests is traced. A caller's decision counts, but callers have a limit.
func TestSampling(t *testing.T) {
	const n = 2000
	header := func(flags string) http.Header {
		return http.Header{"Traceparent": {"00-0af7651916cd43ddffffffffffffffff-b7ad6b7169203331-" + flags}}
	}
	for _, c := range []struct {
		name     string
		ratio    float64
		header   http.Header
		from, to int64
	}{
		{"none", 0, nil, 0, 0},
		{"a tenth", 0.1, nil, n / 20, n / 5},
		{"all", 1, nil, n, n},
		{"not by the caller", 1, header("00"), 0, 0},
		{"by the caller", 0, header("01"), callersRate, callersRate * 10},
	} {
		o := open(t, otlptest.New(t).URL, c.ratio, nil)
		requests(o.Tracer(), n, c.header)
		_ = o.Close()
		if f := o.Figures(); f.Sent < c.from || f.Sent > c.to {
			t.Errorf("%s: %+v, want %d to %d spans", c.name, f, c.from, c.to)
		}
	}
}

// TestTLS: the certificate of a collector is verified.
func TestTLS(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	roots := server.Client().Transport.(*http.Transport).TLSClientConfig //nolint:forcetypeassert // httptest's
	trusted, stranger := open(t, server.URL, 1, roots), open(t, server.URL, 1, nil)
	for _, o := range []*opened{trusted, stranger} {
		requests(o.Tracer(), 1, nil)
		_ = o.Close()
	}
	if trusted.Figures() != (Figures{Sent: 1}) || stranger.Figures() != (Figures{Lost: 1}) {
		t.Errorf("%+v, %+v", trusted.Figures(), stranger.Figures())
	}
}

// TestNoRedirect: spans go to the collector that is configured, and to no other.
func TestNoRedirect(t *testing.T) {
	other := otlptest.New(t)
	server := httptest.NewServer(http.RedirectHandler(other.URL+"/v1/traces", http.StatusTemporaryRedirect))
	defer server.Close()
	o := open(t, server.URL, 1, nil)
	requests(o.Tracer(), 1, nil)
	_ = o.Close()
	if o.Figures() != (Figures{Lost: 1}) || other.Posts() != 0 {
		t.Errorf("%+v", o.Figures())
	}
}

// TestEnvironment: variables of OpenTelemetry change neither the collector nor the sampling.
func TestEnvironment(t *testing.T) {
	collector := otlptest.New(t)
	for name, value := range map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
		"OTEL_TRACES_SAMPLER": "always_off", "OTEL_BSP_MAX_QUEUE_SIZE": "1", "OTEL_SDK_DISABLED": "true",
		"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "0", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prod",
		"OTEL_SERVICE_NAME": "x", "HTTP_PROXY": "http://127.0.0.1:1"} {
		t.Setenv(name, value)
	}
	o := open(t, collector.URL, 1, nil)
	span := o.Tracer().Request(nil)
	span.Number(trace.EDEKs, 7)
	span.End()
	_ = o.Close()
	spans := collector.Spans()
	if len(spans) != 1 || spans[0].Attributes["kms.edeks"] != "7" {
		t.Fatalf("%+v", spans)
	}
	if r := spans[0].Resource; r["service.name"] != "claviger" || r["deployment.environment.name"] != "prod" {
		t.Errorf("%v", r)
	}
}

// TestParseEndpoint: a URL of a collector has no user, no query and a host; /v1/traces is added.
func TestParseEndpoint(t *testing.T) {
	for text, want := range map[string]string{
		"http://h:4318": "http://h:4318/v1/traces", "https://h/": "https://h/v1/traces",
		"https://[::1]:4318/otlp/v1/traces": "https://[::1]:4318/otlp/v1/traces",

		"h:4318": "", "http://": "", "http://:4318": "", "grpc://h:4317": "", "http://u:p@h": "",
		"http://h?x=y": "", "http://h#x": "", "http://h:port": "", "bogus value": "",
	} {
		u, err := ParseEndpoint(text)
		if (err == nil) != (want != "") || err == nil && u.String() != want {
			t.Errorf("%q: %v, %v", text, u, err)
		}
		if err != nil && strings.Contains(err.Error(), "u:p") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestCloseTwice: a second Close does nothing.
func TestCloseTwice(t *testing.T) {
	o := open(t, "http://127.0.0.1:1", 1, nil)
	_ = o.Close()
	if err := o.Close(); err != nil || context.Cause(o.client.ctx) == nil {
		t.Error(err)
	}
}

// BenchmarkRequest measures what a traced request with seven steps costs, and one that the sampler leaves out.
func BenchmarkRequest(b *testing.B) {
	for name, ratio := range map[string]float64{"traced": 1, "left out": 0} {
		b.Run(name, func(b *testing.B) {
			collector := otlptest.New(b)
			endpoint, err := ParseEndpoint(collector.URL)
			if err != nil {
				b.Fatal(err)
			}
			o, err := Open(Config{Endpoint: endpoint, Ratio: ratio, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			tracer := o.Tracer()
			b.ReportAllocs()
			for b.Loop() {
				request := tracer.Request(nil)
				ctx := request.In(b.Context())
				for range 7 {
					_, step := trace.Start(ctx, "step")
					step.Word(trace.Result, "CKR_OK")
					step.End()
				}
				request.End()
			}
			b.StopTimer()
			_ = o.Close()
			if spans := len(collector.Spans()); spans > 0 {
				b.ReportMetric(float64(len(collector.Raw()))/float64(spans), "B/span")
			}
		})
	}
}
