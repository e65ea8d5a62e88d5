package server

import (
	"context"
	"strings"
	"sync"
	"time"

	"claviger"
	"claviger/trustee"
)

// faultHolds is how long it is believed that a store takes changes, or takes none: each
// look writes to the disk.
const faultHolds = 5 * time.Second

// WriteProbe remembers whether the store took changes when it was last tried.
type WriteProbe struct {
	mu   sync.Mutex // held while the store is tried: other callers wait for that answer
	at   time.Time
	text string
}

// Fault says why the store takes no changes, a full disk above all; "" where it takes them.
// Where the caller gives up meanwhile, what was known before stays.
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

// Forget has the next one look again.
func (f *WriteProbe) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = time.Time{}
}

// takesNone begins what status says of a store that takes no changes.
const takesNone = "its store takes no changes: "

// single is the error for what one of two is asked for, of a server that is alone.
func (s *Server) single(ctx context.Context, verb string) error {
	text := ""
	if verb == trustee.VerbStatus {
		if fault := s.faults.Fault(ctx, s.store, time.Now()); fault != "" {
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
