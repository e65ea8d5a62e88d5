package kms

import (
	"net/url"
	"os"

	"claviger/buildinfo"
	"claviger/console"
	"claviger/provider"
	"claviger/trace/otlp"
)

const traceEndpoint = "claviger.trace.endpoint"

// traceSettings say which requests are traced, and where the spans go.
type traceSettings struct {
	endpoint *url.URL // nil: no request is traced
	ratio    float64
}

// trace reads the settings of traces.
func (r *reader) trace() traceSettings {
	s := traceSettings{ratio: r.float("claviger.trace.ratio", 0, 1)}
	text := r.conf.String(traceEndpoint)
	if text == "" {
		return s
	}
	var err error
	if s.endpoint, err = otlp.ParseEndpoint(text); err != nil {
		r.keep(r.conf.Refuse(traceEndpoint, err.Error()))
	}
	return s
}

// openTraces opens the exporter of traces, if the settings name a collector.
func (s *server) openTraces() error {
	set := s.set.trace
	if set.endpoint == nil {
		return nil
	}
	cfg := otlp.Config{Endpoint: set.endpoint, Ratio: set.ratio, Version: buildinfo.Read().Version, Log: s.log}
	var err error
	if set.endpoint.Scheme == "https" {
		if cfg.TLS, err = s.svc.ClientTLS(provider.Env{}); err != nil {
			return err
		}
	}
	if cfg.Host, err = os.Hostname(); err != nil {
		return err
	}
	if s.traces, err = otlp.Open(cfg); err != nil {
		return err
	}
	s.closers = append(s.closers, s.traces.Close)
	return nil
}

// traceMetrics adds the metrics of traces.
func traceMetrics(m *console.Metrics, e *otlp.Exporter) {
	m.Counter("claviger_trace_spans_total", "Spans of traces that the collector has taken.",
		func() float64 { return float64(e.Figures().Sent) })
	m.Counter("claviger_trace_spans_lost_total", "Spans of traces that the collector did not take in time, or that "+
		"found the queue full.", func() float64 { return float64(e.Figures().Lost) })
	m.Gauge("claviger_trace_spans_waiting", "Spans of traces that wait for the collector.",
		func() float64 { return float64(e.Figures().Waiting) })
}
