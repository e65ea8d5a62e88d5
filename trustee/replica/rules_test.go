package replica

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

// TestSynchronized: two servers are synchronized only if no part of the report contradicts this.
func TestSynchronized(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*StatusReport)
		want   bool
	}{
		"synchronized": {func(*StatusReport) {}, true},
		"at the passive": {func(s *StatusReport) {
			s.Role, s.Peer.Role, s.Synced = server.RolePassive, server.RoleActive, false
		}, true},
		"without a digest":    {func(s *StatusReport) { s.Digest, s.PeerDigest = "", "" }, true},
		"a fault":             {func(s *StatusReport) { s.Fault = "no space" }, false},
		"no answer":           {func(s *StatusReport) { s.Peer, s.PeerDigest = nil, "" }, false},
		"a fault of the peer": {func(s *StatusReport) { s.Peer.Fault = "no space" }, false},
		"equal roles":         {func(s *StatusReport) { s.Peer.Role = server.RoleActive }, false},
		"a lag":               {func(s *StatusReport) { s.Lag = 1 }, false},
		"diverged":            {func(s *StatusReport) { s.Diverged = true }, false},
		"not synced":          {func(s *StatusReport) { s.Synced = false }, false},
		"another digest":      {func(s *StatusReport) { s.PeerDigest = "e" }, false},
		"the peer's digest":   {func(s *StatusReport) { s.PeerDigest = "" }, false},
	} {
		s := StatusReport{Position: Position{Role: server.RoleActive}, Synced: true,
			Peer: &Position{Role: server.RolePassive}, Digest: "d", PeerDigest: "d"}
		c.change(&s)
		if s.Synchronized() != c.want {
			t.Errorf("%s: %t", name, s.Synchronized())
		}
	}
}

// TestLossNames: a Loss names a few records, and says how many more there are.
func TestLossNames(t *testing.T) {
	var l Loss
	for range namedLosses {
		l.count(server.Record{Org: &server.Org{}}, "x")
	}
	if text := l.String(); text != "5 organizations, 0 clients and 0 deposits: x, x, x, x, x" {
		t.Error(text)
	}
	l.count(server.Record{Client: &server.Client{}}, "y")
	if text := l.String(); text != "5 organizations, 1 clients and 0 deposits: x, x, x, x, x and 1 more" {
		t.Error(text)
	}
}

// TestHoldings: a store lacks a record if it does not hold it, or holds it in another state. Recorded requests and
// expired deposits may be lost.
func TestHoldings(t *testing.T) {
	now := time.UnixMilli(1000)
	at := func(ms int64) server.Record {
		return server.Record{Deposit: &server.Row{UUID: "u", Label: "l", Expires: time.UnixMilli(ms)}}
	}
	org := func(auth string, contacts ...string) server.Record {
		return server.Record{Org: &server.Org{Name: "O", Auth: auth, Contacts: contacts}}
	}
	forever := server.Record{Deposit: &server.Row{UUID: "u", Label: "l"}}
	full := server.Record{Deposit: &server.Row{UUID: "u", Label: "l", Sealed: trustee.Sealed{Content: []byte("c")}}}
	once := server.Record{Once: &server.Once{Digest: "d"}}
	for name, c := range map[string]struct {
		held, other server.Record
		lacks       bool
	}{
		"equal":                {org("a"), org("a"), false},
		"none and no contacts": {org("a"), org("a", []string{}...), false},
		"another secret":       {org("a"), org("b"), true},
		"other contacts":       {org("a"), org("a", "x"), true},
		"another record":       {org("a"), forever, true},
		"a recorded request":   {org("a"), once, false},
		"expired":              {org("a"), at(1000), false},
		"not expired":          {org("a"), at(1001), true},
		"it expires":           {at(1001), at(1001), false},
		"it expires later":     {at(1001), at(1002), true},
		"it does not expire":   {at(1001), forever, true},
		"expired in the store": {at(1000), forever, true},
		"another content":      {forever, full, false}, // holdings leave out contents, which are signed
	} {
		h, lost := holdings{}, Loss{}
		h.add(c.held, now)
		if h.lacks(c.other, now, &lost); lost.None() == c.lacks {
			t.Errorf("%s: %v", name, &lost)
		}
	}
}

// TestHoldingsEmpty: a record that a store need not keep does not count as held.
func TestHoldingsEmpty(t *testing.T) {
	h := holdings{}
	if h.add(server.Record{Once: &server.Once{Digest: "d"}}, time.Now()); len(h) > 0 {
		t.Errorf("%v", h)
	}
}

// fixedStore is a store with a fixed position. Has returns had.
type fixedStore struct {
	Logged
	st  Position
	had bool
}

func (s *fixedStore) Position(context.Context) (Position, error) { return s.st, nil }

func (s *fixedStore) UpdatePosition(_ context.Context, f func(*Position) error) (Position, error) {
	st := s.st
	if err := f(&st); err != nil {
		return s.st, err
	}
	s.st = st
	return st, nil
}

func (s *fixedStore) Has(context.Context, Head) (bool, error) { return s.had, nil }

// TestComplete: a passive server has every change if its log has the head of the active server. It reports that it is
// behind only if later changes can correct that.
func TestComplete(t *testing.T) {
	mine := Head{Seq: 5, Epoch: 2, Digest: "a"}
	held := comparison{storeHead: mine, copyLacks: Loss{Orgs: 1}}
	for name, c := range map[string]struct {
		peer     Head
		role     server.Role
		had      bool
		compared comparison
		want     bool
		behind   bool
	}{
		"the same head":       {mine, server.RoleActive, true, comparison{}, true, false},
		"two passive servers": {mine, server.RolePassive, true, comparison{}, false, false},
		"more changes":        {Head{6, 2, "b"}, server.RoleActive, false, comparison{}, false, true},
		"a later epoch":       {Head{4, 3, "b"}, server.RoleActive, false, comparison{}, false, true},
		"an earlier epoch":    {Head{6, 1, "b"}, server.RoleActive, false, comparison{}, false, false},
		"other changes":       {Head{5, 2, "b"}, server.RoleActive, false, comparison{}, false, false},
		"diverged":            {Head{6, 2, "b"}, server.RoleActive, false, held, false, false},
		"compared, nothing is lacking": {Head{6, 2, "b"}, server.RoleActive, false, comparison{storeHead: mine}, false,
			true},
		"compared with an older head": {Head{6, 2, "b"}, server.RoleActive, false,
			comparison{copyLacks: held.copyLacks}, false, true},
	} {
		r := &Replica{store: &fixedStore{had: c.had}, compared: c.compared}
		got, err := r.complete(t.Context(), &Position{Head: mine}, &Position{Role: c.role, Head: c.peer})
		if got != c.want || errors.Is(err, server.ErrBehind) != c.behind || (err != nil) != c.behind {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
}

// TestCurrentOfTheActive: the result of Current at an active server in each state.
func TestCurrentOfTheActive(t *testing.T) {
	for _, c := range []struct {
		equal, lacking, alone bool
		sure                  bool
		err                   error
	}{
		{false, false, false, false, nil}, {true, false, false, true, nil}, {false, false, true, true, nil},
		{true, true, false, false, server.ErrLacking}, {true, true, true, false, nil}, {false, true, true, false, nil},
	} {
		r := &Replica{store: &fixedStore{st: Position{Role: server.RoleActive, Alone: c.alone}}, equal: c.equal,
			lacking: c.lacking}
		got, err := r.Current(t.Context())
		if got.Sure != c.sure || got.Lists != c.sure || !errors.Is(err, c.err) {
			t.Errorf("%+v: %+v, %v", c, got, err)
		}
		if kept := r.learned.Load(); (kept != nil) != (c.err == nil) || kept != nil && kept.Knowledge != got {
			t.Errorf("%+v: keeps %+v", c, kept)
		}
	}
}

// TestCurrentKept: a result is returned until its time is over.
func TestCurrentKept(t *testing.T) {
	for remaining, sure := range map[time.Duration]bool{time.Hour: true, -time.Hour: false} {
		r := &Replica{store: &fixedStore{st: Position{Role: server.RoleActive}}}
		r.learned.Store(&learned{server.Knowledge{Sure: true}, time.Now().Add(remaining)})
		if got, err := r.Current(t.Context()); err != nil || got.Sure != sure {
			t.Errorf("%s: %+v, %v", remaining, got, err)
		}
	}
}

// TestState: only an active server is synchronized with a passive one.
func TestState(t *testing.T) {
	for _, c := range []struct {
		role         server.Role
		synced, want bool
	}{{server.RoleActive, true, true}, {server.RoleActive, false, false}, {server.RolePassive, true, false}} {
		r := &Replica{store: &fixedStore{st: Position{Role: c.role}}, synced: c.synced}
		if _, got, err := r.State(t.Context()); err != nil || got != c.want {
			t.Errorf("%+v: %t, %v", c, got, err)
		}
	}
}

// waiting returns a server in a role, whose Run does not run.
func waiting(role server.Role) *Replica {
	return &Replica{store: &fixedStore{st: Position{Role: role}}, log: slog.New(slog.DiscardHandler),
		wakeup: make(chan struct{}, 1), round: make(chan struct{})}
}

// TestReadyWaits: Ready returns after a check that succeeds, or after two that fail: the first may have begun before
// the call.
func TestReadyWaits(t *testing.T) {
	away := errors.New("no route to host")
	for want, good := range map[int]bool{1: true, 2: false} { // number of checks, whether they succeed
		r := waiting(server.RoleActive)
		done := make(chan error)
		go func() { done <- r.Ready(t.Context()) }()
		checks := 0
		var err error
		for waits := true; waits; {
			select {
			case <-r.wakeup:
				checks++
				if good {
					r.mu.Lock()
					r.synced = true
					r.mu.Unlock()
					r.report(nil)
				} else {
					r.report(away)
				}
			case err = <-done:
				waits = false
			}
		}
		if checks != want || good != (err == nil) || !good && (!errors.Is(err, away) ||
			!errors.Is(err, server.ErrAway)) {
			t.Errorf("%v after %d checks", err, checks)
		}
	}
}

// TestReadyEnds: Ready ends with its context, and after readyTimeout.
func TestReadyEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), readyTimeout/2)
		defer cancel()
		r, begun := waiting(server.RoleActive), time.Now()
		if err := r.Ready(ctx); !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, context.DeadlineExceeded) ||
			len(r.wakeup) == 0 {
			t.Errorf("%v, %d", err, len(r.wakeup))
		}
		begun = begun.Add(readyTimeout / 2)
		if err := r.Ready(t.Context()); !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, server.ErrAway) ||
			time.Since(begun) != readyTimeout {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
		r = waiting(server.RolePassive)
		if err := r.Ready(t.Context()); !errors.Is(err, trustee.ErrPassive) {
			t.Error(err)
		}
	})
}

// TestGuardRefuses: a change that is refused makes Run check at once.
func TestGuardRefuses(t *testing.T) {
	r := waiting(server.RoleActive)
	r.syncErr = errors.New("no route to host")
	if shared, err := r.guard(t.Context(), Position{}, Entry{}); shared || !errors.Is(err, server.ErrAway) ||
		!errors.Is(err, r.syncErr) || len(r.wakeup) != 1 {
		t.Errorf("%t, %v, %d", shared, err, len(r.wakeup))
	}
	r = waiting(server.RoleActive)
	r.synced = true
	if err := r.uncommitted(errors.New("lost")); !errors.Is(err, server.ErrAway) || !strings.Contains(err.Error(),
		"lost") || len(r.wakeup) != 1 || r.synced {
		t.Errorf("%v, %d, %t", err, len(r.wakeup), r.synced)
	}
}

// TestTrailing: the passive server counts as having all changes only if this server is active and synchronized.
func TestTrailing(t *testing.T) {
	for _, c := range []struct {
		role     server.Role
		synced   bool
		unshared uint64
	}{{server.RoleActive, true, 0}, {server.RoleActive, false, 3}, {server.RolePassive, true, 3}} {
		r := waiting(c.role)
		store := &fixedStore{st: Position{Role: c.role, Unshared: 3}}
		r.store, r.synced = store, c.synced
		if err := r.sendTrailing(t.Context()); err != nil || store.st.Unshared != c.unshared {
			t.Errorf("%+v: %+v, %v", c, store.st, err)
		}
	}
}

// lineCount counts the lines of a log.
type lineCount struct {
	slog.Handler
	lines int
}

func (c *lineCount) Enabled(context.Context, slog.Level) bool { return true }

func (c *lineCount) Handle(context.Context, slog.Record) error { c.lines++; return nil }

// TestReportLogsOnce: an error is logged once, until another error comes or the servers are synchronized again.
func TestReportLogsOnce(t *testing.T) {
	var log lineCount
	r := waiting(server.RoleActive)
	r.log = slog.New(&log)
	one, two := errors.New("one"), errors.New("two")
	for i, c := range []struct {
		err   error
		lines int
	}{{one, 1}, {one, 1}, {two, 2}, {nil, 2}, {nil, 2}, {two, 3}} {
		r.synced = true
		r.learned.Store(&learned{})
		r.report(c.err)
		if log.lines != c.lines || r.synced != (c.err == nil) || !errors.Is(r.syncErr, c.err) ||
			r.learned.Load() != nil {
			t.Errorf("%d: %d lines, synced %t, %v", i, log.lines, r.synced, r.syncErr)
		}
	}
}
