package console

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"claviger/metastore"
)

// buckets are the buckets of histograms of time, in seconds. An HSM answers in tenths of
// milliseconds to tens of milliseconds; a source over the network needs longer. The limits of the
// alerts, 0.03, 0.2 and 2, are bounds of buckets: within a bucket Prometheus guesses a percentile.
var buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .03, .05, .1, .2, .5, 1, 2, 5, 10}

// queryTimeout bounds a query of a store for /metrics. It is well below checkTimeout, after
// which the whole answer fails.
const queryTimeout = checkTimeout / 2

// sizes are the buckets of histograms of the sizes of calls of the HSM.
var sizes = prometheus.ExponentialBuckets(1, 2, 13) // 1 to 4096

// Metrics are the metrics of a server, in a registry of their own.
type Metrics struct {
	registry *prometheus.Registry
	served   observers[served]
	called   observers[called]
	// nameless has no labels with names of keys, hosts or people. It is for peers that
	// Config.Details does not admit.
	nameless *prometheus.Registry

	requests *prometheus.HistogramVec
	edeks    *prometheus.CounterVec
	inFlight prometheus.Gauge

	hsmCalls   *prometheus.HistogramVec
	hsmWaits   prometheus.Histogram
	functions  *prometheus.HistogramVec
	hsmBlocks  prometheus.Histogram
	hsmCallers prometheus.Histogram
	slotWaits  *prometheus.HistogramVec
	refused    *prometheus.CounterVec
	early      *prometheus.CounterVec
}

// NewMetrics makes the metrics of a KMS. use, unless nil, returns how often each key version of
// a source was used.
func NewMetrics(use func(context.Context) ([]metastore.Use, error)) *Metrics {
	m := newMetrics("kms", "status")
	m.register(m.edeks, m.slotWaits, m.refused, m.early)
	if use != nil {
		uses := &recent[[]metastore.Use]{query: use}
		m.registry.MustRegister(&sourceUse{uses, sourceCount, sourceLast})
		m.nameless.MustRegister(&sourceUse{uses, anyCount, anyLast})
	}
	return m
}

// NewServiceMetrics makes the metrics of a server that is not a KMS. service is "trustee" or
// "keyhsm". The server reports its requests to Served.
func NewServiceMetrics(service string) *Metrics { return newMetrics(service, "result") }

// newMetrics makes all metrics, and registers the metrics that every server has. outcome is the label with
// the result of a request.
func newMetrics(service, outcome string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(), nameless: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "claviger_" + service + "_request_seconds",
			Help: "Requests by operation and " + outcome + ".", Buckets: buckets}, []string{"op", outcome}),
		edeks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "claviger_kms_edeks_total",
			Help: "EDEKs generated, decrypted or re-encrypted."}, []string{"op"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "claviger_" + service + "_requests_in_flight",
			Help: "Requests under way."}),

		hsmCalls: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "claviger_hsm_call_seconds",
			Help: "Encryptions on the HSM, by result (ok, error).", Buckets: buckets}, []string{"result"}),
		hsmWaits: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "claviger_hsm_wait_seconds",
			Help: "How long the first caller of an encryption waited until it began.", Buckets: buckets}),
		functions: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "claviger_hsm_function_seconds",
			Help: "Calls of the PKCS #11 library by function and result, logins and searches too.", Buckets: buckets},
			[]string{"function", "result"}),
		hsmBlocks: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "claviger_hsm_call_blocks",
			Help: "Blocks of 16 bytes in one encryption on the HSM; an EDEK has one or two.", Buckets: sizes}),
		hsmCallers: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "claviger_hsm_call_callers",
			Help: "Requests that shared one encryption on the HSM.", Buckets: sizes}),
		slotWaits: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "claviger_kms_slot_wait_seconds",
			Help:    "How long requests waited for a slot, by class; requests that did not wait are not counted.",
			Buckets: buckets}, []string{"class"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "claviger_kms_slot_refused_total",
			Help: "Requests sent to another node because they got no slot in time."}, []string{"class"}),
		early: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "claviger_kms_refused_total",
			Help: "Requests refused before their operation: impersonation without a rule, names, tickets, tokens; a " +
				"handshake begins with one."}, []string{"reason"}),
	}
	m.register(m.requests, m.inFlight, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// register adds metrics that every peer may see.
func (m *Metrics) register(list ...prometheus.Collector) {
	m.registry.MustRegister(list...)
	m.nameless.MustRegister(list...)
}

// Counter adds a metric that only grows. f returns its value now.
func (m *Metrics) Counter(name, help string, f func() float64) {
	m.register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, f))
}

// Gauge adds a metric. f returns its value now.
func (m *Metrics) Gauge(name, help string, f func() float64) {
	m.register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
}

// Info adds a metric that is always 1 and shows labels.
func (m *Metrics) Info(name, help string, labels map[string]string) {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels})
	g.Set(1)
	m.register(g)
}

// Gauges adds a metric with one label. f returns its values now, by the value of the label.
func (m *Metrics) Gauges(name, help, label string, f func() map[string]float64) {
	m.register(&labelled{prometheus.NewDesc(name, help, []string{label}, nil), f})
}

// labelled is a metric of Gauges.
type labelled struct {
	desc   *prometheus.Desc
	values func() map[string]float64
}

func (l *labelled) Describe(ch chan<- *prometheus.Desc) { ch <- l.desc }

func (l *labelled) Collect(ch chan<- prometheus.Metric) {
	for label, v := range l.values() {
		ch <- constant(l.desc, prometheus.GaugeValue, v, label)
	}
}

// Query adds a metric whose value the query f reads, for example from a store. If f fails, the answer lacks the metric.
func (m *Metrics) Query(name, help string, f func(context.Context) (float64, error)) {
	m.register(&query{prometheus.NewDesc(name, help, nil, nil), recent[float64]{query: f}})
}

// recent keeps the result of a query for probeLife, since anonymous clients can request
// /metrics as often as they like.
type recent[T any] struct {
	query func(context.Context) (T, error)

	mu    sync.Mutex
	at    time.Time
	value T
	err   error
}

func (r *recent[T]) get() (T, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at.IsZero() || time.Since(r.at) >= probeLife {
		ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
		defer cancel()
		r.value, r.err = r.query(ctx)
		r.at = time.Now()
	}
	return r.value, r.err
}

type query struct {
	desc *prometheus.Desc
	recent[float64]
}

func (q *query) Describe(ch chan<- *prometheus.Desc) { ch <- q.desc }

func (q *query) Collect(ch chan<- prometheus.Metric) {
	v, err := q.get()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(q.desc, err)
		return
	}
	ch <- constant(q.desc, prometheus.GaugeValue, v)
}

// constant is a metric with the value v. It replaces bytes that a label cannot hold, since
// subjects of certificates and names of versions may contain any bytes.
func constant(desc *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) prometheus.Metric {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "\uFFFD")
	}
	m, err := prometheus.NewConstMetric(desc, kind, v, labels...)
	if err != nil {
		return prometheus.NewInvalidMetric(desc, err)
	}
	return m
}

// HSM adds the metrics of an HSM. The caller reports each encryption to call. sessions returns
// how many sessions of the HSM are in use, and how many may be.
func (m *Metrics) HSM(sessions func() (used, limit int)) (call func(callers, blocks int, waited, took time.Duration,
	err error)) {
	m.register(m.hsmCalls, m.hsmWaits, m.hsmBlocks, m.hsmCallers)
	m.HSMFunctions(sessions)
	ok, failed := m.hsmCalls.WithLabelValues("ok"), m.hsmCalls.WithLabelValues("error")
	return func(callers, blocks int, waited, took time.Duration, err error) {
		if err != nil {
			failed.Observe(took.Seconds())
		} else {
			ok.Observe(took.Seconds())
		}
		m.hsmWaits.Observe(waited.Seconds())
		m.hsmBlocks.Observe(float64(blocks))
		m.hsmCallers.Observe(float64(callers))
	}
}

// HSMFunctions adds the part of HSM that does not depend on encryptions: the metrics of
// Function, and of the sessions.
func (m *Metrics) HSMFunctions(sessions func() (used, limit int)) {
	m.register(m.functions)
	m.Gauge("claviger_hsm_sessions_in_use", "Sessions of the HSM in use.",
		func() float64 { used, _ := sessions(); return float64(used) })
	m.Gauge("claviger_hsm_sessions_max", "Sessions that may be in use at once.",
		func() float64 { _, limit := sessions(); return float64(limit) })
}

// Function counts a call of the PKCS #11 library. Call HSM or HSMFunctions first.
func (m *Metrics) Function(name, result string, took time.Duration) {
	m.called.get(called{name, result}, func() prometheus.Observer {
		return m.functions.WithLabelValues(name, result)
	}).Observe(took.Seconds())
}

// Waited counts a request that waited for a slot of its class. admitted is false if it got
// none. It can be the Waited of a kmsapi.Config.
func (m *Metrics) Waited(class string, took time.Duration, admitted bool) {
	m.slotWaits.WithLabelValues(class).Observe(took.Seconds())
	if !admitted {
		m.refused.WithLabelValues(class).Inc()
	}
}

// Expect shows the metrics of these classes and reasons with 0 before their first event.
// Otherwise Prometheus's rate would miss the first event.
func (m *Metrics) Expect(classes, reasons []string) {
	for _, class := range classes {
		m.slotWaits.WithLabelValues(class)
		m.refused.WithLabelValues(class)
	}
	for _, reason := range reasons {
		m.early.WithLabelValues(reason)
	}
}

// Refused counts a request that was refused before its operation. It is kmsapi's hook.
func (m *Metrics) Refused(reason string) { m.early.WithLabelValues(reason).Inc() }

// Expiry is the end of something that must be renewed, such as a certificate.
type Expiry struct {
	Name, Subject string
	Ends          time.Time
}

// Expiries adds a metric of the ends that list returns, in seconds since 1970. Peers without
// details do not see the subjects.
func (m *Metrics) Expiries(name, help string, list func() ([]Expiry, error)) {
	m.registry.MustRegister(&expiries{prometheus.NewDesc(name, help, []string{"name", "subject"}, nil), list, true})
	m.nameless.MustRegister(&expiries{prometheus.NewDesc(name, help, []string{"name"}, nil), list, false})
}

type expiries struct {
	desc    *prometheus.Desc
	list    func() ([]Expiry, error)
	subject bool
}

func (e *expiries) Describe(ch chan<- *prometheus.Desc) { ch <- e.desc }

func (e *expiries) Collect(ch chan<- prometheus.Metric) {
	list, err := e.list()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(e.desc, err)
		return
	}
	for _, x := range list {
		labels := []string{x.Name, x.Subject}
		if !e.subject {
			labels = labels[:1]
		}
		ch <- constant(e.desc, prometheus.GaugeValue, float64(x.Ends.Unix()), labels...)
	}
}

// underWay counts the requests that next is serving now.
func (m *Metrics) underWay(next http.Handler) http.Handler {
	return promhttp.InstrumentHandlerInFlight(m.inFlight, next)
}

// Observe counts a request and, if it succeeded, its EDEKs. It is kmsapi's hook.
func (m *Metrics) Observe(op string, status, edeks int, took time.Duration) {
	m.served.get(served{op, status}, func() prometheus.Observer {
		return m.requests.WithLabelValues(op, strconv.Itoa(status))
	}).Observe(took.Seconds())
	if edeks > 0 && status == http.StatusOK {
		m.edeks.WithLabelValues(op).Add(float64(edeks))
	}
}

// served and called have the labels of a request to a KMS, and of a call of the PKCS #11 library.
type (
	served struct {
		op     string
		status int
	}
	called struct{ function, result string }
)

// observers are the parts of a histogram by their labels. Prometheus makes a text of the labels for each search, and
// compares it, which costs more than the count itself.
type observers[K comparable] struct {
	mu    sync.RWMutex
	known map[K]prometheus.Observer
}

// get returns the part with the labels. find searches it in the histogram. A histogram has few parts, and keeps them.
func (o *observers[K]) get(labels K, find func() prometheus.Observer) prometheus.Observer {
	o.mu.RLock()
	part := o.known[labels]
	o.mu.RUnlock()
	if part != nil {
		return part
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.known == nil {
		o.known = make(map[K]prometheus.Observer)
	}
	o.known[labels] = find()
	return o.known[labels]
}

// Served counts a request to a server of NewServiceMetrics. result is "ok" or the kind of the
// error that was answered.
func (m *Metrics) Served(op, result string, took time.Duration) {
	m.requests.WithLabelValues(op, result).Observe(took.Seconds())
}

// Timed adds a histogram of requests that this server sends to another server, in seconds by
// operation and result. The caller reports each request to observe.
func (m *Metrics) Timed(name, help string) (observe func(op, result string, took time.Duration)) {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets},
		[]string{"op", "result"})
	m.register(h)
	return func(op, result string, took time.Duration) { h.WithLabelValues(op, result).Observe(took.Seconds()) }
}

// Handler serves the metrics. A metric that cannot be read is left out and logged; the others
// are served. Only peers that details admits see labels with names, see Config.Details.
func (m *Metrics) Handler(log *slog.Logger, details func(*http.Request) bool) http.Handler {
	serve := func(g prometheus.Gatherer) http.Handler {
		return promhttp.HandlerFor(g, promhttp.HandlerOpts{
			Timeout: checkTimeout, ErrorHandling: promhttp.ContinueOnError,
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		})
	}
	all, plain := serve(m.registry), serve(m.nameless)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if details(r) {
			all.ServeHTTP(w, r)
		} else {
			plain.ServeHTTP(w, r)
		}
	})
}

// sourceUse counts the uses of a source by key version. A source can be retired when they end. Peers without details
// see the sum and the last use of all versions, because the names of sources and versions are not for them.
type sourceUse struct {
	*recent[[]metastore.Use]
	count, last *prometheus.Desc
}

const (
	countHelp = "EDEKs of a source's key version that the source has opened, or that were requested without the " +
		"source (op unserved)."
	lastHelp = "When such a request was last counted, in seconds since 1970."
)

var (
	sourceCount = prometheus.NewDesc("claviger_source_edeks_total", countHelp, []string{"source", "version", "op"}, nil)
	sourceLast  = prometheus.NewDesc("claviger_source_last_use_seconds", lastHelp,
		[]string{"source", "version", "op"}, nil)

	anyCount = prometheus.NewDesc("claviger_source_edeks_total", countHelp, []string{"op"}, nil)
	anyLast  = prometheus.NewDesc("claviger_source_last_use_seconds", lastHelp, []string{"op"}, nil)
)

func (s *sourceUse) Describe(ch chan<- *prometheus.Desc) { ch <- s.count; ch <- s.last }

func (s *sourceUse) Collect(ch chan<- prometheus.Metric) {
	uses, err := s.get()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(s.count, err)
		return
	}
	if s.count == anyCount {
		uses = byOp(uses)
	}
	for _, u := range uses {
		labels := []string{u.Source, u.Version, u.Op}
		if s.count == anyCount {
			labels = labels[2:]
		}
		ch <- constant(s.count, prometheus.CounterValue, float64(u.Count), labels...)
		ch <- constant(s.last, prometheus.GaugeValue, float64(u.Last.UnixMilli())/1000, labels...)
	}
}

// byOp returns the uses of all versions together: their sum and the last of them, by operation.
func byOp(uses []metastore.Use) (list []metastore.Use) {
	for _, u := range uses {
		i := slices.IndexFunc(list, func(of metastore.Use) bool { return of.Op == u.Op })
		if i < 0 {
			list = append(list, metastore.Use{Op: u.Op})
			i = len(list) - 1
		}
		list[i].Count += u.Count
		if u.Last.After(list[i].Last) {
			list[i].Last = u.Last
		}
	}
	return list
}
