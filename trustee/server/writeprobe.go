package server

import (
	"context"
	"strings"
	"sync"
	"time"

	"claviger"
	"claviger/trustee"
)

// probeLife is how long WriteProbe returns the result of a probe. Each probe writes to the disk.
const probeLife = 5 * time.Second

// WriteProbe probes whether a store accepts changes.
type WriteProbe struct {
	mu   sync.Mutex // held during a probe: other callers wait for its result
	at   time.Time  // of the last probe
	text string     // its fault
}

// Fault returns why the store accepts no changes, for example because of a full disk, or "" if it
// accepts them. If ctx ends during the probe, Fault returns the result of the probe before.
func (p *WriteProbe) Fault(ctx context.Context, store Store, now time.Time) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.at.IsZero() && now.Sub(p.at) < probeLife {
		return p.text
	}
	err := store.CheckWrites(ctx)
	switch {
	case err == nil:
		p.at, p.text = now, ""
	case ctx.Err() == nil:
		p.at, p.text = now, err.Error()
	}
	return p.text
}

// Forget makes the next Fault probe the store.
func (p *WriteProbe) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = time.Time{}
}

// noChanges comes before the fault in the status of a server that is not one of two. SingleFault of
// other versions reads it, so it must not change.
const noChanges = "its store takes no changes: "

// single returns the answer of a server that is not one of two to an operator's request.
func (s *Server) single(ctx context.Context, verb string) error {
	text := ""
	if verb == trustee.VerbStatus {
		if fault := s.writeProbe.Fault(ctx, s.store, time.Now()); fault != "" {
			text = "; " + noChanges + fault
		}
	}
	return claviger.Errorf("server.do", claviger.Invalid, "", "%s: claviger trustee serve --peer makes it one of two%s",
		notOneOfTwo, text)
}

// SingleFault returns the fault in the status of a server that is not one of two, or "" if its store
// accepts changes.
func SingleFault(err error) string {
	_, fault, _ := strings.Cut(err.Error(), noChanges)
	return fault
}
