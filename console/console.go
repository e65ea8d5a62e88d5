// Package console tells people and machines how the server is: /healthz,
// /readyz and /metrics. It asks for no credentials and shows no secret. Names of keys,
// users, hosts and files it shows only to peers that Config.Details admits.
package console

import (
	"log/slog"
	"net/http"
)

// Config is what a console is made of.
type Config struct {
	Checks  []Check
	Metrics *Metrics // nil: no /metrics
	Log     *slog.Logger
	// Details tells who may read what names keys, users, hosts or files: texts of failed
	// checks and some labels of figures. nil: each peer that reaches the console.
	Details func(*http.Request) bool
}

func (c *Config) details(r *http.Request) bool { return c.Details == nil || c.Details(r) }

// console is what New makes.
type console struct {
	Config
	probes []*probe
}

// New returns a handler that serves the console's paths and hands all others
// to next.
func New(cfg Config, next http.Handler) http.Handler {
	c := &console{Config: cfg}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, check := range cfg.Checks {
		c.probes = append(c.probes, &probe{Check: check})
	}
	pages := map[string]http.Handler{"/healthz": http.HandlerFunc(healthz), "/readyz": http.HandlerFunc(c.readyz)}
	if cfg.Metrics != nil {
		pages["/metrics"] = cfg.Metrics.Handler(c.Log, c.details)
		next = cfg.Metrics.underWay(next)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	})
}

// healthz says that the process answers; whether it can serve is readyz's.
func healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n")) // the client is gone if this fails
}
