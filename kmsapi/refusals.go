package kmsapi

import (
	"maps"
	"slices"
	"sync"
	"time"

	"claviger"
	"claviger/authn"
)

// A refusal before the operation is hard for an operator to find, so it leaves an
// audit record and a warning. But anybody can cause refusals, even without
// authentication. So the same warning is logged only once in warnEvery, and in
// that time at most maxWarned different ones, maxWarnedFrom of them for one address.
const (
	warnEvery     = time.Minute
	maxWarned     = 256
	maxWarnedFrom = 8
)

// warnings remembers the last warnings, and how many were not logged.
type warnings struct {
	now func() time.Time

	mu    sync.Mutex
	since map[string]*warned // by the text that identifies the warning
	more  int                // not logged because of maxWarned or maxWarnedFrom
}

type warned struct {
	at       time.Time
	from     string
	notShown int // repetitions since at
}

// due reports whether to log the warning now, and how many were not logged since
// the last one. If ok is false, it counts this one as not logged. from is the
// client's address, if the client can choose the text of what, and "" otherwise.
func (w *warnings) due(what, from string) (notShown int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if last := w.since[what]; last != nil {
		if now.Sub(last.at) < warnEvery {
			last.notShown++
			return 0, false
		}
		notShown = last.notShown
	}
	if len(w.since) >= maxWarned {
		for k, v := range w.since {
			if now.Sub(v.at) >= warnEvery {
				delete(w.since, k)
			}
		}
	}
	_, known := w.since[what]
	if !known && (len(w.since) >= maxWarned || from != "" && w.countFrom(from, now) >= maxWarnedFrom) {
		w.more++
		return 0, false
	}
	notShown, w.more = notShown+w.more, 0
	w.since[what] = &warned{at: now, from: from}
	return notShown, true
}

// While the HSM, the metastore or a source does not answer, each request that
// needs it writes a log line, and users can send such requests as often as they
// like. So in linesEvery at most linesEach lines with one message are written for
// one user, and at most linesAll for all users. Each message has limits of its
// own, so that many answers 503 do not hide the reason of a 500.
const (
	linesEvery = time.Minute
	linesEach  = 20
	linesAll   = 200
)

// lines counts the log lines of each message and user.
type lines struct {
	mu sync.Mutex
	of map[string]*messageLines // by message; a program has few
}

// messageLines counts the lines with one message.
type messageLines struct {
	began    time.Time
	byUser   map[string]*userLines // has at most linesAll elements
	all      int
	last     string // the request of the last line
	notShown int    // since the last line
}

// userLines counts the lines of one user with one message.
type userLines struct {
	shown int
	last  string // the request of the last line
}

// due reports whether to write a line with the message about a request of the user. If ok, notShown is the number of
// lines with the message that were left out since the last one. Otherwise this line is counted as left out, and earlier
// is the last request that has a line with the message: of the same user, if there is one.
func (l *lines) due(message, user, request string) (notShown int, earlier string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[string]*messageLines{}
	}
	m := l.of[message]
	if m == nil {
		m = new(messageLines)
		l.of[message] = m
	}
	if now := time.Now(); now.Sub(m.began) >= linesEvery {
		m.began, m.byUser, m.all = now, map[string]*userLines{}, 0
	}
	u := m.byUser[user]
	switch {
	case u != nil && u.shown >= linesEach, u != nil && m.all >= linesAll:
		m.notShown++
		return 0, u.last, false
	case m.all >= linesAll:
		m.notShown++
		return 0, m.last, false
	case u == nil:
		u = new(userLines)
		m.byUser[user] = u
	}
	m.all++
	u.shown++
	u.last, m.last = request, request
	notShown, m.notShown = m.notShown, 0
	return notShown, "", true
}

// countFrom returns how many different warnings were logged for an address within
// warnEvery. It reads at most maxWarned entries, and only new warnings call it.
func (w *warnings) countFrom(address string, now time.Time) (n int) {
	for _, v := range w.since {
		if v.from == address && now.Sub(v.at) < warnEvery {
			n++
		}
	}
	return n
}

// refusalNames are the values of the label reason in metrics.
var refusalNames = map[authn.RefusalKind]string{
	authn.Unauthenticated: "unauthenticated", authn.NotAllowed: "impersonation", authn.Malformed: "name",
	authn.BadDelegation: "delegation_token", authn.NoDelegator: "unauthenticated",
	authn.BadOperation: "token_operation", authn.UnknownDelegation: "delegation_token",
	authn.BadTicket: "ticket", authn.NoShortName: "auth_to_local", authn.StoreUnavailable: "token_store",
}

// Reasons returns the reasons with which Config.Refused is called.
func Reasons() []string {
	list := append(slices.Collect(maps.Values(refusalNames)), tooManyVersions)
	slices.Sort(list)
	return slices.Compact(list)
}

// reportRefusal counts a refusal, logs a warning, and takes the caller's name from
// it for the audit record.
func (c *call) reportRefusal(r *authn.Refusal) {
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
	what, from := warningKey(r, c.caller.RemoteAddr)
	notShown, ok := c.warned.due(what, from)
	if !ok {
		return
	}
	c.Log.Warn("a client could not be authenticated",
		"id", c.caller.RequestID, "remote", c.caller.RemoteAddr, "realUser", short(r.Real), "user", short(r.User),
		"method", c.r.Method, "path", short(c.r.URL.EscapedPath()), "reason", short(r.Reason),
		"property", short(r.Property), "explanation", short(r.Explanation), "notShown", notShown)
}

// warningKey returns the arguments of warnings.due. Refusals of authenticated
// users that the same property would cure are one warning. Others depend on text
// that anybody can send, so they are counted for the address, or its network.
func warningKey(r *authn.Refusal, remote string) (what, from string) {
	if r.Property != "" && r.Real != "" {
		return r.Property, ""
	}
	from = claviger.Network(remote)
	return refusalNames[r.Kind] + " " + from + " " + short(r.Explanation), from
}

// short cuts a text that a client may have chosen.
func short(s string) string {
	const most = 1 << 10
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
