package replica_test

import (
	"strings"
	"testing"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/storetest"
)

// refused expects an error of a kind with a text.
func refused(t *testing.T, what string, err error, kind claviger.Kind, text string) {
	t.Helper()
	if !claviger.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v", what, err)
	}
}

// roles expects the roles and epochs of two servers.
func roles(t *testing.T, a, b *member, aRole server.Role, aEpoch uint64, bRole server.Role, bEpoch uint64) {
	t.Helper()
	if st := a.position(); st.Role != aRole || st.Epoch != aEpoch {
		t.Errorf("the first server is %s in epoch %d", st.Role, st.Epoch)
	}
	if st := b.position(); st.Role != bRole || st.Epoch != bEpoch {
		t.Errorf("the second server is %s in epoch %d", st.Role, st.Epoch)
	}
}

const active, passive = server.RoleActive, server.RolePassive

// withoutSome is in the log of a server that was promoted although it lacks records of the other.
const withoutSome = "becomes active without some records of the other"

// TestPromote: the passive server becomes active in the next epoch, and the active server passive. The new active
// server checks at once.
func TestPromote(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	if k, err := a.r.Current(t.Context()); err != nil || !k.Sure {
		t.Fatalf("%+v, %v", k, err)
	}
	replica.Woken(b.r)
	must(t, b.do(t.Context(), trustee.VerbPromote, replica.PromoteArgs{}))
	roles(t, a, b, passive, 2, active, 2)
	if !replica.Woken(b.r) {
		t.Error("Run does not check at once")
	}
	if strings.Contains(b.log.String(), withoutSome) {
		t.Errorf("the log names a loss: %s", b.log)
	}
	if s, err := b.status(t.Context(), false); err != nil || s.Synced || !strings.Contains(s.Why,
		"has just been promoted") {
		t.Errorf("%+v, %v", s, err)
	}
	if k, err := b.r.Current(t.Context()); err != nil || !k.Sure {
		t.Errorf("the new active server, which lacks nothing: %+v, %v", k, err)
	}
	// The old active server must ask the new one before it says that something does not exist.
	must(t, a.calls.count(func() error { _, err := a.r.Current(t.Context()); return err }))
	if a.calls.of("passive peer-hello") != 1 {
		t.Errorf("%q", a.calls.list)
	}
	must(t, b.do(t.Context(), trustee.VerbPromote, replica.PromoteArgs{})) // it is active already
	roles(t, a, b, passive, 2, active, 2)
}

// TestPromoteByForce: a server that cannot reach the other becomes active only by force, and then is not sure.
func TestPromoteByForce(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	if k, err := b.r.Current(t.Context()); err != nil || !k.Sure {
		t.Fatalf("%+v, %v", k, err)
	}
	a.calls.before = failing("active peer-hello")
	promote := func(force bool) error {
		return a.calls.count(func() error {
			return b.do(t.Context(), trustee.VerbPromote, replica.PromoteArgs{Force: force})
		})
	}
	refused(t, "without --force", promote(false), claviger.Unavailable, "--force")
	roles(t, a, b, active, 1, passive, 1)
	must(t, promote(true))
	roles(t, a, b, active, 1, active, 2)
	if k, err := b.r.Current(t.Context()); err != nil || k.Sure {
		t.Errorf("it may lack something: %+v, %v", k, err)
	}
}

// TestPromoteBehind: a server that lacks records of the other, and cannot get them, becomes active only by force. Its
// log then says that it lacks records.
func TestPromoteBehind(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	a.tool(8)
	b.applied(9)
	refused(t, "without --force", b.do(t.Context(), trustee.VerbPromote, replica.PromoteArgs{}), claviger.Invalid,
		"the other Key Trustee Server holds records that this server lacks")
	roles(t, a, b, active, 1, passive, 1)
	must(t, b.do(t.Context(), trustee.VerbPromote, replica.PromoteArgs{Force: true}))
	if st := b.position(); st.Role != active || st.Epoch != 2 {
		t.Errorf("%+v", st)
	}
	if !strings.Contains(b.log.String(), withoutSome) {
		t.Errorf("the log does not name the loss: %s", b.log)
	}
	if k, err := b.r.Current(t.Context()); err != nil || k.Sure {
		t.Errorf("it lacks something: %+v, %v", k, err)
	}
}

// TestPromoteTwoActive: promote at one of two active servers makes the other passive, except at the server of the
// higher epoch.
func TestPromoteTwoActive(t *testing.T) {
	p := newPairs(t)
	for _, c := range []struct {
		mine, theirs, after uint64
		other               server.Role
	}{{1, 1, 2, passive}, {1, 4, 5, passive}, {4, 1, 4, active}} {
		a, b, end := p.fresh(t)
		a.update(func(st *replica.Position) { st.Epoch = c.theirs })
		b.update(func(st *replica.Position) { st.Role, st.Epoch = active, c.mine })
		must(t, b.do(t.Context(), trustee.VerbPromote, replica.PromoteArgs{}))
		other := c.after
		if c.other == active {
			other = c.theirs
		}
		roles(t, a, b, c.other, other, active, c.after)
		end()
	}
}

// TestPromoteChanges: a promotion fetches all changes of the active server, also those that it makes meanwhile.
func TestPromoteChanges(t *testing.T) {
	p := newPairs(t)
	for name, change := range map[string]func(*member){
		"many": func(a *member) { a.big(11, 13) },
		"a change in the middle": func(a *member) {
			a.tool(6)
			a.calls.before = once("active peer-yield", func() { a.tool(7) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, end := p.fresh(t)
			defer end()
			change(a)
			must(t, a.calls.count(func() error {
				return b.do(t.Context(), trustee.VerbPromote, replica.PromoteArgs{})
			}))
			roles(t, a, b, passive, 2, active, 2)
			wantEqual(t, a, b)
		})
	}
}

// TestPromoteRaces: a promotion fails if a server changes meanwhile.
func TestPromoteRaces(t *testing.T) {
	p := newPairs(t)
	for name, c := range map[string]struct {
		at   string
		do   func(a, b *member)
		says string
	}{
		"the other is promoted": {"active peer-yield", func(_, b *member) {
			b.update(func(st *replica.Position) { st.Epoch = 7 })
		}, "has just been promoted, to epoch 7"},
		"a change during the comparison": {"active peer-compare", func(a, _ *member) { a.tool(6) },
			"has changed while the two were compared"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, end := p.fresh(t)
			defer end()
			branched(t, a, b)
			a.calls.before = once(c.at, func() { c.do(a, b) })
			err := a.calls.count(func() error {
				return b.do(t.Context(), trustee.VerbPromote, replica.PromoteArgs{})
			})
			refused(t, "promote", err, claviger.Unavailable, c.says)
			if st := b.position(); st.Role != passive {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestYield: a server yields only to a higher epoch.
func TestYield(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	refused(t, "to its own epoch", a.do(t.Context(), trustee.VerbPeerYield, map[string]any{"epoch": 1}),
		claviger.Denied, "epoch 1 is over")
	roles(t, a, b, active, 1, passive, 1)
	must(t, a.do(t.Context(), trustee.VerbPeerYield, map[string]any{"epoch": 2}))
	roles(t, a, b, passive, 2, passive, 1)
}

// TestHello: an active server steps down if an active server of a higher epoch sends its position.
func TestHello(t *testing.T) {
	p := newPairs(t)
	for name, c := range map[string]struct {
		from replica.Position
		want server.Role
	}{
		"a later epoch":            {replica.Position{Role: active, Epoch: 2}, passive},
		"the same epoch":           {replica.Position{Role: active, Epoch: 1}, active},
		"a passive of a later one": {replica.Position{Role: passive, Epoch: 2}, active},
	} {
		a, b, end := p.fresh(t)
		knownEqual(t, a, b)
		if k, err := a.r.Current(t.Context()); err != nil || !k.Sure {
			t.Fatalf("%+v, %v", k, err)
		}
		var answer replica.Position
		must(t, a.self.Request(t.Context(), trustee.VerbPeerHello, c.from, &answer))
		if st := a.position(); answer != st || st.Role != c.want || st.Role == passive && st.Epoch != c.from.Epoch {
			t.Errorf("%s: %+v", name, st)
		}
		b.update(func(st *replica.Position) { st.Role = passive })
		if k, err := a.r.Current(t.Context()); err != nil || k.Sure != (c.want == active) {
			t.Errorf("%s: %+v, %v", name, k, err)
		}
		end()
	}
}

// TestHelloAtThePassive: the hello of an active server does not change the position of a passive server. Only its
// changes bring a higher epoch.
func TestHelloAtThePassive(t *testing.T) {
	_, b, end := newPairs(t).fresh(t)
	defer end()
	before := b.position()
	must(t, b.do(t.Context(), trustee.VerbPeerHello, replica.Position{Role: active, Epoch: 9}))
	if st := b.position(); st != before {
		t.Errorf("%+v", st)
	}
}

// TestPassiveAgain: a server that was active does not know whether it lacks changes of the other.
func TestPassiveAgain(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	for _, m := range []*member{b, a} {
		must(t, m.do(t.Context(), trustee.VerbPromote, replica.PromoteArgs{}))
	}
	roles(t, a, b, active, 3, passive, 3)
	a.tool(6)
	a.calls.before = failing("active peer-hello")
	must(t, a.calls.count(func() error {
		k, err := b.r.Current(t.Context())
		if k.Sure || k.Lists {
			t.Errorf("%+v", k)
		}
		return err
	}))
}

// TestAloneIsSure: an operator's decision counts at once.
func TestAloneIsSure(t *testing.T) {
	a, _, end := newPairs(t).fresh(t)
	defer end()
	for _, on := range []bool{false, true, false} {
		must(t, a.do(t.Context(), trustee.VerbAlone, replica.AloneArgs{On: on}))
		if k, err := a.r.Current(t.Context()); err != nil || k.Sure != on {
			t.Errorf("%t: %+v, %v", on, k, err)
		}
	}
}

// TestCommandsOfTheActive: only an active server works alone or makes the other equal.
func TestCommandsOfTheActive(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	refused(t, "alone at the passive", b.do(t.Context(), trustee.VerbAlone, replica.AloneArgs{On: true}),
		claviger.Invalid, "only an active one works alone")
	refused(t, "resync at the passive", b.do(t.Context(), trustee.VerbResync, replica.ResyncArgs{}), claviger.Invalid,
		"is for the active one")
	if b.position().Alone {
		t.Error("the passive server works alone")
	}
	must(t, a.do(t.Context(), trustee.VerbResync, replica.ResyncArgs{}))
	if s, err := a.status(t.Context(), true); err != nil || !s.Synchronized() {
		t.Errorf("after a resync: %+v, %v", s, err)
	}
}

// TestAlone: an operator lets the active server work alone if the passive server does not answer. The server then
// checks at once.
func TestAlone(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	do := func(on bool) error {
		return a.calls.count(func() error { return a.do(t.Context(), trustee.VerbAlone, replica.AloneArgs{On: on}) })
	}
	knownEqual(t, a, b)
	refused(t, "the passive server answers", do(true), claviger.Invalid, "need not work alone")
	if _, synced, err := a.r.State(t.Context()); err != nil || !synced || a.position().Alone {
		t.Errorf("%t, %v", synced, err)
	}
	replica.Woken(a.r)
	must(t, do(false)) // it does not work alone
	if !replica.Woken(a.r) {
		t.Error("Run does not check at once")
	}
	if s, err := a.status(t.Context(), false); err != nil || s.Synced || !strings.Contains(s.Why, "must reach") {
		t.Errorf("%+v, %v", s, err)
	}
	knownEqual(t, a, b)
	a.calls.before = failing("passive peer-hello")
	must(t, do(true))
	if !a.position().Alone {
		t.Error("the server does not work alone")
	}
	a.calls.before = failing("passive peer-hello")
	wantCheck(t, a, errInjected.Error())
	must(t, do(true))
	if s, err := a.status(t.Context(), false); err != nil || !strings.Contains(s.Why, errInjected.Error()) {
		t.Errorf("the reason is lost: %+v, %v", s, err)
	}
	must(t, change(t.Context(), a, b))
	if _, err := b.store.Get(t.Context(), storetest.Row(7).UUID); !claviger.Is(err, claviger.KeyNotFound) {
		t.Errorf("the passive server has the change: %v", err)
	}
	a.calls.before = nil
	wantCheck(t, a, "")
	wantEqual(t, a, b)
}

// TestAloneOverLostPassive: an active server whose passive server is no longer its own may work alone.
func TestAloneOverLostPassive(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	a.update(func(st *replica.Position) { st.Role = passive })
	refused(t, "a passive that was active", a.do(t.Context(), trustee.VerbAlone, replica.AloneArgs{On: true}),
		claviger.Invalid, "only an active one works alone")
}
