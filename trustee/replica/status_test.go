package replica_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

// TestStatus: the status of both servers says how many changes the passive server lacks, and whether it has changes
// that the active server lacks.
func TestStatus(t *testing.T) {
	p := newPairs(t)
	for name, c := range map[string]struct {
		prepare  func(t *testing.T, a, b *member)
		lag      uint64
		differ   bool // the digests
		diverged bool // at the passive server
		// why and passiveWhy are parts of the reasons at the active and at the passive server.
		why, passiveWhy string
	}{
		"equal":  {prepare: knownEqual},
		"behind": {prepare: after(knownEqual, tool), lag: 1, differ: true},
		"ahead, by a lost answer": {prepare: after(knownEqual, passiveOnly), differ: true, diverged: true,
			passiveWhy: "does not have the changes"},
		"diverged": {prepare: diverged, differ: true, diverged: true, passiveWhy: "does not have the changes"},
		"a refused copy": {prepare: after(diverged, func(t *testing.T, a, _ *member) {
			t.Helper()
			wantCheck(t, a, holdsMore)
		}), differ: true, diverged: true, why: holdsMore, passiveWhy: "its copy was refused"},
		"changed after a refused copy": {prepare: after(diverged, func(t *testing.T, a, _ *member) {
			t.Helper()
			wantCheck(t, a, holdsMore)
			a.exec("UPDATE standing SET digest = 'other'")
		}), differ: true, diverged: true, why: holdsMore, passiveWhy: "does not have the changes"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, end := p.fresh(t)
			defer end()
			c.prepare(t, a, b)
			atActive, err := a.status(t.Context(), true)
			must(t, err)
			atPassive, err := b.status(t.Context(), true)
			must(t, err)
			if atActive.Lag != c.lag || atPassive.Lag != c.lag || atActive.Diverged ||
				atPassive.Diverged != c.diverged {
				t.Errorf("lag %d and %d, diverged %t and %t", atActive.Lag, atPassive.Lag, atActive.Diverged,
					atPassive.Diverged)
			}
			if atActive.Digest != atPassive.PeerDigest || atActive.PeerDigest != atPassive.Digest ||
				(atActive.Digest != atPassive.Digest) != c.differ {
				t.Errorf("%+v, %+v", atActive, atPassive)
			}
			if !strings.Contains(atActive.Why, c.why) || (atActive.Why == "") != (c.why == "") ||
				!strings.Contains(atPassive.Why, c.passiveWhy) || (atPassive.Why == "") != (c.passiveWhy == "") {
				t.Errorf("%q, %q", atActive.Why, atPassive.Why)
			}
		})
	}
}

// TestStatusAlone: the status says that the other server does not answer.
func TestStatusAlone(t *testing.T) {
	a, _, end := newPairs(t).fresh(t)
	defer end()
	a.calls.before = failing("passive peer-hello")
	for _, digest := range []bool{false, true} {
		must(t, a.calls.count(func() error {
			s, err := a.status(t.Context(), digest)
			if s.Peer != nil || !strings.Contains(s.PeerError, errInjected.Error()) || (s.Digest != "") != digest ||
				s.PeerDigest != "" || s.Synchronized() {
				t.Errorf("%+v", s)
			}
			return err
		}))
	}
}

// TestStatusOfTwoPassive: of two passive servers, neither has diverged from an active one.
func TestStatusOfTwoPassive(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	diverged(t, a, b)
	a.update(func(st *replica.Position) { st.Role = passive })
	for _, m := range []*member{a, b} {
		if s, err := m.status(t.Context(), false); err != nil || s.Diverged || s.Why != "" {
			t.Errorf("%+v, %v", s, err)
		}
	}
}

// TestCurrentKeeps: Current uses an answer of the other server again for a short time, so that reads do not wait.
func TestCurrentKeeps(t *testing.T) {
	p := newPairs(t)
	for name, c := range map[string]struct {
		before      string // the call that fails
		learn       func(t *testing.T, a, b *member)
		sure, lists bool
	}{
		"the active server answers": {"", nil, true, true},
		"it has never answered":     {"active peer-hello", nil, false, false},
		"it has answered before":    {"active peer-hello", knownEqual, false, true},
	} {
		a, b, end := p.fresh(t)
		if c.learn != nil {
			c.learn(t, a, b)
		}
		a.calls.before = failing(c.before)
		for i := range 2 {
			must(t, a.calls.count(func() error {
				k, err := b.r.Current(t.Context())
				if k.Sure != c.sure || k.Lists != c.lists {
					t.Errorf("%s: %+v", name, k)
				}
				return err
			}))
			if n := a.calls.of("active peer-hello"); n != 1 {
				t.Errorf("%s: %d requests after reading %d", name, n, i)
			}
		}
		end()
	}
}

// TestCurrentLearns: while the active server is away, the lists of the passive server count only if it learned from the
// active server that it has all changes.
func TestCurrentLearns(t *testing.T) {
	p := newPairs(t)
	for name, c := range map[string]struct {
		prepare func(t *testing.T, a, b *member)
		lists   bool
	}{
		"it had all changes": {knownEqual, true},
		"it lacked changes": {after(knownEqual, diverged, func(t *testing.T, _, b *member) {
			t.Helper()
			if k, err := b.r.Current(t.Context()); err != nil || k.Sure {
				t.Errorf("%+v, %v", k, err)
			}
		}), false},
		"it got all changes": {func(t *testing.T, _, b *member) {
			t.Helper()
			if k, err := b.r.Current(t.Context()); err != nil || !k.Sure {
				t.Errorf("%+v, %v", k, err)
			}
		}, true},
		"a hello of an active server with more": {after(knownEqual, tool, func(t *testing.T, a, b *member) {
			t.Helper()
			must(t, b.do(t.Context(), trustee.VerbPeerHello, a.position()))
		}), false},
	} {
		a, b, end := p.fresh(t)
		c.prepare(t, a, b)
		a.calls.before = failing("active peer-hello")
		replica.Forget(b.r)
		must(t, a.calls.count(func() error {
			k, err := b.r.Current(t.Context())
			if k.Sure || k.Lists != c.lists {
				t.Errorf("%s: %+v", name, k)
			}
			return err
		}))
		end()
	}
}

// TestFirstRole: at the first start, a server gets a role; later it keeps the role that its store has.
func TestFirstRole(t *testing.T) {
	for _, c := range []struct {
		first, want server.Role
		epoch       uint64
	}{{"", "", 0}, {server.RoleSingle, "", 0}, {active, active, 1}, {passive, passive, 0}} {
		s := single(t)
		cfg := replica.Config{Identity: identities()[0], Store: s, Spool: t.TempDir()}
		must(t, os.WriteFile(filepath.Join(cfg.Spool, ".incoming-1"), nil, 0o600))
		_, err := replica.New(t.Context(), cfg, c.first)
		st, perr := s.Position(t.Context())
		must(t, perr)
		if c.want == "" {
			refused(t, string(c.first), err, claviger.Invalid, "--role")
			if st.Role != server.RoleSingle {
				t.Errorf("%+v", st)
			}
			continue
		}
		if must(t, err); st.Role != c.want || st.Epoch != c.epoch {
			t.Errorf("%q: %+v", c.first, st)
		}
		if files, err := os.ReadDir(cfg.Spool); err != nil || len(files) > 0 {
			t.Errorf("%v, %v", files, err)
		}
		for _, second := range []server.Role{"", active, passive} {
			_, err := replica.New(t.Context(), cfg, second)
			must(t, err)
			if st, err := s.Position(t.Context()); err != nil || st.Role != c.want || st.Epoch != c.epoch {
				t.Errorf("%q, then %q: %+v, %v", c.first, second, st, err)
			}
		}
		if err := s.AddOrg(t.Context(), server.Org{Name: "X"}); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("a change before a check: %v", err)
		}
	}
}

// TestFirstRoleFails: a server does not start if its store fails.
func TestFirstRoleFails(t *testing.T) {
	for _, call := range []string{"Position", "UpdatePosition"} {
		s := &failingStore{single(t), failing(call)}
		cfg := replica.Config{Identity: identities()[0], Store: s, Spool: t.TempDir()}
		_, err := replica.New(t.Context(), cfg, active)
		refused(t, call, err, claviger.Unavailable, errInjected.Error())
	}
}

// TestSpoolThatCannotBeCleared: a server does not start if it cannot remove the pages of a copy.
func TestSpoolThatCannotBeCleared(t *testing.T) {
	spool := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(spool, ".incoming-1", "x"), 0o700))
	_, err := replica.New(t.Context(), replica.Config{Identity: identities()[0], Store: single(t), Spool: spool},
		active)
	refused(t, "New", err, claviger.Unavailable, "not empty")
}

// TestUnknownVerb: a request with an unknown verb is refused, and so are arguments of a wrong type.
func TestUnknownVerb(t *testing.T) {
	a, _, end := newPairs(t).fresh(t)
	defer end()
	_, err := a.r.Do(t.Context(), &trustee.Request{Verb: "x"})
	refused(t, "Do", err, claviger.Internal, "unknown verb")
	for _, verb := range []string{trustee.VerbStatus, trustee.VerbPromote, trustee.VerbPeerHello} {
		refused(t, verb, a.do(t.Context(), verb, "text"), claviger.Invalid, "")
	}
}
