package hsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/shares"
)

// PropertyMaxSearches is how often a minute the token is searched for names that the
// metastore does not know; Open reads it.
const PropertyMaxSearches = "claviger.hsm.max.searches"

const (
	defaultSearches = 600
	mostSearches    = 1_000_000
	// searchesAtOnce is how many searches there are at a time.
	searchesAtOnce = 2
	// searchWait bounds a search, and the wait for its turn.
	searchWait = 2 * time.Second
	// searchWindow is the time that the number of searches is of.
	searchWindow = time.Minute
)

// errSearches marks a search that was not made, since there were too many.
var errSearches = errors.New("the token was searched as often as " + PropertyMaxSearches + " allows")

// searches limits the searches of the token for what the store does not know. Clients
// choose what is asked for, and names that never existed have no end. In a minute a
// caller gets no more searches than are left for all others: one caller alone gets half
// of them, a second a quarter, and so on.
type searches struct {
	most  int
	turns *shares.Shares // nil: in a command, which searches for no client

	mu      sync.Mutex
	began   time.Time // of the minute
	used    map[string]int
	total   int
	refused int64
	full    time.Time // when a caller was last refused who had none in the minute
}

// searchLimit reads PropertyMaxSearches.
func searchLimit(env provider.Env) (int, error) {
	n, err := env.Int(PropertyMaxSearches, defaultSearches, 1, mostSearches)
	if err != nil {
		return 0, claviger.E("hsm.Open", claviger.Invalid, "", err)
	}
	return n, nil
}

// allow tells whether a caller may search once more in this minute, and counts the
// search if that is made.
func (s *searches) allow(caller string, made bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.used == nil || now.Sub(s.began) >= searchWindow {
		s.began, s.used, s.total = now, map[string]int{}, 0
	}
	if s.used[caller] >= s.most-s.total {
		s.refused++
		if s.used[caller] == 0 {
			s.full = now
		}
		return false
	}
	if made {
		s.used[caller]++
		s.total++
	}
	return true
}

// turn is a search's place among the few that are made at a time. One user has one of them
// at most, and users wait in turn, so that many searches of one do not stand before those
// of others.
type turn struct {
	s      *searches
	caller string
	free   bool
}

// turn waits for a search that concerns a key. It does not count where the key was in
// use at the last survey: such names come to an end, and one that is gone may be lost.
// The error wraps errSearches where there were too many.
func (p *Provider) turn(ctx context.Context, key string) (*turn, error) {
	t := &turn{s: &p.searches, caller: provider.CallerOf(ctx), free: p.survey.used(key)}
	if !t.free && !t.s.allow(t.caller, false) {
		return nil, errSearches
	}
	_, own, err := t.s.turns.Acquire(t.caller, 1, func() (context.Context, context.CancelFunc) {
		return ctx,
			func() {}
	})
	if err != nil {
		if !own {
			t.s.mu.Lock()
			t.s.full = time.Now()
			t.s.mu.Unlock()
		}
		return nil, claviger.E("hsm.turn", claviger.Unavailable, key, err)
	}
	return t, nil
}

// begin counts the search, which is made now.
func (t *turn) begin() error {
	if !t.free && !t.s.allow(t.caller, true) {
		return errSearches
	}
	return nil
}

func (t *turn) end() { t.s.turns.Release(t.caller, 1) }

// SearchFigures tell how often the token was searched for what the store does not know.
type SearchFigures struct {
	Used, Most int   // in this minute, and how many there may be
	OfOne      int   // of Used, those of the caller with most
	Refused    int64 // since the start
}

// Searches returns the figures.
func (p *Provider) Searches() SearchFigures {
	s := &p.searches
	s.mu.Lock()
	defer s.mu.Unlock()
	f := SearchFigures{Most: s.most, Refused: s.refused}
	if time.Since(s.began) < searchWindow {
		f.Used = s.total
		for _, n := range s.used {
			f.OfOne = max(f.OfOne, n)
		}
	}
	return f
}

// CheckSearches is an error where a caller who had made no search was refused one within
// the last minute.
func (p *Provider) CheckSearches(context.Context) error {
	s := &p.searches
	s.mu.Lock()
	full := s.full
	s.mu.Unlock()
	if full.IsZero() || time.Since(full) > searchWindow {
		return nil
	}
	f := p.Searches()
	return fmt.Errorf("the token is not searched for names that the metastore does not know: %d of %d searches a "+
		"minute (property %s) were made, %d of them for one user; names that the last survey did not find are "+
		"answered with \"not found\"",
		f.Used, f.Most, PropertyMaxSearches, f.OfOne)
}
