package bench

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"claviger"
	"claviger/provider/kmsclient"
)

// TestText: the text of a report has each figure, ratio and knee, and all that qualifies the figures. An unknown figure
// is a dash.
func TestText(t *testing.T) {
	at := time.Date(2026, 11, 3, 4, 5, 6, 0, time.UTC)
	r := &Report{At: at, Cores: 2, Auth: authCookie,
		Measurements: []*Measurement{
			{KMS: "one\x1b", Load: loadDecrypt, Connections: 4, PerSecond: 1000, Latency: Quantiles{1, 2, 3, 4, 5}},
			{KMS: "two", Load: loadBatch, Connections: 4, Rate: 50, PerSecond: 49, PerCPUSecond: 90, Memory: 30,
				Failures: 2, Reasons: map[string]int{"503 busy": 2}, Lateness: &Quantiles{P99: 7}, Doubtful: true}},
		Ratios: []Ratio{{KMS: "one", To: "two", Load: loadDecrypt, Median: 3, Low: 2, High: 4}},
		Knees: []Knee{{KMS: "one", Load: loadDecrypt, Connections: 8, PerSecond: 900, P99: 3},
			{KMS: "two", Load: loadBatch, Connections: 8, Rate: 70, PerSecond: 69, P99: 4, Last: true}},
		Missed: []string{"a threshold"}, NotRemoved: []string{"a key\n"}}
	var b bytes.Buffer
	r.text(&b)
	want := "LOAD\tKMS\tCONN\tDUE/S\tDONE/S\tPER CPU-S\tP50 MS\tP90 MS\tP99 MS\tP99.9 MS\tMAX MS\tMIB\tFAILED\n" +
		"decrypt\t\"one\\x1b\"\t4\t-\t1000\t-\t1.00\t2.00\t3.00\t4.00\t5.00\t-\t0\n" +
		"batch\ttwo\t4\t50\t49\t90\t0.00\t0.00\t0.00\t0.00\t0.00\t30\t2\n" +
		"decrypt: one does 3.00 (2.00 to 4.00) times the work of two\n" +
		"decrypt: one: more than 8 connections brings no more work: 900 requests/s, p99 3.0 ms\n" +
		"batch: two: the greatest load did the most work: 69 requests/s, p99 4.0 ms with 70 requests/s due; raise " +
		"--connections or --rate\n" +
		"doubtful: batch, two: this process sent its requests late (p99 7.00 ms); take a lower --rate, or another " +
		"machine\n" +
		"failed: batch, two, 2 times: 503 busy\n" +
		"a threshold\n\"a key\\n\"\n" +
		"2 cores, cookie, 2026-11-03T04:05:06Z; every answer that counts was right\n"
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestPlots: each load has a plot of each known figure, and the greatest bar of a plot has the full width.
func TestPlots(t *testing.T) {
	r := &Report{Measurements: []*Measurement{
		{KMS: "one", Load: loadDecrypt, Connections: 4, PerSecond: 100, PerCPUSecond: 50},
		{KMS: "two", Load: loadDecrypt, Connections: 4, Rate: 30, PerSecond: 25},
		{KMS: "one", Load: loadBatch, Connections: 4, PerSecond: 1000},
	}}
	plots := r.Plots()
	if len(plots) != 3 {
		t.Fatalf("%+v", plots)
	}
	for i, want := range []Plot{
		{"decrypt: requests per CPU-second", []Bar{{"one, 4 connections", "50", barWidth, 0}}},
		{"decrypt: requests per second", []Bar{{"one, 4 connections", "100", barWidth, 0},
			{"two, 30/s due", "25", barWidth / 4, barStep}}},
		{"batch: requests per second", []Bar{{"one, 4 connections", "1000", barWidth, 0}}},
	} {
		got := plots[i]
		if got.Title != want.Title || len(got.Bars) != len(want.Bars) {
			t.Fatalf("%+v, want %+v", got, want)
		}
		for j := range want.Bars {
			if got.Bars[j] != want.Bars[j] {
				t.Errorf("%s: %+v, want %+v", want.Title, got.Bars[j], want.Bars[j])
			}
		}
	}
}

// TestKnee: the knee is the first step within a twentieth of the best. It is the last step only if that was the best.
func TestKnee(t *testing.T) {
	of := func(perSecond ...float64) (steps []*Measurement) {
		for i, n := range perSecond {
			steps = append(steps, &Measurement{Connections: 1 << i, PerSecond: n})
		}
		return steps
	}
	for _, c := range []struct {
		steps       []*Measurement
		connections int
		last        bool
	}{
		{of(10, 20, 40), 4, true}, {of(10, 39, 40), 2, false}, {of(10, 40, 30), 2, false}, {of(10), 1, true},
		{of(40, 30, 41), 1, false},
	} {
		if k := knee(c.steps); k.Connections != c.connections || k.Last != c.last {
			t.Errorf("%+v, want %d connections, last %t", k, c.connections, c.last)
		}
	}
	o := Options{Connections: 4, Rate: 1000}
	steps := o.steps(loadDecrypt)
	if len(steps) != rateSteps || steps[0].rate != 100 || steps[9].rate != 1000 || steps[0].connections != 4 {
		t.Errorf("%+v", steps)
	}
}

// TestJudge: a measurement misses a threshold only if it is worse. If the load itself was late, there is no verdict on
// the latency.
func TestJudge(t *testing.T) {
	const ms = time.Millisecond
	for want, c := range map[string]struct {
		o Options
		m Measurement
	}{
		"": {Options{P99: 5 * ms, MaxFailures: 2}, Measurement{Failures: 2, Latency: Quantiles{P99: 5}}},
		"no threshold": {Options{MaxFailures: -1}, Measurement{Failures: 9, Latency: Quantiles{P99: 50}, Doubtful: true,
			Lateness: &Quantiles{P99: 9}}},
		"p99 is 6ms, and --p99 allows 5ms": {Options{P99: 5 * ms, MaxFailures: -1},
			Measurement{Latency: Quantiles{P99: 6}}},
		"no verdict on --p99, because this process sent its requests late (p99 2.0 ms, of 6.0 ms)": {
			Options{P99: 5 * ms, MaxFailures: -1}, Measurement{Latency: Quantiles{P99: 6}, Doubtful: true,
				Lateness: &Quantiles{P99: 2}}},
		"1 requests failed, and --max-failures allows 0": {Options{}, Measurement{Failures: 1}},
	} {
		r := &Report{}
		r.judge(&c.o, &c.m)
		err := r.verdict()
		if want == "" || want == "no threshold" {
			if err != nil {
				t.Errorf("%q: %v", want, err)
			}
			continue
		}
		if !errors.As(err, new(*claviger.RefusedError)) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestMerge: the results of all connections are added up. A measurement is doubtful if the load was late by more than a
// tenth of the latency.
func TestMerge(t *testing.T) {
	of := func(latency, lateness int64) *worker {
		w := &worker{done: 2, edeks: 20, failed: map[string]int{"busy": 1},
			latency: hdrhistogram.New(1, slowest, digits), lateness: hdrhistogram.New(1, slowest, digits)}
		for range 100 {
			_ = w.latency.RecordValue(latency)
			_ = w.lateness.RecordValue(lateness)
		}
		return w
	}
	for _, c := range []struct {
		rate               float64
		latency, lateness  int64
		doubtful, recorded bool
	}{{0, 1000, 900, false, false}, {50, 1000, 90, false, true}, {50, 1000, 200, true, true}} {
		r := &run{shape: shape{load: loadBatch, rate: c.rate}, t: &target{name: "kms"}}
		m := r.merge([]*worker{of(c.latency, c.lateness), of(c.latency, c.lateness)}, 2*time.Second)
		if m.Requests != 4 || m.EDEKs != 40 || m.Failures != 2 || m.Reasons["busy"] != 2 || m.PerSecond != 2 ||
			m.Latency.P99 < 0.9 || m.Latency.P99 > 1.1 || m.Doubtful != c.doubtful ||
			(m.Lateness != nil) != c.recorded {
			t.Errorf("%+v: %+v", c, m)
		}
	}
}

// TestWork: requests per CPU-second are compared if they are known, otherwise requests per second.
func TestWork(t *testing.T) {
	m := &Measurement{Requests: 100, PerSecond: 50}
	m.setCPU(0)
	if m.work() != 50 || m.PerCPUSecond != 0 {
		t.Errorf("without CPU time: %+v", m)
	}
	m.setCPU(4 * time.Second)
	if m.work() != 25 || m.CPUSeconds != 4 {
		t.Errorf("with 4 s of CPU time: %+v", m)
	}
}

// TestShortLists: an answer with fewer EDEKs than requested is an error, and so is an answer that is no list.
func TestShortLists(t *testing.T) {
	base := serveKMS(t)
	to, err := parseTarget(base)
	if err != nil {
		t.Fatal(err)
	}
	o := &Options{Client: kmsclient.Options{User: "bench"}}
	if err := errors.Join(to.open(t.Context(), o), to.prepare(t.Context())); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = to.close(t.Context()) }()
	few := to.sent[:checkedEDEKs]
	unknown := slices.Clone(few)
	unknown[0].Version = "none@0"
	for want, err := range map[string]error{
		"1000 EDEKs were re-encrypted to 0":               to.verifyAnswer(t.Context(), loadBatch, []byte("[]")),
		"350 EDEKs were requested, and 0 generated":       to.verifyAnswer(t.Context(), loadGenerate, []byte("[]")),
		"no list of EDEKs":                                to.verifyAnswer(t.Context(), loadBatch, []byte("{}")),
		"20 EDEKs were re-encrypted to 19":                to.compare(t.Context(), few, few[1:]),
		"none@0":                                          to.compare(t.Context(), few, unknown),
		"WRONG DEK":                                       to.compare(t.Context(), few[1:], few[:len(few)-1]),
		"is not the URL of a KMS":                         failed(parseTarget("kms://http@localhost:9600/other?x=1")),
		"gave no delegation token: it answered 403 Forbi": refusedToken(t, base),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestRefusedTokens: an answer is a delegation token only with status 200 and the text of a token.
func TestRefusedTokens(t *testing.T) {
	const token = `{"Token":{"urlString":"text"}}`
	answer := func(status, body string) string {
		return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s|", status, len(body), body)
	}
	for text, good := range map[string]bool{answer("200 OK", token): true, answer("500 Error", token): false,
		answer("200 OK", "{}"): false, answer("200 OK", "text"): false} {
		to := serveScript(t, text).target
		to.base = &url.URL{Scheme: "http", Host: to.address, Path: "/kms"}
		if err := to.useToken(t.Context(), "yarn"); (err == nil) != good ||
			good && to.auth != "X-Hadoop-Delegation-Token: text" {
			t.Errorf("%s: %v, %s", text, err, to.auth)
		}
	}
	proxy := newProxy(t, serveKMS(t), nil, func(r *http.Response) error {
		if strings.Contains(r.Request.URL.RawQuery, "GETDELEGATIONTOKEN") {
			r.StatusCode = http.StatusForbidden
		}
		return nil
	})
	proxy.Start()
	if _, _, err := command(t, proxy.URL+"/kms", "--auth", "token", "--rounds", "1"); err == nil ||
		!strings.Contains(err.Error(), "gave no delegation token") {
		t.Errorf("without a token: %v", err)
	}
}

func failed(_ *target, err error) error { return err }

// refusedToken requests a delegation token without a login.
func refusedToken(t *testing.T, base string) error {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	return (&target{name: base, base: u, address: u.Host, auth: "X-None: none"}).useToken(t.Context(), "bench")
}
