package console

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// checkTimeout bounds one check, so that /readyz answers in time.
const checkTimeout = 5 * time.Second

const (
	// probeLife is how long the result of a probe is used again. It protects the HSM, since
	// anonymous clients can request /readyz.
	probeLife = time.Second
	// requestLife is how long a success that a request has seen replaces a probe. A failure
	// replaces a probe for probeLife only.
	requestLife = 10 * time.Second
)

// WriteProbeLife is a Check.Holds for probes that change something to see whether changes are
// possible.
const WriteProbeLife = 15 * time.Second

// Purpose is a kind of requests to a node.
type Purpose string

// The purposes.
const (
	Decrypt  Purpose = "decrypt"  // open EDEKs
	Generate Purpose = "generate" // make EDEKs, re-encrypt, show keys
	Write    Purpose = "write"    // create, roll, delete keys
)

// Purposes are all purposes.
var Purposes = []Purpose{Decrypt, Generate, Write}

// Observation is the result of a request, or of a probe, that used a part of the server.
type Observation struct {
	At   time.Time // when it ended
	Took time.Duration
	Err  error // nil: it succeeded
}

// Check is one named condition of readiness.
type Check struct {
	Name string
	// Anonymous is the name that peers without details see, if Name contains the name of a key, user, host or file; ""
	// means Name.
	Anonymous string
	// If Informational is true, a failure is shown and does not make the node unready.
	Informational bool
	// For are the purposes that a failure prevents; empty means all purposes.
	For []Purpose
	// Last, unless nil, returns the latest observation by a request. ok is false if no request
	// has used the part. Last must be quick.
	Last func() (o Observation, ok bool)
	// Run probes the part. Its error is for an operator, and contains no secret.
	Run func(ctx context.Context) error
	// Holds is how long a successful probe is used again; 0 is a second.
	Holds time.Duration
}

func (c *Check) concerns(p Purpose) bool { return len(c.For) == 0 || slices.Contains(c.For, p) }

// Result is one check in a Report.
type Result struct {
	Name          string    `json:"name"`
	OK            bool      `json:"ok"`
	Informational bool      `json:"informational,omitempty"`
	For           []Purpose `json:"for,omitempty"`
	Error         string    `json:"error,omitempty"`
	By            string    `json:"by"`       // "request" or "probe"
	Observed      string    `json:"observed"` // time in UTC; "" while the first probe runs
	Took          string    `json:"took"`
}

// probe runs one check. Requests at the same time share one run.
type probe struct {
	Check

	mu   sync.Mutex
	last Observation   // of the latest run; its time is zero before the first has ended
	done chan struct{} // closed when the current run ends; nil: none runs
	// logged is when a failure was last logged.
	logged time.Time
}

// logInterval is how often the failure of one check is logged.
const logInterval = time.Hour

// log logs a failure, since not every peer may read it in the answer. It logs once in
// logInterval, so that anonymous clients cannot fill the log while a part comes and goes.
func (p *probe) log(log *slog.Logger, r Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.OK || time.Since(p.logged) < logInterval {
		return
	}
	p.logged = time.Now()
	log.Warn("a check of /readyz fails; this is logged once an hour", "check", r.Name, "err", r.Error, "informational",
		r.Informational)
}

func (p *probe) show(o Observation, by string) Result {
	r := Result{Name: p.Name, OK: o.Err == nil, Informational: p.Informational, For: p.For, By: by,
		Observed: o.At.UTC().Format(time.RFC3339Nano), Took: o.Took.Round(time.Microsecond).String()}
	if o.Err != nil {
		r.Error = o.Err.Error()
	}
	return r
}

// result returns the latest observation, by a request or by a probe. It probes if that is too
// old. If the probe does not end before ctx does, the result is a failure.
func (p *probe) result(ctx context.Context) Result {
	p.mu.Lock()
	last, by, life := p.last, "probe", probeLife
	if p.last.Err == nil {
		life = max(probeLife, p.Holds)
	}
	if p.Last != nil {
		if o, ok := p.Last(); ok && o.At.After(last.At) {
			last, by, life = o, "request", probeLife
			if o.Err == nil {
				life = requestLife
			}
		}
	}
	if p.done == nil && !last.At.IsZero() && time.Since(last.At) < life {
		p.mu.Unlock()
		return p.show(last, by)
	}
	if p.done == nil {
		p.done = make(chan struct{})
		go p.run() //nolint:gosec // it outlives ctx on purpose, since other requests may wait for it
	}
	done := p.done
	p.mu.Unlock()
	select {
	case <-done:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.show(p.last, "probe")
	case <-ctx.Done():
		return Result{Name: p.Name, Informational: p.Informational, For: p.For, Error: "no answer yet", By: "probe",
			Took: "over " + checkTimeout.String()}
	}
}

func (p *probe) run() {
	// Not the context of a request, since other requests may wait for this run.
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	began := time.Now()
	err := p.Run(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = Observation{At: time.Now(), Took: time.Since(began), Err: err}
	close(p.done)
	p.done = nil
}

// notShown replaces an error for peers that may not see details.
const notShown = "the reason is not shown to this address; send the request from an address that the property " +
	"claviger.console.details names, or see the server's log"

// anonymous returns a result without details.
func (p *probe) anonymous(r Result) Result {
	if p.Anonymous != "" {
		r.Name = p.Anonymous
	}
	if r.Error != "" {
		r.Error = notShown
	}
	return r
}

// Report is the state of a server, and the body of /readyz.
type Report struct {
	Ready bool             `json:"ready"`
	Can   map[Purpose]bool `json:"can"`
	// Checks are all checks, or those for the requested purpose.
	Checks []Result `json:"checks"`
}

// Report runs the checks that concern one of the purposes. If details is false, the
// report has no names of keys, users, hosts and files.
func (c *Console) Report(ctx context.Context, purposes []Purpose, details bool) Report {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var probes []*probe
	for _, p := range c.probes {
		if slices.ContainsFunc(purposes, p.concerns) {
			probes = append(probes, p)
		}
	}
	a := Report{Checks: results(ctx, probes)}
	a.Can = capable(probes, a.Checks, purposes)
	a.Ready = !slices.Contains(slices.Collect(maps.Values(a.Can)), false)
	for i, p := range probes {
		p.log(c.Log, a.Checks[i])
		if !details {
			a.Checks[i] = p.anonymous(a.Checks[i])
		}
	}
	return a
}

// readyz answers with the results of the checks: 200, or 503 if a check fails that is not
// informational. ?for= selects the checks of one purpose.
func (c *Console) readyz(w http.ResponseWriter, r *http.Request) {
	purposes := Purposes
	if values, ok := r.URL.Query()["for"]; ok {
		if len(values) != 1 || !slices.Contains(Purposes, Purpose(values[0])) {
			http.Error(w, "for must be decrypt, generate or write, as in /readyz?for=decrypt", http.StatusBadRequest)
			return
		}
		purposes = []Purpose{Purpose(values[0])}
	}
	a := c.Report(r.Context(), purposes, c.details(r))
	status := http.StatusOK
	if !a.Ready {
		status = http.StatusServiceUnavailable
	}
	body, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		c.Log.Error("readyz", "err", err)
		status, body = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // Write fails if the client has disconnected
}
