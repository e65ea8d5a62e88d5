package server

import (
	"context"
	"strings"
	"sync"
	"time"

	"claviger"
	"claviger/trustee"
)

// faultHolds is how long an answer of a WriteProbe is repeated. Each probe writes to the disk.
const faultHolds = 5 * time.Second

// WriteProbe remembers whether a store took changes when it was last probed.
type WriteProbe struct {
	mu   sync.Mutex // held during a probe: other callers wait for its answer
	at   time.Time
	text string
}

// Fault says why the store takes no changes, a full disk for example, or "" if it takes them. If ctx
// ends during the probe, the earlier answer stays.
func (f *WriteProbe) Fault(ctx context.Context, store Store, now time.Time) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.at.IsZero() && now.Sub(f.at) < faultHolds {
		return f.text
	}
	err := store.CheckWrites(ctx)
	switch {
	case err == nil:
		f.at, f.text = now, ""
	case ctx.Err() == nil:
		f.at, f.text = now, err.Error()
	}
	return f.text
}

// Forget makes the next Fault probe the store.
func (f *WriteProbe) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = time.Time{}
}

// takesNone precedes the fault in the status of a server that is not one of two.
const takesNone = "its store takes no changes: "

// single is the answer to an operator's request for one of two servers, of a server that is alone.
func (s *Server) single(ctx context.Context, verb string) error {
	text := ""
	if verb == trustee.VerbStatus {
		if fault := s.faults.Fault(ctx, s.store, time.Now()); fault != "" {
			text = "; " + takesNone + fault
		}
	}
	return claviger.Errorf("server.do", claviger.Invalid, "", "%s: claviger trustee serve --peer makes it that%s",
		notOneOfTwo, text)
}

// SingleFault returns the fault in the status of a server that is not one of two, or "" if its store
// takes changes.
func SingleFault(err error) string {
	_, fault, _ := strings.Cut(err.Error(), takesNone)
	return fault
}
