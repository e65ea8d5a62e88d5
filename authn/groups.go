package authn

import (
	"errors"
	"fmt"
	"log/slog"
	"os/user"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"claviger/authz"
)

// StaticMappingProperty sets the groups of single users, instead of the directory:
// "user=group1,group2;user2=;user3=group3".
const StaticMappingProperty = "hadoop.user.group.static.mapping.overrides"

const (
	// defaultMaxUsers limits the number of cached users, and separately the number of cached unknown names, which
	// clients can invent.
	defaultMaxUsers = 10_000
	// unknownUserTTL is the time for which an unknown name is cached, the default of
	// hadoop.security.groups.negative-cache.secs.
	unknownUserTTL = 30 * time.Second
	// retryAfterFailure is the time for which a failed lookup of a name is not repeated.
	retryAfterFailure = 5 * time.Second
	// defaultStrangers is the maximum number of concurrent lookups of strangers: names that were never looked up with
	// success, or that the directory did not know at the last lookup. So invented names cannot fill the directory's
	// queue.
	defaultStrangers = 8
	// strangerWait is the time that a request waits for the lookup of a name that was never looked up with success.
	// staleWait is the time that it waits for any other lookup: then the last answer can be used.
	strangerWait = 5 * time.Second
	staleWait    = time.Second
	// DefaultMaxStale is the maximum age of groups while the directory fails.
	DefaultMaxStale = time.Hour
)

// Directory returns the groups of a user's short name. If the directory answers that the user does not exist, the
// error is or wraps a user.UnknownUserError. Any other error means that the groups are not known, never that there
// are none.
type Directory func(user string) ([]string, error)

// Groups returns the groups of users: from a static mapping, else from the operating system or LDAP. It remembers
// them for a while.
type Groups struct {
	static        map[string][]string
	ttl           time.Duration
	stale         time.Duration // see MaxStale
	lookup        Directory
	now           func() time.Time
	log           *slog.Logger
	strangerSlots chan struct{} // one element for each running lookup of a stranger
	limit         int           // maximum number of names in cache, and in absent
	waits         struct{ stranger, stale time.Duration }

	flight singleflight.Group
	mu     sync.Mutex
	cache  map[string]cachedGroups // of users that the directory knows
	absent map[string]cachedGroups // of all other names; groups is nil, or authz.GroupsUnknown
	stats  GroupStats
}

type cachedGroups struct {
	groups   []string
	until    time.Time
	answered time.Time // when the directory gave this answer; zero: never
}

// GroupStats are figures of the lookups.
type GroupStats struct {
	Limit          int   // the limit of Cached, and of Absent
	Cached, Absent int   // remembered users, and remembered unknown names
	Failed         int64 // lookups that the directory did not answer
	Refused        int64 // lookups of strangers that got no slot in time
	Err            error // of the latest lookup; nil if the directory answered
}

// NewGroups makes Groups from the values of StaticMappingProperty and of hadoop.security.groups.cache.secs. The
// directory is the operating system, unless SetDirectory sets another.
func NewGroups(static string, ttl time.Duration, log *slog.Logger) (*Groups, error) {
	mapping, err := parseStaticMapping(static)
	if err != nil {
		return nil, err
	}
	g := &Groups{
		static: mapping, ttl: ttl, stale: DefaultMaxStale, lookup: SystemGroups, now: time.Now, log: log,
		strangerSlots: make(chan struct{}, defaultStrangers), limit: defaultMaxUsers,
		cache: make(map[string]cachedGroups), absent: make(map[string]cachedGroups),
	}
	g.waits.stranger, g.waits.stale = strangerWait, staleWait
	return g, nil
}

// MaxStale sets the time for which the last known groups of a user count while the directory fails. Call it before
// Of.
func (g *Groups) MaxStale(d time.Duration) { g.stale = d }

// Limit sets the maximum number of remembered users, and of remembered unknown names; and the maximum number of
// concurrent lookups of strangers. Call it before Of.
func (g *Groups) Limit(users, lookups int) {
	g.limit, g.strangerSlots = users, make(chan struct{}, lookups)
}

// SetDirectory makes d the directory, instead of the operating system. Call it before Of.
func (g *Groups) SetDirectory(d Directory) { g.lookup = d }

// NoGroups is a directory in which each user is in no group, as Hadoop's NullGroupsMapping is.
func NoGroups(string) ([]string, error) { return nil, nil }

// Stats returns the figures.
func (g *Groups) Stats() GroupStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.stats
	s.Limit, s.Cached, s.Absent = g.limit, len(g.cache), len(g.absent)
	return s
}

func parseStaticMapping(s string) (map[string][]string, error) {
	m := make(map[string][]string)
	for entry := range strings.SplitSeq(s, ";") {
		if strings.TrimSpace(entry) == "" {
			continue
		}
		name, list, _ := strings.Cut(entry, "=")
		if name = strings.TrimSpace(name); name == "" || strings.Contains(list, "=") {
			return nil, fmt.Errorf("%s: %q in %q is not of the form user=group1,group2",
				StaticMappingProperty, entry, s)
		}
		groups := []string{}
		for g := range strings.SplitSeq(list, ",") {
			if g = strings.TrimSpace(g); g != "" {
				groups = append(groups, g)
			}
		}
		m[name] = groups
	}
	return m, nil
}

// Of returns the groups of a user's short name; none for a user that the directory does not know. The slice must
// not be changed. While the directory fails, its last answer counts for MaxStale. After that, or without an earlier
// answer, Of returns authz.GroupsUnknown: with no groups, a blacklist with a group would not exclude the user.
func (g *Groups) Of(name string) []string {
	if groups, ok := g.static[name]; ok {
		return groups
	}
	last, known := g.remembered(name)
	if known && g.now().Before(last.until) {
		return last.groups
	}
	result := g.flight.DoChan(name, func() (any, error) {
		// Another lookup of the name may have ended after the check above.
		last, known := g.remembered(name)
		if known && g.now().Before(last.until) {
			return last.groups, nil
		}
		return g.query(name, last), nil
	})
	wait := g.waits.stranger
	if !last.answered.IsZero() {
		wait = g.waits.stale
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case r := <-result:
		return r.Val.([]string)
	case <-timer.C: // the lookup continues, for later callers
		return g.fallback(last)
	}
}

// Lookup asks the directory for a user's groups. Unlike Of, it returns the error of the directory, and neither uses nor
// changes the remembered groups. A user that the directory does not know is a user.UnknownUserError.
func (g *Groups) Lookup(name string) ([]string, error) {
	if groups, ok := g.static[name]; ok {
		return groups, nil
	}
	return g.lookup(name)
}

// fallback returns the groups of a user while the directory does not answer.
func (g *Groups) fallback(last cachedGroups) []string {
	if last.answered.IsZero() || g.now().Sub(last.answered) >= g.ttl+g.stale {
		return authz.GroupsUnknown
	}
	return last.groups
}

// remembered returns the last groups that were found, even if they have expired.
func (g *Groups) remembered(name string) (last cachedGroups, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if last, ok = g.cache[name]; !ok {
		last, ok = g.absent[name]
	}
	return last, ok
}

// query reads the groups from the directory and remembers them. last is the directory's previous answer.
func (g *Groups) query(name string, last cachedGroups) []string {
	if last.answered.IsZero() || last.groups == nil {
		select {
		case g.strangerSlots <- struct{}{}:
			defer func() { <-g.strangerSlots }()
		case <-time.After(g.waits.stranger):
			g.mu.Lock()
			defer g.mu.Unlock()
			g.stats.Refused++
			return g.fallback(last)
		}
	}
	groups, err := g.lookup(name)
	now := g.now()
	found := cachedGroups{groups: groups, until: now.Add(g.ttl), answered: now}
	var unknown user.UnknownUserError
	switch {
	case errors.As(err, &unknown):
		err = nil
		found.groups, found.until = nil, now.Add(min(g.ttl, unknownUserTTL))
	case err != nil:
		found = cachedGroups{groups: g.fallback(last), until: now.Add(min(g.ttl, retryAfterFailure)),
			answered: last.answered}
		g.log.Warn("the groups of a user cannot be looked up; the last known groups are used for "+
			"claviger.groups.max.stale, after that each rule that excludes a group excludes the user",
			"user", name, "known", len(last.groups), "last answer", last.answered, "err", err)
	case groups == nil:
		found.groups = []string{}
	}
	g.keep(name, found, now, err)
	return found.groups
}

// keep remembers an answer, among the users or among the unknown names.
func (g *Groups) keep(name string, found cachedGroups, now time.Time, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stats.Err = err; err != nil {
		g.stats.Failed++
	}
	in, other := g.cache, g.absent
	if found.answered.IsZero() || found.groups == nil {
		in, other = g.absent, g.cache
	}
	delete(other, name)
	if _, there := in[name]; !there && len(in) >= g.limit {
		makeRoom(in, g.limit, now)
	}
	in[name] = found
}

// makeRoom drops expired names, and any others if that is not enough.
func makeRoom(in map[string]cachedGroups, most int, now time.Time) {
	for name, c := range in {
		if !now.Before(c.until) {
			delete(in, name)
		}
	}
	for name := range in {
		if len(in) < most {
			return
		}
		delete(in, name)
	}
}

// SystemGroups is the operating system's directory, which Hadoop's default mapping uses too. With cgo it reads NSS,
// and so SSSD and LDAP.
func SystemGroups(name string) ([]string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	groups := make([]string, 0, len(ids))
	for _, id := range ids {
		grp, err := user.LookupGroupId(id)
		var unknown user.UnknownGroupIdError
		switch {
		case errors.As(err, &unknown): // a group without a name, so no rule can contain it
		case err != nil:
			return nil, err
		default:
			groups = append(groups, grp.Name)
		}
	}
	return groups, nil
}
