package console

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"claviger/metastore"
)

// buckets of the request histogram, in seconds: an HSM answers in tenths of
// milliseconds to tens of them, a source over the network in more.
var buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// Metrics are the server's figures, on a registry of their own.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
	edeks    *prometheus.CounterVec
	inFlight prometheus.Gauge
}

// NewMetrics makes them. use, if not nil, returns how often the versions of
// sources were asked for.
func NewMetrics(use func(context.Context) ([]metastore.Use, error)) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "claviger_kms_request_seconds", Help: "Requests by operation and status.", Buckets: buckets}, []string{"op", "status"}),
		edeks:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "claviger_kms_edeks_total", Help: "EDEKs generated, decrypted or re-encrypted."}, []string{"op"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "claviger_kms_requests_in_flight", Help: "Requests under way."}),
	}
	m.registry.MustRegister(m.requests, m.edeks, m.inFlight, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if use != nil {
		m.registry.MustRegister(&sourceUse{use})
	}
	return m
}

// Counter adds a figure that only grows, and that f tells when it is asked for.
func (m *Metrics) Counter(name, help string, f func() float64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, f))
}

// Gauge adds a figure that f tells when it is asked for.
func (m *Metrics) Gauge(name, help string, f func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
}

// underWay counts the requests that next is serving.
func (m *Metrics) underWay(next http.Handler) http.Handler {
	return promhttp.InstrumentHandlerInFlight(m.inFlight, next)
}

// Observe is kmsapi's hook.
func (m *Metrics) Observe(op string, status, edeks int, took time.Duration) {
	m.requests.WithLabelValues(op, strconv.Itoa(status)).Observe(took.Seconds())
	if edeks > 0 && status == http.StatusOK {
		m.edeks.WithLabelValues(op).Add(float64(edeks))
	}
}

// Handler serves the figures. Those that cannot be had are left out and logged;
// the others are not lost with them.
func (m *Metrics) Handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		Timeout: checkTimeout, ErrorHandling: promhttp.ContinueOnError, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	})
}

// sourceUse shows by version who still needs a source, which is what its
// retirement waits for.
type sourceUse struct {
	use func(context.Context) ([]metastore.Use, error)
}

var (
	sourceCount = prometheus.NewDesc("claviger_source_edeks_total", "EDEKs of a source's key version that the source was asked to open.", []string{"source", "version", "op"}, nil)
	sourceLast  = prometheus.NewDesc("claviger_source_last_use_seconds", "When it last was, in seconds since 1970.", []string{"source", "version", "op"}, nil)
)

func (s *sourceUse) Describe(ch chan<- *prometheus.Desc) { ch <- sourceCount; ch <- sourceLast }

func (s *sourceUse) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	uses, err := s.use(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(sourceCount, err)
		return
	}
	for _, u := range uses {
		ch <- prometheus.MustNewConstMetric(sourceCount, prometheus.CounterValue, float64(u.Count), u.Source, u.Version, u.Op)
		ch <- prometheus.MustNewConstMetric(sourceLast, prometheus.GaugeValue, float64(u.Last.UnixMilli())/1000, u.Source, u.Version, u.Op)
	}
}
