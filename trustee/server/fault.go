package server

import (
	"context"
	"strings"
	"sync"
	"time"

	"claviger"
)

// faultHolds is how long it is believed that a store takes changes, or takes none: each
// look writes to the disk.
const faultHolds = 5 * time.Second

// faults remembers whether the store took changes when it was last tried.
type faults struct {
	mu   sync.Mutex // held while the store is tried: other callers wait for that answer
	at   time.Time
	text string
}

// fault says why the store takes no changes, a full disk above all; "" where it takes them.
// Where the caller gives up meanwhile, what was known before stays.
func (f *faults) fault(ctx context.Context, store Store, now time.Time) string {
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

// forget has the next one look again.
func (f *faults) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = time.Time{}
}

// takesNone begins what status says of a store that takes no changes.
const takesNone = "its store takes no changes: "

// single is the error for what one of two is asked for, of a server that is alone.
func (s *Server) single(ctx context.Context, verb string) error {
	text := ""
	if verb == VerbStatus {
		if fault := s.faults.fault(ctx, s.store, time.Now()); fault != "" {
			text = "; " + takesNone + fault
		}
	}
	return claviger.Errorf("server.do", claviger.Invalid, "", "%s: claviger trustee serve --peer makes it that%s", notOneOfTwo, text)
}

// SingleFault is what the status of a server that has no other says of a store that takes
// no changes; "" where it takes them.
func SingleFault(err error) string {
	_, fault, _ := strings.Cut(err.Error(), takesNone)
	return fault
}

// Check is an error while this server is the active one and the two are not in step, so
// that no change is acknowledged. The passive acknowledges none to clients anyway.
func (r *Replica) Check(ctx context.Context) error {
	st, synced, err := r.State(ctx)
	if err != nil || st.Role != RoleActive || synced {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why == nil {
		return nil // it has just begun, or the two have come in step since
	}
	return claviger.Errorf("server.Check", claviger.Unavailable, "", "the two Key Trustee Servers are not in step: %w", r.why)
}

// peerFault is an error where the passive's store takes no changes.
func peerFault(op string, p *Standing) error {
	if p.Fault == "" {
		return nil
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "the store of the passive Key Trustee Server takes no changes: %s", p.Fault)
}
