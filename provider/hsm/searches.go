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

// PropertyMaxSearches says how often a minute the token may be searched for names that the metastore does not know.
// Open reads it.
const PropertyMaxSearches = "claviger.hsm.max.searches"

const (
	defaultSearches  = 600
	maxSearchesLimit = 1_000_000
	// searchConcurrency is how many searches run at a time.
	searchConcurrency = 2
	// searchWait bounds a search and the wait for its slot.
	searchWait = 2 * time.Second
	// searchWindow is the time for which searches are counted.
	searchWindow = time.Minute
)

// errSearches says that a search was not made because there were too many.
var errSearches = errors.New("the token was searched as often as " + PropertyMaxSearches + " allows")

// searches limits the searches of the token for names that the store does not know. Clients choose the names, and may
// send any number of names that never existed. In a minute a caller gets no more searches than remain for all other
// callers: a single caller gets half of them, a second caller a quarter, and so on.
type searches struct {
	max   int
	slots *shares.Shares // nil in a command, because it makes no searches for clients

	mu          sync.Mutex
	windowStart time.Time // of the minute
	byCaller    map[string]int
	total       int
	refused     int64
	lastFull    time.Time // when a caller without any search in the window was last refused
}

// searchLimit reads PropertyMaxSearches.
func searchLimit(env provider.Env) (int, error) {
	n, err := env.Int(PropertyMaxSearches, defaultSearches, 1, maxSearchesLimit)
	if err != nil {
		return 0, claviger.E("hsm.Open", claviger.Invalid, "", err)
	}
	return n, nil
}

// allow reports whether a caller may make one more search in this window. If made is true it counts the search.
func (s *searches) allow(caller string, made bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.byCaller == nil || now.Sub(s.windowStart) >= searchWindow {
		s.windowStart, s.byCaller, s.total = now, map[string]int{}, 0
	}
	if s.byCaller[caller] >= s.max-s.total {
		s.refused++
		if s.byCaller[caller] == 0 {
			s.lastFull = now
		}
		return false
	}
	if made {
		s.byCaller[caller]++
		s.total++
	}
	return true
}

// searchSlot is a slot for one of the searches that run at a time. A user holds at most one slot, and users get slots
// in turn. Thus a user with many searches does not delay the searches of others.
type searchSlot struct {
	searches  *searches
	caller    string
	unlimited bool
}

// acquireSearchSlot waits for a slot for a search about a key. If the key was in use at the last survey the search is
// not limited: there are not many such names, and such a key may be lost. The error wraps errSearches if there were too
// many searches.
func (p *Provider) acquireSearchSlot(ctx context.Context, key string) (*searchSlot, error) {
	t := &searchSlot{searches: &p.searches, caller: provider.CallerOf(ctx), unlimited: p.survey.inUseAtLast(key)}
	if !t.unlimited && !t.searches.allow(t.caller, false) {
		return nil, errSearches
	}
	_, own, err := t.searches.slots.Acquire(t.caller, 1, func() (context.Context, context.CancelFunc) {
		return ctx,
			func() {}
	})
	if err != nil {
		if !own {
			t.searches.mu.Lock()
			t.searches.lastFull = time.Now()
			t.searches.mu.Unlock()
		}
		return nil, claviger.E("hsm.search", claviger.Unavailable, key, err)
	}
	return t, nil
}

// count counts the search, just before it is made.
func (t *searchSlot) count() error {
	if !t.unlimited && !t.searches.allow(t.caller, true) {
		return errSearches
	}
	return nil
}

func (t *searchSlot) release() { t.searches.slots.Release(t.caller, 1) }

// SearchFigures counts the searches of the token for names that the store does not know.
type SearchFigures struct {
	Used, Limit   int   // searches in this minute, and how many are allowed
	BusiestCaller int   // searches of the caller with the most, in this minute
	Refused       int64 // since the start
}

// Searches returns the figures.
func (p *Provider) Searches() SearchFigures {
	s := &p.searches
	s.mu.Lock()
	defer s.mu.Unlock()
	f := SearchFigures{Limit: s.max, Refused: s.refused}
	if time.Since(s.windowStart) < searchWindow {
		f.Used = s.total
		for _, n := range s.byCaller {
			f.BusiestCaller = max(f.BusiestCaller, n)
		}
	}
	return f
}

// CheckSearches fails if, within the last minute, a search was refused to a caller who had made none.
func (p *Provider) CheckSearches(context.Context) error {
	s := &p.searches
	s.mu.Lock()
	full := s.lastFull
	s.mu.Unlock()
	if full.IsZero() || time.Since(full) > searchWindow {
		return nil
	}
	f := p.Searches()
	return fmt.Errorf("the token is not searched for names that the metastore does not know: %d of %d searches a "+
		"minute (property %s) were made, %d of them for one user; names that the last survey did not find are "+
		"answered with \"not found\"",
		f.Used, f.Limit, PropertyMaxSearches, f.BusiestCaller)
}
