package kmsapi

import (
	"maps"
	"slices"
	"sync"
	"time"

	"claviger"
	"claviger/authn"
)

// A refusal before the operation is one of the things that operators search for
// days: it leaves an audit record and a warning. Anybody can cause one, without a
// name even, so the same warning comes once in warnEvery, and no more than maxWarned
// different ones, maxWarnedFrom of them from one address.
const (
	warnEvery     = time.Minute
	maxWarned     = 256
	maxWarnedFrom = 8
)

// warnings remembers what was warned of, and how often it was not said again.
type warnings struct {
	now func() time.Time

	mu    sync.Mutex
	since map[string]*warned
	more  int // beyond maxWarned
}

type warned struct {
	at     time.Time
	from   string
	silent int
}

// due tells whether to warn of that now, and how often that was left out since the
// last time. It counts where the answer is no. from is the address that a client made
// the text up at; "" where no client can.
func (w *warnings) due(what, from string) (silent int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if last := w.since[what]; last != nil {
		if now.Sub(last.at) < warnEvery {
			last.silent++
			return 0, false
		}
		silent = last.silent
	}
	if len(w.since) >= maxWarned {
		for k, v := range w.since {
			if now.Sub(v.at) >= warnEvery {
				delete(w.since, k)
			}
		}
	}
	if _, known := w.since[what]; !known && (len(w.since) >= maxWarned || from != "" && w.from(from, now) >= maxWarnedFrom) {
		w.more++
		return 0, false
	}
	silent, w.more = silent+w.more, 0
	w.since[what] = &warned{at: now, from: from}
	return silent, true
}

// Where something is away, each request that needs it is a line in the log, which users
// can cause as often as they like. So of each user linesEach come in linesEvery, and of
// all users linesAll.
const (
	linesEvery = time.Minute
	linesEach  = 100
	linesAll   = 1000
)

// lines counts the lines of each user.
type lines struct {
	mu     sync.Mutex
	began  time.Time
	of     map[string]int
	all    int
	silent int
}

// due tells whether a user's line is to be written, and how many were left out since the
// last one.
func (l *lines) due(user string) (silent int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); l.of == nil || now.Sub(l.began) >= linesEvery {
		l.began, l.of, l.all = now, map[string]int{}, 0
	}
	if l.all >= linesAll || l.of[user] >= linesEach {
		l.silent++
		return 0, false
	}
	l.all++
	l.of[user]++
	silent, l.silent = l.silent, 0
	return silent, true
}

// from counts what an address was warned of lately. It looks at maxWarned entries at
// most, and only for a warning that is new.
func (w *warnings) from(address string, now time.Time) (n int) {
	for _, v := range w.since {
		if v.from == address && now.Sub(v.at) < warnEvery {
			n++
		}
	}
	return n
}

// refusalNames are the values of the label reason in metrics.
var refusalNames = map[authn.RefusalKind]string{
	authn.Unauthenticated: "unauthenticated", authn.NotAllowed: "impersonation", authn.Malformed: "name", authn.BadDelegation: "delegation_token",
	authn.NoDelegator: "unauthenticated", authn.BadOperation: "token_operation", authn.UnknownDelegation: "delegation_token",
	authn.BadTicket: "ticket", authn.NoShortName: "auth_to_local", authn.StoreUnavailable: "token_store",
}

// Reasons are the values with which Config.Refused is called.
func Reasons() []string {
	list := append(slices.Collect(maps.Values(refusalNames)), tooManyVersions)
	slices.Sort(list)
	return slices.Compact(list)
}

// report counts a refusal, warns of it, and takes over who it was, for the audit.
func (c *call) report(r *authn.Refusal) {
	c.Refused(refusalNames[r.Kind])
	if c.caller.Name == "" {
		c.caller.Principal = claviger.Principal{Name: r.User}
		if r.Real != "" {
			c.caller.Real = &claviger.Principal{Name: r.Real}
		}
	}
	if r.Explanation == "" {
		return
	}
	what, from := warnedBy(r, c.caller.RemoteAddr)
	silent, ok := c.warned.due(what, from)
	if !ok {
		return
	}
	c.Log.Warn("a client could not be authenticated", "id", c.caller.RequestID, "remote", c.caller.RemoteAddr, "realUser", short(r.Real), "user", short(r.User),
		"method", c.r.Method, "path", short(c.r.URL.EscapedPath()), "reason", short(r.Reason), "property", short(r.Property), "explanation", short(r.Explanation), "notShown", silent)
}

// warnedBy is what a warning is limited by: what is to be changed, and who would need it.
// What a client can make up without a name counts for its address, or network.
func warnedBy(r *authn.Refusal, remote string) (what, from string) {
	if r.Property != "" && r.Real != "" {
		return r.Property, ""
	}
	from = claviger.Network(remote)
	return refusalNames[r.Kind] + " " + from + " " + short(r.Explanation), from
}

// short bounds a text that a client may have made up.
func short(s string) string {
	const most = 1 << 10
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
