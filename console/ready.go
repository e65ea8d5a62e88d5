package console

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"
)

// checkTimeout bounds one check, so that a probe gets its answer in time.
const checkTimeout = 5 * time.Second

const (
	// believed is how long the outcome of a probe holds for others. Anybody may ask, and
	// probes go to the HSM.
	believed = time.Second
	// trusted is how long what a request saw holds, if it went well. Nothing is probed
	// then. What failed is probed again once it is as old as believed.
	trusted = 10 * time.Second
)

// Purpose is what a node can be asked for.
type Purpose string

// The purposes.
const (
	Decrypt  Purpose = "decrypt"  // open EDEKs
	Generate Purpose = "generate" // make EDEKs, re-encrypt, show keys
	Write    Purpose = "write"    // create, roll, delete keys
)

// Purposes are all of them.
var Purposes = []Purpose{Decrypt, Generate, Write}

// Observation is what a request, or a probe, saw of a part.
type Observation struct {
	At   time.Time // when it ended
	Took time.Duration
	Err  error // nil: all was well
}

// Check is one named condition of readiness.
type Check struct {
	Name string
	// Anonymous is the name for those who may not see details, where Name names more than
	// a part; "": Name.
	Anonymous string
	// Informational: a failure is shown and does not make the node unready.
	Informational bool
	// For is what can't be served where it fails; none: nothing can.
	For []Purpose
	// Last is what requests saw last, ok is false where none has used the part; nil where
	// there are no requests that tell. It is quick.
	Last func() (o Observation, ok bool)
	// Run probes the part. It says what is wrong, in words for an operator and without
	// secrets.
	Run func(ctx context.Context) error
	// Holds is how long a probe holds that went well; 0 is a second.
	Holds time.Duration
}

func (c *Check) concerns(p Purpose) bool { return len(c.For) == 0 || slices.Contains(c.For, p) }

// result is one check in the answer of /readyz.
type result struct {
	Name          string    `json:"name"`
	OK            bool      `json:"ok"`
	Informational bool      `json:"informational,omitempty"`
	For           []Purpose `json:"for,omitempty"`
	Error         string    `json:"error,omitempty"`
	By            string    `json:"by"`       // "request" or "probe"
	Observed      string    `json:"observed"` // when, in UTC; "" where a probe has not ended
	Took          string    `json:"took"`
}

// probe runs one check, for however many ask, once at a time.
type probe struct {
	Check

	mu   sync.Mutex
	last Observation   // of the probe; its time is zero where none has ended
	done chan struct{} // closed when the run under way ends; nil: none is
	// logged is when the log was last told what is wrong.
	logged time.Time
}

// logAgain is how long a check that goes on failing is not logged again.
const logAgain = time.Hour

// log tells what is wrong, for those who may not read it in an answer. It is not told of
// each change of a part that comes and goes: anybody may ask.
func (p *probe) log(log *slog.Logger, r result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.OK || time.Since(p.logged) < logAgain {
		return
	}
	p.logged = time.Now()
	log.Warn("a check of /readyz fails; this is logged once an hour", "check", r.Name, "err", r.Error, "informational",
		r.Informational)
}

func (p *probe) show(o Observation, by string) result {
	r := result{Name: p.Name, OK: o.Err == nil, Informational: p.Informational, For: p.For, By: by,
		Observed: o.At.UTC().Format(time.RFC3339Nano), Took: o.Took.Round(time.Microsecond).String()}
	if o.Err != nil {
		r.Error = o.Err.Error()
	}
	return r
}

// result returns what was seen last, by a request or by a probe; it probes where that is
// too old, and says where the probe does not end before ctx does.
func (p *probe) result(ctx context.Context) result {
	p.mu.Lock()
	last, by, holds := p.last, "probe", believed
	if p.last.Err == nil {
		holds = max(believed, p.Holds)
	}
	if p.Last != nil {
		if o, ok := p.Last(); ok && o.At.After(last.At) {
			last, by, holds = o, "request", believed
			if o.Err == nil {
				holds = trusted
			}
		}
	}
	if p.done == nil && !last.At.IsZero() && time.Since(last.At) < holds {
		p.mu.Unlock()
		return p.show(last, by)
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
		return p.show(p.last, "probe")
	case <-ctx.Done():
		return result{Name: p.Name, Informational: p.Informational, For: p.For, Error: "no answer yet", By: "probe",
			Took: "over " + checkTimeout.String()}
	}
}

func (p *probe) run() {
	// Not the context of one who asks: another may wait for it, too.
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

// notShown stands in the place of an error for those who may not see details.
const notShown = "what is wrong is not shown to this address; " +
	"ask from an address that the property claviger.console.details names, or see the server's log"

// anonymous is a result for those who may not see details.
func (p *probe) anonymous(r result) result {
	if p.Anonymous != "" {
		r.Name = p.Anonymous
	}
	if r.Error != "" {
		r.Error = notShown
	}
	return r
}

// answer is the body of /readyz.
type answer struct {
	Ready bool             `json:"ready"`
	Can   map[Purpose]bool `json:"can"`
	// Checks are all, or those that concern the purpose which was asked for.
	Checks []result `json:"checks"`
}

// readyz answers with the outcome of the checks: 200, or 503 where one that counts
// fails. ?for= asks for one purpose alone.
func (c *console) readyz(w http.ResponseWriter, r *http.Request) {
	purposes := Purposes
	if asked, ok := r.URL.Query()["for"]; ok {
		if len(asked) != 1 || !slices.Contains(Purposes, Purpose(asked[0])) {
			http.Error(w, "for must be decrypt, generate or write, as in /readyz?for=decrypt", http.StatusBadRequest)
			return
		}
		purposes = []Purpose{Purpose(asked[0])}
	}
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	var asked []*probe
	for _, p := range c.probes {
		if slices.ContainsFunc(purposes, p.concerns) {
			asked = append(asked, p)
		}
	}
	a := answer{Ready: true, Can: map[Purpose]bool{}, Checks: make([]result, len(asked))}
	var wg sync.WaitGroup
	for i, p := range asked {
		wg.Go(func() { a.Checks[i] = p.result(ctx) })
	}
	wg.Wait()
	anonymous := !c.details(r)
	for i, p := range asked {
		p.log(c.Log, a.Checks[i])
		if anonymous {
			a.Checks[i] = p.anonymous(a.Checks[i])
		}
	}
	for _, purpose := range purposes {
		a.Can[purpose] = true
		for i, p := range asked {
			if !a.Checks[i].OK && !p.Informational && p.concerns(purpose) {
				a.Can[purpose], a.Ready = false, false
			}
		}
	}
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
	_, _ = w.Write(append(body, '\n')) // the client is gone if this fails
}
