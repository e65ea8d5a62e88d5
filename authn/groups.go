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
)

// StaticMappingProperty gives the groups of users whom the operating system is
// not asked about: "user=group1,group2;user2=;user3=group3".
const StaticMappingProperty = "hadoop.user.group.static.mapping.overrides"

const (
	// maxCachedUsers bounds the memory that names invented by clients can take.
	maxCachedUsers = 10_000
	// unknownUserTTL is hadoop.security.groups.negative-cache.secs' default: how
	// long it is believed that a user does not exist.
	unknownUserTTL = 30 * time.Second
)

// Groups knows the groups of users: those of a static mapping, else those that
// the operating system tells, kept for a while.
type Groups struct {
	static map[string][]string
	ttl    time.Duration
	lookup func(user string) ([]string, error)
	now    func() time.Time
	log    *slog.Logger

	flight singleflight.Group
	mu     sync.Mutex
	cache  map[string]cachedGroups
}

type cachedGroups struct {
	groups []string
	until  time.Time
}

// NewGroups takes the value of StaticMappingProperty and of
// hadoop.security.groups.cache.secs.
func NewGroups(static string, ttl time.Duration, log *slog.Logger) (*Groups, error) {
	mapping, err := parseStaticMapping(static)
	if err != nil {
		return nil, err
	}
	return &Groups{static: mapping, ttl: ttl, lookup: systemGroups, now: time.Now, log: log, cache: make(map[string]cachedGroups)}, nil
}

// WithoutDirectory returns Groups that ask nobody: all that is known is the static
// mapping, as with Hadoop's NullGroupsMapping.
func (g *Groups) WithoutDirectory() *Groups {
	return &Groups{static: g.static, ttl: g.ttl, lookup: func(string) ([]string, error) { return nil, nil }, now: g.now, log: g.log, cache: make(map[string]cachedGroups)}
}

func parseStaticMapping(s string) (map[string][]string, error) {
	m := make(map[string][]string)
	for entry := range strings.SplitSeq(s, ";") {
		if strings.TrimSpace(entry) == "" {
			continue
		}
		name, list, _ := strings.Cut(entry, "=")
		if name = strings.TrimSpace(name); name == "" || strings.Contains(list, "=") {
			return nil, fmt.Errorf("%s: %q in %q is not of the form user=group1,group2", StaticMappingProperty, entry, s)
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

// Of returns the groups of a user's short name; none for an unknown user. The
// slice must not be changed. Where the directory fails, what it said last stays
// valid: with no groups at all a group's blacklist would open.
func (g *Groups) Of(name string) []string {
	if groups, ok := g.static[name]; ok {
		return groups
	}
	if known, ok := g.cached(name); ok {
		return known
	}
	groups, _, _ := g.flight.Do(name, func() (any, error) {
		// Another may have asked since we looked.
		known, ok := g.cached(name)
		if ok {
			return known, nil
		}
		return g.ask(name, known), nil
	})
	return groups.([]string)
}

// cached returns what was said last, and whether it is valid still.
func (g *Groups) cached(name string) (groups []string, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	known, ok := g.cache[name]
	return known.groups, ok && g.now().Before(known.until)
}

// ask asks the system and keeps the answer; last is what it said before.
func (g *Groups) ask(name string, last []string) []string {
	groups, err := g.lookup(name)
	ttl := g.ttl
	var unknown user.UnknownUserError
	switch {
	case errors.As(err, &unknown):
		groups, ttl = nil, min(ttl, unknownUserTTL)
	case err != nil:
		g.log.Warn("the groups of a user cannot be looked up; the last known ones stay valid", "user", name, "known", len(last), "err", err)
		groups, ttl = last, min(ttl, unknownUserTTL)
	}
	now := g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.cache) >= maxCachedUsers {
		g.makeRoom(now)
	}
	g.cache[name] = cachedGroups{groups: groups, until: now.Add(ttl)}
	return groups
}

// makeRoom drops what has expired, and where that is not enough anything.
func (g *Groups) makeRoom(now time.Time) {
	for name, c := range g.cache {
		if !now.Before(c.until) {
			delete(g.cache, name)
		}
	}
	for name := range g.cache {
		if len(g.cache) < maxCachedUsers {
			return
		}
		delete(g.cache, name)
	}
}

// systemGroups asks the operating system (with cgo through NSS, so that SSSD and
// LDAP are seen), as Hadoop's default mapping does.
func systemGroups(name string) ([]string, error) {
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
