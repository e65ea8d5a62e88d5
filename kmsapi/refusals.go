package kmsapi

import (
	"sync"
	"time"

	"claviger"
	"claviger/authn"
)

// A refusal before the operation is one of the things that operators search for
// days: it leaves an audit record and a warning. Anybody can cause one, without a
// name even, so the same warning comes once in warnEvery, and no more than maxWarned
// different ones.
const (
	warnEvery = time.Minute
	maxWarned = 256
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
	silent int
}

// due tells whether to warn of that now, and how often that was left out since the
// last time. It counts where the answer is no.
func (w *warnings) due(what string) (silent int, ok bool) {
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
	if _, known := w.since[what]; !known && len(w.since) >= maxWarned {
		w.more++
		return 0, false
	}
	silent, w.more = silent+w.more, 0
	w.since[what] = &warned{at: now}
	return silent, true
}

// refusalNames are the values of the label reason in metrics.
var refusalNames = map[authn.RefusalKind]string{
	authn.Unauthenticated: "unauthenticated", authn.NotAllowed: "impersonation", authn.Malformed: "name", authn.BadDelegation: "delegation_token",
	authn.NoDelegator: "unauthenticated", authn.BadOperation: "token_operation", authn.UnknownDelegation: "delegation_token",
	authn.BadTicket: "ticket", authn.NoShortName: "auth_to_local", authn.StoreAway: "token_store",
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
	// By what is to be changed, and by who would need it; not by what a client can
	// make up without a name.
	what := refusalNames[r.Kind] + " " + c.caller.RemoteAddr
	if r.Property != "" && r.Real != "" {
		what = r.Property
	}
	silent, ok := c.warned.due(what)
	if !ok {
		return
	}
	c.Log.Warn("a client could not be authenticated", "id", c.caller.RequestID, "remote", c.caller.RemoteAddr, "realUser", short(r.Real), "user", short(r.User),
		"method", c.r.Method, "path", short(c.r.URL.EscapedPath()), "reason", short(r.Reason), "property", short(r.Property), "explanation", short(r.Explanation), "notShown", silent)
}

// short bounds a text that a client may have made up.
func short(s string) string {
	const most = 1 << 10
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
