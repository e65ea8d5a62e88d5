// Package console tells people and machines how the server is: /healthz,
// /readyz and /metrics. It asks for no credentials and shows no secret, no key
// name beyond those of source versions still in use, and nothing that a key
// could be attacked with.
package console

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// checkTimeout bounds one check, so that a probe gets its answer in time.
const checkTimeout = 5 * time.Second

// Check is one named condition of readiness.
type Check struct {
	Name string
	// Informational: a failure is shown and does not make the node unready.
	Informational bool
	// Run says what is wrong, in words for an operator and without secrets.
	Run func(ctx context.Context) error
}

// Config is what a console is made of.
type Config struct {
	Checks  []Check
	Metrics *Metrics // nil: no /metrics
	Log     *slog.Logger
}

// New returns a handler that serves the console's paths and hands all others
// to next.
func New(cfg Config, next http.Handler) http.Handler {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	var metrics http.Handler
	if cfg.Metrics != nil {
		metrics = cfg.Metrics.handler()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var h http.HandlerFunc
		switch r.URL.Path {
		case "/healthz":
			h = healthz
		case "/readyz":
			h = cfg.readyz
		case "/metrics":
			if metrics != nil {
				h = metrics.ServeHTTP
			}
		}
		switch {
		case h == nil:
			next.ServeHTTP(w, r)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			w.WriteHeader(http.StatusMethodNotAllowed)
		default:
			h(w, r)
		}
	})
}

// healthz says that the process answers; whether it can serve is readyz's.
func healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n")) // the client is gone if this fails
}

// result is one check in the answer of /readyz.
type result struct {
	Name          string `json:"name"`
	OK            bool   `json:"ok"`
	Informational bool   `json:"informational,omitempty"`
	Error         string `json:"error,omitempty"`
	Took          string `json:"took"`
}

// readyz runs all checks side by side and answers 200, or 503 where one that
// counts fails.
func (c *Config) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	results := make([]result, len(c.Checks))
	var wg sync.WaitGroup
	for i, check := range c.Checks {
		wg.Go(func() {
			began := time.Now()
			err := check.Run(ctx)
			results[i] = result{Name: check.Name, OK: err == nil, Informational: check.Informational, Took: time.Since(began).Round(time.Microsecond).String()}
			if err != nil {
				results[i].Error = err.Error()
			}
		})
	}
	wg.Wait()
	status := http.StatusOK
	for _, res := range results {
		if !res.OK && !res.Informational {
			status = http.StatusServiceUnavailable
		}
	}
	body, err := json.MarshalIndent(map[string]any{"ready": status == http.StatusOK, "checks": results}, "", "  ")
	if err != nil {
		c.Log.Error("readyz", "err", err)
		status, body = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
