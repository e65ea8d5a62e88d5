package alerts

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	rulesFile = "../../deploy/prometheus/rules.yaml"
	runbooks  = "../../docs/runbooks/*.md"
)

// The test reads the metrics of a phase for about a second, and stretches them to 90 minutes for promtool. 90 minutes
// are longer than the range and the wait of any rule. A counter keeps the pace of that second; a gauge repeats its
// values.
const (
	step    = 30 * time.Second // between two stretched samples
	samples = 180              // of a phase
	scrapes = 3                // real reads of /metrics in a phase
	pause   = 250 * time.Millisecond
)

// scrape holds the values of /metrics of a server at one moment. values is nil if the server did not answer.
type scrape struct {
	at     time.Time
	values map[string]float64 // by series, as name{label="value"}
}

// phase is a time in which the servers are healthy or have a fault.
type phase struct {
	name     string
	at       time.Duration // when alerts must fire, counted from the begin of the phase; 0: at its end
	pause    time.Duration // between two scrapes; 0: the constant pause
	alerts   []string      // must fire; no others may, except allowed
	allowed  []string      // may fire as well
	byServer map[string][]scrape
}

// recording holds the metrics of all phases of a deployment.
type recording struct {
	t      *testing.T
	kinds  map[string]string // counter, gauge or histogram, by the name of the metric
	phases []phase
}

// parse returns the series in a text of /metrics whose metric a rule or a runbook names.
func (r *recording) parse(text string) map[string]float64 {
	r.t.Helper()
	values := map[string]float64{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			r.kinds[name] = kind
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || at < 0 || !usedMetrics()[metricOf(line[:at])] {
			continue
		}
		v, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			r.t.Fatalf("%q: %v", line, err)
		}
		values[line[:at]] = v
	}
	return values
}

// metricOf returns the name of the metric of a series: the part before the labels.
func metricOf(series string) string {
	name, _, _ := strings.Cut(series, "{")
	return name
}

var metricName = regexp.MustCompile(`claviger_[a-z_]+`)

// usedMetrics returns the metrics that a rule or a page of the runbooks names.
var usedMetrics = sync.OnceValue(func() map[string]bool {
	names := map[string]bool{}
	files, _ := filepath.Glob(runbooks)
	for _, f := range append(files, rulesFile) {
		text, _ := os.ReadFile(f)
		for _, name := range metricName.FindAllString(string(text), -1) {
			names[name] = true
		}
	}
	return names
})

// isCounter reports whether the values of a series only grow.
func (r *recording) isCounter(series string) bool {
	name := metricOf(series)
	for _, suffix := range []string{"_bucket", "_count", "_sum"} {
		if base, ok := strings.CutSuffix(name, suffix); ok && r.kinds[base] == "histogram" {
			return true
		}
	}
	return r.kinds[name] == "counter"
}

// stretched returns the value of a gauge that was read in phase i, for the stretched time at after the begin of the
// phase. A value that is a time is converted: a time of expiry keeps its distance from the sample; a time of last use
// moves to the phase in which it was.
func (r *recording) stretched(series string, v float64, i int, read scrape, at time.Duration) float64 {
	begin := func(i int) float64 { return (time.Duration(i*samples) * step).Seconds() }
	seconds := func(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
	switch name := metricOf(series); {
	case strings.HasSuffix(name, "_expiry_seconds"):
		return v - seconds(read.at) + begin(i) + at.Seconds()
	case strings.HasSuffix(name, "_last_use_seconds"):
		for k, p := range r.phases {
			if list := p.byServer[r.servers()[0]]; v <= seconds(list[len(list)-1].at) {
				return v - seconds(list[0].at) + begin(k)
			}
		}
	}
	return v
}

// counterState is the state of a counter between two phases.
type counterState struct {
	sum  float64 // in the stretched time
	last float64 // as read
	any  bool
}

// values returns the samples of a series in all phases, in promtool's notation.
func (r *recording) values(server, series string) string {
	var list []string
	var state counterState
	for i := range r.phases {
		read := r.phases[i].byServer[server]
		switch {
		case series == "up":
			list = append(list, repeat(read, func(s scrape, _ time.Duration) (float64, bool) {
				return map[bool]float64{true: 1}[s.values != nil], true
			})...)
		case r.isCounter(series):
			list = append(list, state.extend(read, series)...)
		default:
			list = append(list, repeat(read, func(s scrape, at time.Duration) (float64, bool) {
				v, ok := s.values[series]
				return r.stretched(series, v, i, s, at), ok
			})...)
		}
	}
	return strings.Join(list, " ")
}

// repeat returns the stretched samples of a gauge in one phase. of returns the value for one sample.
func repeat(read []scrape, of func(s scrape, at time.Duration) (float64, bool)) (list []string) {
	for k := range samples {
		v, ok := of(read[k%len(read)], time.Duration(k)*step)
		list = append(list, sample(v, ok))
	}
	return list
}

// extend returns the samples of a counter in one phase.
func (c *counterState) extend(read []scrape, series string) (list []string) {
	read = slices.DeleteFunc(slices.Clone(read), func(s scrape) bool { _, ok := s.values[series]; return !ok })
	if len(read) == 0 {
		return slices.Repeat([]string{"_"}, samples)
	}
	first, last := read[0], read[len(read)-1]
	begin, end := first.values[series], last.values[series]
	switch {
	case c.any && begin >= c.last:
		c.sum += begin - c.last
	default: // a new series, or a new process
		c.sum = begin
	}
	pace := 0.0
	if took := last.at.Sub(first.at); took > 0 {
		pace = (end - begin) / took.Seconds()
	}
	for range samples {
		list = append(list, sample(c.sum, true))
		c.sum += pace * step.Seconds()
	}
	c.last, c.any = end, true
	return list
}

// sample returns a value in promtool's notation, which has no exponents.
func sample(v float64, ok bool) string {
	if !ok {
		return "_"
	}
	return strconv.FormatFloat(v, 'f', -1, 64)
}

// servers returns the names of all servers, sorted.
func (r *recording) servers() []string { return slices.Sorted(maps.Keys(r.phases[0].byServer)) }

// inputs returns the series of all servers as promtool reads them.
func (r *recording) inputs() string {
	var b strings.Builder
	for _, server := range r.servers() {
		job, instance, _ := strings.Cut(server, "/")
		labels := fmt.Sprintf(`job="%s",instance="%s"`, job, instance)
		all := map[string]bool{"up": true}
		for _, p := range r.phases {
			for _, s := range p.byServer[server] {
				for series := range s.values {
					all[series] = true
				}
			}
		}
		for _, series := range slices.Sorted(maps.Keys(all)) {
			name, rest, _ := strings.Cut(series, "{")
			rest = strings.TrimSuffix(rest, "}")
			full := name + "{" + strings.Trim(labels+","+rest, ",") + "}"
			fmt.Fprintf(&b, "      - {series: '%s', values: '%s'}\n", strings.ReplaceAll(full, "'", "''"),
				r.values(server, series))
		}
	}
	return b.String()
}

// expectations returns promtool's tests of each phase: the alerts that must fire, and that each query in the runbooks
// of these alerts has a result.
func (r *recording) expectations() string {
	var b strings.Builder
	for i, p := range r.phases {
		at := time.Duration(i*samples)*step + cmp.Or(p.at, (samples-1)*step)
		allowed := ""
		if len(p.allowed) > 0 {
			allowed = `,alertname!~"` + strings.Join(p.allowed, "|") + `"`
		}
		fmt.Fprintf(&b, "      # %s\n      - expr: 'max by (alertname) (ALERTS{alertstate=\"firing\"%s})'\n"+
			"        eval_time: %ds\n        exp_samples:\n", p.name, allowed, int(at.Seconds()))
		for _, alert := range p.alerts {
			fmt.Fprintf(&b, "          - {labels: '{alertname=\"%s\"}', value: 1}\n", alert)
		}
		for _, alert := range p.alerts {
			for _, query := range r.queries(alert) {
				fmt.Fprintf(&b, "      - expr: '(count(%s) > bool 0) or vector(0)'\n        eval_time: %ds\n"+
					"        exp_samples: [{labels: '{}', value: 1}]\n", query, int(at.Seconds()))
			}
		}
	}
	return b.String()
}

// play lets promtool evaluate the rules on the recording.
func (r *recording) play() {
	r.t.Helper()
	rules, err := filepath.Abs(rulesFile)
	if err != nil {
		r.t.Fatal(err)
	}
	file := filepath.Join(r.t.TempDir(), "recorded.yaml")
	text := fmt.Sprintf("rule_files: [%s]\nevaluation_interval: %s\ntests:\n  - interval: %s\n    input_series:\n%s"+
		"    promql_expr_test:\n%s", rules, step, step, r.inputs(), r.expectations())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	out, err := exec.CommandContext(r.t.Context(), "promtool", "test", "rules", file).CombinedOutput()
	if err != nil {
		r.t.Errorf("promtool: %v\n%s", err, out)
	}
	for i, p := range r.phases {
		r.t.Logf("%3d min: %s: %s", i*int(samples*step/time.Minute), p.name, strings.Join(p.alerts, ", "))
	}
}

// needsPromtool skips the test if promtool is missing, or fails it if CLAVIGER_REQUIRE_PROMTOOL is set.
func needsPromtool(t *testing.T) {
	t.Helper()
	switch _, err := exec.LookPath("promtool"); {
	case errors.Is(err, exec.ErrNotFound) && os.Getenv("CLAVIGER_REQUIRE_PROMTOOL") != "":
		t.Fatal("promtool is missing; `make setup` installs it")
	case err != nil:
		t.Skip("promtool is missing")
	}
}

var (
	alertPage = regexp.MustCompile(`(?s)- alert: (\w+)\n.*?runbook_url: docs/runbooks/(\S+)`)
	codeSpan  = regexp.MustCompile("`([^`\n]*claviger_[^`\n]*)`")
)

// pageOf returns the text of the runbook of an alert.
func pageOf(t *testing.T, alert string) string {
	t.Helper()
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range alertPage.FindAllStringSubmatch(string(rules), -1) {
		if m[1] == alert {
			page, err := os.ReadFile(filepath.Join(filepath.Dir(runbooks), m[2]))
			if err != nil {
				t.Fatal(err)
			}
			return string(page)
		}
	}
	t.Fatalf("the rules have no alert %s", alert)
	return ""
}

// queries returns the queries in the runbook of an alert, except queries of metrics that these servers do not have.
func (r *recording) queries(alert string) (list []string) {
	r.t.Helper()
	for _, m := range codeSpan.FindAllStringSubmatch(pageOf(r.t, alert), -1) {
		known := false
		for _, name := range metricName.FindAllString(m[1], -1) {
			known = known || r.kinds[name] != "" || r.isCounter(name)
		}
		if known {
			list = append(list, m[1])
		}
	}
	return list
}

// slow counts the requests and encryptions of a phase that took longer than the rules allow.
func (p *phase) slow() (n float64) {
	for _, read := range p.byServer {
		for _, limit := range []struct{ metric, labels, le string }{
			{"claviger_hsm_function_seconds_bucket", `function="C_Encrypt"`, "0.03"},
			{"claviger_kms_request_seconds_bucket", `op="generate_eek"`, "0.2"},
			{"claviger_kms_request_seconds_bucket", `op="decrypt_eek"`, "0.2"},
		} {
			grown := func(le string) (n float64) {
				for series, v := range read[len(read)-1].values {
					if metricOf(series) == limit.metric && strings.Contains(series, limit.labels) &&
						strings.Contains(series, `le="`+le+`"`) {
						n += v - read[0].values[series]
					}
				}
				return n
			}
			n += grown("+Inf") - grown(limit.le)
		}
	}
	return n
}
