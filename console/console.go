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

// console is what New makes.
type console struct {
	log    *slog.Logger
	probes []*probe
}

// New returns a handler that serves the console's paths and hands all others
// to next.
func New(cfg Config, next http.Handler) http.Handler {
	c := &console{log: cfg.Log}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	for _, check := range cfg.Checks {
		c.probes = append(c.probes, &probe{Check: check})
	}
	pages := map[string]http.Handler{"/healthz": http.HandlerFunc(healthz), "/readyz": http.HandlerFunc(c.readyz)}
	if cfg.Metrics != nil {
		pages["/metrics"] = cfg.Metrics.Handler(c.log)
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

// result is one check in the answer of /readyz.
type result struct {
	Name          string `json:"name"`
	OK            bool   `json:"ok"`
	Informational bool   `json:"informational,omitempty"`
	Error         string `json:"error,omitempty"`
	Took          string `json:"took"`
}

// believed is how long the outcome of a check holds for other probes. Anybody
// may ask, and checks go to the HSM.
const believed = time.Second

// probe runs one check, for however many ask, once at a time.
type probe struct {
	Check

	mu   sync.Mutex
	last result
	at   time.Time     // when last was found; zero: never
	done chan struct{} // closed when the run under way ends; nil: none is
}

// result returns what the check says, or that it does not answer before ctx
// ends.
func (p *probe) result(ctx context.Context) result {
	p.mu.Lock()
	if p.done == nil && !p.at.IsZero() && time.Since(p.at) < believed {
		defer p.mu.Unlock()
		return p.last
	}
	if p.done == nil {
		p.done = make(chan struct{})
		go p.run() //nolint:gosec // it outlives the probe on purpose: others wait for it
	}
	done := p.done
	p.mu.Unlock()
	select {
	case <-done:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.last
	case <-ctx.Done():
		return result{Name: p.Name, Informational: p.Informational, Error: "no answer yet", Took: "over " + checkTimeout.String()}
	}
}

func (p *probe) run() {
	// Not the context of one who asks: another may wait for it, too.
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	began := time.Now()
	err := p.Run(ctx)
	r := result{Name: p.Name, OK: err == nil, Informational: p.Informational, Took: time.Since(began).Round(time.Microsecond).String()}
	if err != nil {
		r.Error = err.Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.at = r, time.Now()
	close(p.done)
	p.done = nil
}

// readyz answers with the outcome of all checks: 200, or 503 where one that
// counts fails.
func (c *console) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	results := make([]result, len(c.probes))
	var wg sync.WaitGroup
	for i, p := range c.probes {
		wg.Go(func() { results[i] = p.result(ctx) })
	}
	wg.Wait()
	status := http.StatusOK
	for _, res := range results {
		if !res.OK && !res.Informational {
			status = http.StatusServiceUnavailable
		}
	}
	body, err := json.MarshalIndent(struct {
		Ready  bool     `json:"ready"`
		Checks []result `json:"checks"`
	}{status == http.StatusOK, results}, "", "  ")
	if err != nil {
		c.log.Error("readyz", "err", err)
		status, body = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client is gone if this fails
}
