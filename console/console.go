// Package console shows the state of a server to people and programs: /healthz, /readyz and
// /metrics. It needs no credentials and shows no secret. It shows names of keys, users, hosts
// and files only to peers that Config.Details admits.
package console

import (
	"log/slog"
	"net/http"
)

// Config is what New needs.
type Config struct {
	Checks  []Check
	Metrics *Metrics // nil: no /metrics
	Log     *slog.Logger
	// Details returns whether the peer of a request may read names of keys, users, hosts and
	// files: in the texts of failed checks and in some labels of metrics. If Details is nil,
	// every peer may.
	Details func(*http.Request) bool
}

func (c *Config) details(r *http.Request) bool { return c.Details == nil || c.Details(r) }

// Console is the handler of New.
type Console struct {
	Config
	probes  []*probe
	handler http.HandlerFunc
}

// ServeHTTP is part of http.Handler.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.handler(w, r) }

// New returns a handler that serves the console's paths, and passes all other requests to next.
func New(cfg Config, next http.Handler) *Console {
	c := &Console{Config: cfg}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, check := range cfg.Checks {
		c.probes = append(c.probes, &probe{Check: check})
	}
	pages := map[string]http.Handler{"/healthz": http.HandlerFunc(healthz), "/readyz": http.HandlerFunc(c.readyz)}
	if cfg.Metrics != nil {
		cfg.Metrics.addChecks(c.probes)
		pages["/metrics"] = cfg.Metrics.Handler(c.Log, c.details)
		next = cfg.Metrics.underWay(next)
	}
	c.handler = func(w http.ResponseWriter, r *http.Request) {
		page, ok := pages[r.URL.Path]
		switch {
		case !ok:
			next.ServeHTTP(w, r)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			w.WriteHeader(http.StatusMethodNotAllowed)
		default:
			page.ServeHTTP(w, r)
		}
	}
	return c
}

// healthz answers that the process runs. readyz answers whether the server can serve.
func healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n")) // Write fails if the client has disconnected
}
