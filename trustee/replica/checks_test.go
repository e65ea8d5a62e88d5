package replica_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/storetest"
)

// wantCheck makes the check of a server. It demands an error that contains says, or no error if says is "". If want has
// calls, it demands that the check makes these calls.
func wantCheck(t *testing.T, m *member, says string, want ...string) {
	t.Helper()
	m.calls.list = nil
	err := m.calls.count(func() error { return replica.Check(t.Context(), m.r) })
	switch {
	case says == "" && err != nil, says != "" && (err == nil || !strings.Contains(err.Error(), says)):
		t.Errorf("the check: %v, want %q", err, says)
	case len(want) > 0 && !slices.Equal(m.calls.list, want):
		t.Errorf("the calls of the check: %q", m.calls.list)
	}
}

// wantEqual demands that both stores have the same records.
func wantEqual(t *testing.T, a, b *member) {
	t.Helper()
	if digestOf(t, a.store.Store) != digestOf(t, b.store.Store) {
		t.Error("the stores differ")
	}
}

// TestCheckSendsNothing: if the passive server has every change, a check only reads the position, and probes the other
// server now and then.
func TestCheckSendsNothing(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	wantCheck(t, a, "", "active Position", "passive peer-hello", "passive Position", "passive Has") // the first probe
	wantCheck(t, a, "", "active Position")
	wantCheck(t, b, "", "passive Position")
	replica.ProbeDue(a.r)
	wantCheck(t, a, "", "active Position", "passive peer-hello", "passive Position", "passive Has")
	a.tool(6)
	wantCheck(t, a, "", "active Position", "active UpdatePosition", "active Entries", "passive peer-append",
		"passive Apply", "passive Position")
	wantCheck(t, a, "", "active Position")
	wantEqual(t, a, b)
	if st := a.position(); st.Unshared != 0 {
		t.Errorf("%+v", st)
	}
}

// TestCheckUnshared: the active server records that the passive server has the changes that it made alone, even if the
// heads are equal.
func TestCheckUnshared(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	wantCheck(t, a, "")
	a.update(func(st *replica.Position) { st.Unshared = 1 })
	wantCheck(t, a, "", "active Position", "active UpdatePosition")
	if st := a.position(); st.Unshared != 0 {
		t.Errorf("%+v", st)
	}
}

// TestCheckCancelled: a check that was cancelled does not change the state of the active server.
func TestCheckCancelled(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := replica.Check(ctx, a.r); err != nil {
		t.Error(err)
	}
	if _, synced, err := a.r.State(t.Context()); err != nil || !synced {
		t.Errorf("%t, %v", synced, err)
	}
}

func promoteTo7(st *replica.Position) { st.Role, st.Epoch = server.RoleActive, 7 }

// TestProbeFindsAnotherState: the state of the passive server has changed since the last check.
func TestProbeFindsAnotherState(t *testing.T) {
	p := newPairs(t)
	for name, c := range map[string]struct {
		change func(*replica.Position)
		says   string
		role   server.Role // of the first server, after the check
	}{
		"an older copy": {func(st *replica.Position) { st.Head.Seq-- }, "was the passive one with change",
			server.RoleActive},
		"a newer change": {func(st *replica.Position) { st.Head.Seq++ }, "", server.RoleActive},
		"active in the same epoch": {func(st *replica.Position) { st.Role = server.RoleActive },
			"but now it is active", server.RoleActive},
		"promoted":                 {promoteTo7, "", server.RolePassive},
		"passive in a later epoch": {func(st *replica.Position) { st.Epoch = 7 }, "", server.RolePassive},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, end := p.fresh(t)
			defer end()
			knownEqual(t, a, b)
			b.update(c.change)
			replica.ProbeDue(a.r)
			wantCheck(t, a, c.says)
			if st := a.position(); st.Role != c.role || st.Epoch != b.position().Epoch && c.role == server.RolePassive {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestBothActive: two active servers of one epoch do not overwrite each other.
func TestBothActive(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	b.update(func(st *replica.Position) { st.Role = server.RoleActive })
	wantCheck(t, a, "both Key Trustee Servers are active")
	wantCheck(t, b, "both Key Trustee Servers are active")
	if a.position().Role != server.RoleActive || b.position().Role != server.RoleActive {
		t.Error("a server has stepped down")
	}
}

// TestFaultOfThePassive: the check says why the store of the passive server accepts no changes.
func TestFaultOfThePassive(t *testing.T) {
	a, _, end := newPairs(t).fresh(t)
	defer end()
	a.calls.before = failing("passive CheckWrites")
	wantCheck(t, a, "the store of the passive Key Trustee Server takes no changes")
	a.calls.before = nil
	wantCheck(t, a, "takes no changes") // the probe of the store is not repeated at once
}

// TestProbeFindsAFault: a probe says so if the store of the passive server accepts no changes any more.
func TestProbeFindsAFault(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	replica.ForgetProbe(b.r)
	replica.ProbeDue(a.r)
	a.calls.before = failing("passive CheckWrites")
	wantCheck(t, a, "the store of the passive Key Trustee Server takes no changes")
}

// TestCheckAfterAFailedProbe: the check after a failed probe synchronizes, and does not wait for the next probe.
func TestCheckAfterAFailedProbe(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	replica.ProbeDue(a.r)
	a.calls.before = failing("passive peer-hello")
	wantCheck(t, a, errInjected.Error())
	a.calls.before = nil
	wantCheck(t, a, "")
}

// TestManyChanges: changes of more than one page reach the passive server in the next check. A change that needs them
// is refused.
func TestManyChanges(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	a.big(11, 13)
	if err := change(t.Context(), a, b); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "more than one page") {
		t.Errorf("a change: %v", err)
	}
	wantCheck(t, a, "")
	if n := a.calls.of("passive peer-append"); n != 3 {
		t.Errorf("%d pages", n)
	}
	wantEqual(t, a, b)
	must(t, change(t.Context(), a, b))
	wantEqual(t, a, b)
}

// TestManyChangesOfThePassive: the active server fetches changes of more than one page.
func TestManyChangesOfThePassive(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	b.update(func(st *replica.Position) { st.Role = server.RoleActive })
	b.big(11, 13)
	b.update(func(st *replica.Position) { st.Role = server.RolePassive })
	wantCheck(t, a, "")
	if n := a.calls.of("passive peer-entries"); n != 3 {
		t.Errorf("%d pages", n)
	}
	wantEqual(t, a, b)
}

// TestLastChangeUnknown: the passive server may have the change whose answer was lost. The active server has made
// another change instead. Nothing else of the passive server is dropped.
func TestLastChangeUnknown(t *testing.T) {
	p := newPairs(t)
	for name, c := range map[string]struct {
		at   string // the call that fails
		lost string // what the passive server holds, and must not lose
	}{
		"it has the change":     {at: "passive Position"},
		"it has another change": {at: "passive peer-append", lost: "holds records that this server lacks"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, end := p.fresh(t)
			defer end()
			knownEqual(t, a, b)
			a.calls.before = failing(c.at)
			if err := a.calls.count(func() error { return change(t.Context(), a, b) }); err == nil {
				t.Fatal("the change was acknowledged")
			}
			a.calls.before = nil
			if c.lost != "" {
				b.applied(9)
			}
			a.tool(8)
			wantCheck(t, a, c.lost)
			if c.lost == "" {
				wantEqual(t, a, b)
			} else if _, err := b.store.Get(t.Context(), storetest.Row(9).UUID); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLogOfAnotherStore: the passive server's head is in the active server's log, but its records are not those of the
// log. They are not dropped, not even after the log has lost the entries that the passive server could not apply.
func TestLogOfAnotherStore(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	otherRecords(t, a, b)
	wantCheck(t, a, holdsMore)
	a.exec("DELETE FROM change WHERE seq = ?", a.position().Head.Seq)
	a.tool(8)
	replica.RefusedLongAgo(a.r)
	wantCheck(t, a, holdsMore)
	if _, err := b.store.Get(t.Context(), "own"); err != nil {
		t.Error(err)
	}
}

// TestRefusalSaysAlone: the refusal says whether the passive server has acknowledged changes alone.
func TestRefusalSaysAlone(t *testing.T) {
	p := newPairs(t)
	for unshared, says := range map[uint64]string{0: "; nothing was changed",
		3: " (it has acknowledged changes alone, from 3 on); nothing was changed"} {
		a, b, end := p.fresh(t)
		diverged(t, a, b)
		b.update(func(st *replica.Position) { st.Unshared = unshared })
		wantCheck(t, a, "1 deposits: deposit \"<l&9>\\u2028\""+says)
		end()
	}
}

// TestMovingTarget: the stores change while they are compared.
func TestMovingTarget(t *testing.T) {
	p := newPairs(t)
	for name, c := range map[string]struct {
		at   string
		do   func(a, b *member)
		says string
	}{
		"a change before the comparison": {"passive Snapshot", func(a, _ *member) { a.tool(6) },
			"another change was made"},
		"a change of the passive": {"passive Snapshot", func(_, b *member) { b.applied(6) }, ""},
		"yielded": {"passive Snapshot", func(a, _ *member) {
			a.update(func(st *replica.Position) { st.Role = server.RolePassive })
		}, "not the active one any more"},
		"the same head meanwhile": {"passive peer-entries", func(a, b *member) {
			b.update(func(st *replica.Position) { st.Head = a.position().Head })
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, end := p.fresh(t)
			defer end()
			if c.at == "passive peer-entries" {
				branched(t, a, b)
			}
			a.calls.before = once(c.at, func() { c.do(a, b) })
			wantCheck(t, a, c.says)
			if c.says == "" {
				wantEqual(t, a, b)
			}
		})
	}
}

// TestNeverEqual: if the records of the passive server change in each check, it gets one whole copy, and then the check
// returns an error.
func TestNeverEqual(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	a.calls.before = func(call string) error {
		if call == "passive Snapshot" {
			b.exec("UPDATE deposit SET content = x'00' WHERE uuid = 'u0'")
		}
		return nil
	}
	wantCheck(t, a, "could not be made equal by digest")
	if n := a.calls.of("passive peer-load"); n != 1 {
		t.Errorf("%d copies", n)
	}
}

// TestAloneGoesOn: if the passive server cannot be made equal, the active server still works alone.
func TestAloneGoesOn(t *testing.T) {
	for call, on := range map[string]bool{"passive peer-digest": true, "": false} {
		a, _, end := newPairs(t).fresh(t)
		alone(t, a, nil)
		if a.calls.before = failing(call); on {
			wantCheck(t, a, errInjected.Error())
		} else {
			wantCheck(t, a, "")
		}
		if st := a.position(); st.Alone != on {
			t.Errorf("%q fails: alone is %t", call, st.Alone)
		}
		end()
	}
}

// TestRefusedCopy: a copy that the passive server refused is not sent again until a store changes, or an operator
// requests a resync.
func TestRefusedCopy(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	diverged(t, a, b)
	const no = "holds records that this server lacks"
	sent := func(when string, want int) {
		t.Helper()
		wantCheck(t, a, no)
		if n := a.calls.of("passive peer-load"); n != want {
			t.Errorf("%s: %d pages", when, n)
		}
	}
	sent("first", 1)
	sent("again", 0)
	a.tool(10)
	sent("after a change here", 0)
	b.applied(11)
	sent("after a change there", 1)
	if err := a.calls.count(func() error {
		a.calls.list = nil
		return a.do(t.Context(), trustee.VerbResync, replica.ResyncArgs{})
	}); !claviger.Is(err, claviger.Invalid) || a.calls.of("passive peer-load") != 1 {
		t.Errorf("resync: %v, %q", err, a.calls.list)
	}
	if _, err := a.r.Current(t.Context()); err == nil {
		t.Error("the active server does not know that it lacks something")
	}
	must(t, a.do(t.Context(), trustee.VerbResync, replica.ResyncArgs{Drop: true}))
	if k, err := a.r.Current(t.Context()); err != nil || !k.Sure {
		t.Errorf("after the resync: %+v, %v", k, err)
	}
	if s, err := a.status(t.Context(), false); err != nil || s.Why != "" {
		t.Errorf("after the resync: %q, %v", s.Why, err)
	}
	wantEqual(t, a, b)
}

// TestCopyInPages: a whole copy is sent in pages of a limited size, and the passive server keeps no page.
func TestCopyInPages(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	a.big(11, 13)
	branched(t, a, b)
	wantCheck(t, a, "")
	if n := a.calls.of("passive peer-load"); n != 3 {
		t.Errorf("%d pages", n)
	}
	wantEqual(t, a, b)
	empty(t, b)
}

// TestCopyEndsAtAFailedPage: if the passive server does not take a page of a copy, no further page is sent.
func TestCopyEndsAtAFailedPage(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	a.big(11, 13)
	branched(t, a, b)
	a.calls.before = failing("passive peer-load")
	wantCheck(t, a, errInjected.Error())
	if n := a.calls.of("passive peer-load"); n != 1 {
		t.Errorf("%d pages", n)
	}
}

// TestTooManyChanges: a synchronization ends if changes are made faster than it sends them.
func TestTooManyChanges(t *testing.T) {
	a, _, end := newPairs(t).fresh(t)
	defer end()
	replica.SetSyncRounds(t, 3)
	next := 20
	a.tool(next)
	a.calls.before = func(call string) error {
		if call == "passive peer-append" {
			next++
			a.tool(next)
		}
		return nil
	}
	wantCheck(t, a, "changes are made faster")
	a.calls.before = nil
	wantCheck(t, a, "")
}

// TestFailedChangeProbes: after a change that could not be applied, the passive server probes its store at once.
func TestFailedChangeProbes(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	knownEqual(t, a, b)
	a.calls.before = failing("passive Apply")
	if err := a.calls.count(func() error { return change(t.Context(), a, b) }); err == nil {
		t.Error("the change was acknowledged")
	}
	a.calls.before = failing("passive CheckWrites")
	wantCheck(t, a, "takes no changes")
}

// TestRecordWithoutJSON: a record that has no JSON form ends a copy.
func TestRecordWithoutJSON(t *testing.T) {
	a, b, end := newPairs(t).fresh(t)
	defer end()
	a.exec("UPDATE deposit SET expires = ? WHERE uuid = 'u0'", time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli())
	before := digestOf(t, b.store.Store)
	if err := replica.Check(t.Context(), a.r); !claviger.Is(err, claviger.Internal) {
		t.Error(err)
	}
	if digestOf(t, b.store.Store) != before {
		t.Error("the passive server has changed")
	}
}
