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

// StaticMappingProperty gives the groups of users whom the operating system is
// not asked about: "user=group1,group2;user2=;user3=group3".
const StaticMappingProperty = "hadoop.user.group.static.mapping.overrides"

const (
	// defaultMaxUsers bounds the memory that names of users can take, and by itself that
	// of names that clients invent.
	defaultMaxUsers = 10_000
	// unknownUserTTL is hadoop.security.groups.negative-cache.secs' default: how
	// long it is believed that a user does not exist.
	unknownUserTTL = 30 * time.Second
	// retryAfterFailure is how long a failed look-up of a name is not repeated.
	retryAfterFailure = 5 * time.Second
	// defaultStrangers is how many look-ups of names that the directory never knew run at once,
	// so that invented names cannot fill the directory's queue.
	defaultStrangers = 8
	// strangerWait is how long a request waits for such a look-up, and staleWait how
	// long for that of a user whose last groups are known.
	strangerWait = 5 * time.Second
	staleWait    = time.Second
	// DefaultMaxStale is how old groups may become while the directory fails.
	DefaultMaxStale = time.Hour
)

// Directory returns the groups of a user's short name. Its error is, or wraps, a
// user.UnknownUserError where the directory answers that there is no such user. Any other
// error means that the user's groups are not known, never that there are none.
type Directory func(user string) ([]string, error)

// Groups returns the groups of users: from a static mapping, else from the operating system or LDAP. It remembers
// them for a while.
type Groups struct {
	static map[string][]string
	ttl    time.Duration
	stale  time.Duration // see MaxStale
	lookup Directory
	now    func() time.Time
	log    *slog.Logger
	places chan struct{} // one for each stranger that is looked up
	most   int           // names in cache, and in absent
	waits  struct{ stranger, stale time.Duration }

	flight singleflight.Group
	mu     sync.Mutex
	cache  map[string]cachedGroups // of users that the directory knows
	absent map[string]cachedGroups // of all others; groups is nil, or authz.GroupsUnknown
	stats  GroupStats
}

type cachedGroups struct {
	groups []string
	until  time.Time
	asked  time.Time // when the directory said so
}

// GroupStats are figures of the look-ups.
type GroupStats struct {
	Most           int   // names of each sort that are remembered at most
	Cached, Absent int   // names that are remembered: users, and those that are none
	Failed         int64 // look-ups that the directory did not answer
	Refused        int64 // look-ups of strangers that did not get their turn
	Err            error // of the latest look-up; nil where it was answered
}

// NewGroups takes the value of StaticMappingProperty and of
// hadoop.security.groups.cache.secs. The operating system is the directory; see Ask.
func NewGroups(static string, ttl time.Duration, log *slog.Logger) (*Groups, error) {
	mapping, err := parseStaticMapping(static)
	if err != nil {
		return nil, err
	}
	g := &Groups{
		static: mapping, ttl: ttl, stale: DefaultMaxStale, lookup: SystemGroups, now: time.Now, log: log,
		places: make(chan struct{}, defaultStrangers), most: defaultMaxUsers,
		cache: make(map[string]cachedGroups), absent: make(map[string]cachedGroups),
	}
	g.waits.stranger, g.waits.stale = strangerWait, staleWait
	return g, nil
}

// MaxStale sets the time for which the last known groups of a user count while the directory fails. Call it before
// Of.
func (g *Groups) MaxStale(d time.Duration) { g.stale = d }

// Limit sets the number of users that are remembered, and of unknown names too, and the number of look-ups at the
// same time of names that the directory never knew. Call it before Of.
func (g *Groups) Limit(users, lookups int) { g.most, g.places = users, make(chan struct{}, lookups) }

// Ask makes d the directory, instead of the operating system. Call it before Of.
func (g *Groups) Ask(d Directory) { g.lookup = d }

// NoGroups is a directory in which each user is in no group, as Hadoop's NullGroupsMapping is.
func NoGroups(string) ([]string, error) { return nil, nil }

// Stats returns the figures.
func (g *Groups) Stats() GroupStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.stats
	s.Most, s.Cached, s.Absent = g.most, len(g.cache), len(g.absent)
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
		// Another may have asked since we looked.
		last, known := g.remembered(name)
		if known && g.now().Before(last.until) {
			return last.groups, nil
		}
		return g.query(name, last), nil
	})
	wait := g.waits.stranger
	if !last.asked.IsZero() {
		wait = g.waits.stale
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case r := <-result:
		return r.Val.([]string)
	case <-timer.C: // the look-up goes on
		return g.fallback(last)
	}
}

// fallback returns the groups of a user while the directory does not answer.
func (g *Groups) fallback(last cachedGroups) []string {
	if last.asked.IsZero() || g.now().Sub(last.asked) >= g.ttl+g.stale {
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

// query reads the groups from the directory and remembers them. last is its answer before.
func (g *Groups) query(name string, last cachedGroups) []string {
	if last.asked.IsZero() || last.groups == nil {
		select {
		case g.places <- struct{}{}:
			defer func() { <-g.places }()
		case <-time.After(g.waits.stranger):
			g.mu.Lock()
			defer g.mu.Unlock()
			g.stats.Refused++
			return g.fallback(last)
		}
	}
	groups, err := g.lookup(name)
	now := g.now()
	found := cachedGroups{groups: groups, until: now.Add(g.ttl), asked: now}
	var unknown user.UnknownUserError
	switch {
	case errors.As(err, &unknown):
		err = nil
		found.groups, found.until = nil, now.Add(min(g.ttl, unknownUserTTL))
	case err != nil:
		found = cachedGroups{groups: g.fallback(last), until: now.Add(min(g.ttl, retryAfterFailure)), asked: last.asked}
		g.log.Warn("the groups of a user cannot be looked up; the last known ones hold for "+
			"claviger.groups.max.stale, after that rules that shut out groups shut the user out",
			"user", name, "known", len(last.groups), "asked last", last.asked, "err", err)
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
	if found.asked.IsZero() || found.groups == nil {
		in, other = g.absent, g.cache
	}
	delete(other, name)
	if _, there := in[name]; !there && len(in) >= g.most {
		makeRoom(in, g.most, now)
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

// SystemGroups is the operating system's directory (with cgo through NSS, so that SSSD
// and LDAP are seen), as that of Hadoop's default mapping.
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
		case errors.As(err, &unknown): // a number without a name: no rule can name it
		case err != nil:
			return nil, err
		default:
			groups = append(groups, grp.Name)
		}
	}
	return groups, nil
}
