package replica_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/storetest"
)

// operation is an operation of two servers. prepare, if not nil, changes the servers first. Without prepare, the two
// servers are equal, but the active server does not know this.
type operation struct {
	name    string
	prepare func(t *testing.T, a, b *member)
	run     func(ctx context.Context, a, b *member) error
}

// knownEqual makes the active server know that the passive server is equal.
func knownEqual(t *testing.T, a, _ *member) {
	t.Helper()
	must(t, replica.Check(t.Context(), a.r))
}

// branched gives the passive server the same records under a head that the active server does not know.
func branched(t *testing.T, _, b *member) {
	t.Helper()
	b.update(func(st *replica.Position) { st.Head = st.Head.NewBranch(st.Epoch) })
}

// diverged makes one change at each server, which the other does not have.
func diverged(t *testing.T, a, b *member) {
	t.Helper()
	a.tool(8)
	b.applied(9)
}

// otherRecords makes a change that the passive server cannot apply, because its records are not those of its log. The
// active server knows this, and its log has the head of the passive server.
func otherRecords(t *testing.T, a, b *member) {
	t.Helper()
	knownEqual(t, a, b)
	must(t, change(t.Context(), a, b))
	b.exec("UPDATE deposit SET uuid = 'own', label = ? WHERE uuid = 'u0'", storetest.Row(6).Label)
	a.tool(6)
	if err := replica.Check(t.Context(), a.r); err == nil || !strings.Contains(err.Error(), "cannot be made here") {
		t.Errorf("the passive server cannot apply the change: %v", err)
	}
}

// unequal damages a record of the passive server.
func unequal(_ *testing.T, _, b *member) {
	b.exec("UPDATE deposit SET content = x'00' WHERE uuid = 'u0'")
}

// alone lets the active server work without the passive server.
func alone(_ *testing.T, a, _ *member) {
	a.update(func(st *replica.Position) { st.Alone = true })
}

func change(ctx context.Context, a, _ *member) error {
	return a.store.Put(ctx, storetest.Row(7), "", server.Once{})
}

func check(ctx context.Context, a, _ *member) error { return replica.Check(ctx, a.r) }

// after runs several steps of preparation.
func after(steps ...func(*testing.T, *member, *member)) func(*testing.T, *member, *member) {
	return func(t *testing.T, a, b *member) {
		t.Helper()
		for _, step := range steps {
			step(t, a, b)
		}
	}
}

// tool makes a change at the active server, as orgtool does.
func tool(_ *testing.T, a, _ *member) { a.tool(6) }

// passiveOnly makes a change that only the passive server has.
func passiveOnly(_ *testing.T, _, b *member) { b.applied(6) }

// probeDue lets the next check of the active server probe the passive server.
func probeDue(_ *testing.T, a, _ *member) { replica.ProbeDue(a.r) }

// promoted makes the passive server the active one of a higher epoch, while the active server does not notice.
func promoted(_ *testing.T, _, b *member) {
	b.update(func(st *replica.Position) { st.Role, st.Epoch = server.RoleActive, st.Epoch+1 })
}

// holdsMore is the text of a refusal by a passive server that holds records which the active server lacks.
const holdsMore = "holds records that this server lacks"

func checkOperations() []operation {
	copyIsRefused := func(ctx context.Context, a, b *member) error {
		if err := check(ctx, a, b); !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), holdsMore) {
			return fmt.Errorf("the refusal: %w", err)
		}
		return nil
	}
	return []operation{
		{"equal", nil, check},
		{"changes for the passive server", tool, check},
		{"a change of the passive server", passiveOnly, check},
		{"another branch", branched, check},
		{"equal, alone", alone, check},
		{"unequal", unequal, check},
		{"diverged", diverged, copyIsRefused},
		{"other records", otherRecords, copyIsRefused},
		{"changes of orgtool", after(knownEqual, tool), check},
		{"probe", after(knownEqual, probeDue), check},
		{"probe of a promoted server", after(knownEqual, probeDue, promoted), check},
		{"stepping down", promoted, check},
		{"both active", promoted, func(ctx context.Context, a, b *member) error { return check(ctx, b, a) }},
	}
}

func changeOperations() []operation {
	return []operation{
		{"put", knownEqual, change},
		{"put after changes of orgtool", after(knownEqual, tool), change},
		{"ready", knownEqual, func(ctx context.Context, a, _ *member) error { return a.r.Ready(ctx) }},
		{"ready at the passive", nil, func(ctx context.Context, _, b *member) error {
			if err := b.r.Ready(ctx); !errors.Is(err, trustee.ErrPassive) {
				return fmt.Errorf("the refusal: %w", err)
			}
			return nil
		}},
	}
}

func readOperations() []operation {
	status := func(digest bool, at func(a, b *member) *member) func(context.Context, *member, *member) error {
		return func(ctx context.Context, a, b *member) error {
			s, err := at(a, b).status(ctx, digest)
			if err == nil && s.PeerError != "" {
				err = errors.New(s.PeerError)
			}
			if err == nil && (s.Fault != "" || s.Peer.Fault != "") {
				err = errors.New(s.Fault + s.Peer.Fault)
			}
			return err
		}
	}
	active := func(a, _ *member) *member { return a }
	passive := func(_, b *member) *member { return b }
	current := func(at func(a, b *member) *member) func(context.Context, *member, *member) error {
		return func(ctx context.Context, a, b *member) error {
			_, err := at(a, b).r.Current(ctx)
			return err
		}
	}
	return []operation{
		{"status", knownEqual, status(false, active)},
		{"status with digests", knownEqual, status(true, active)},
		{"status of the passive", knownEqual, status(false, passive)},
		{"status of the passive, diverged", diverged, status(true, passive)},
		{"current", knownEqual, current(active)},
		{"current of the passive", knownEqual, current(passive)},
		{"check", nil, func(ctx context.Context, a, _ *member) error { return a.r.Check(ctx) }},
	}
}

func operatorOperations() []operation {
	at := func(verb string, args any) func(context.Context, *member, *member) error {
		return func(ctx context.Context, a, b *member) error {
			if verb == trustee.VerbPromote {
				a = b
			}
			return a.do(ctx, verb, args)
		}
	}
	promote := at(trustee.VerbPromote, replica.PromoteArgs{})
	return []operation{
		{"alone on", nil, at(trustee.VerbAlone, replica.AloneArgs{On: true})},
		{"alone off", alone, at(trustee.VerbAlone, replica.AloneArgs{})},
		{"resync", tool, at(trustee.VerbResync, replica.ResyncArgs{})},
		{"resync --drop", diverged, at(trustee.VerbResync, replica.ResyncArgs{Drop: true})},
		{"promote", knownEqual, promote},
		{"promote behind", after(knownEqual, tool), promote},
		{"promote on another branch", branched, promote},
		{"promote the active", knownEqual, func(ctx context.Context, a, _ *member) error {
			return a.do(ctx, trustee.VerbPromote, replica.PromoteArgs{})
		}},
	}
}

// mayFail has the calls without which an operation can succeed, and the reason.
var mayFail = map[string]string{
	"stepping down 5 passive CheckWrites":            "a promoted server with a full disk is still active",
	"current of the passive 2 active peer-hello":     "the result is not sure, see TestCurrentKeeps",
	"current of the passive 3 active Position":       "the result is not sure, see TestCurrentKeeps",
	"current of the passive 4 active CheckWrites":    "reads need no room on the disk",
	"promote 4 active CheckWrites":                   "the server that yields need not accept changes",
	"promote behind 4 active CheckWrites":            "the server that yields need not accept changes",
	"promote on another branch 4 active CheckWrites": "the server that yields need not accept changes",
	"promote behind 8 passive Entries":               "then the entries of the active server decide",
	"promote on another branch 8 passive Entries":    "then the entries of the active server decide",
	"promote on another branch 21 passive Entries":   "then the entries of the active server decide",
}

// eachCallFails tries each operation once without a fault, and once with each of its calls failing.
func eachCallFails(t *testing.T, list []operation) {
	t.Helper()
	p := newPairs(t)
	for _, o := range list {
		t.Run(o.name, func(t *testing.T) {
			try := func(fail int) ([]string, error) {
				a, b, end := p.fresh(t)
				defer end()
				if o.prepare != nil {
					o.prepare(t, a, b)
				}
				a.calls.fail = fail
				err := a.calls.count(func() error { return o.run(t.Context(), a, b) })
				return a.calls.list, err
			}
			all, err := try(0)
			if err != nil {
				t.Fatalf("without a fault: %v", err)
			}
			t.Log(strings.Join(all, ", "))
			for i, call := range all {
				_, err := try(i + 1)
				optional := mayFail[fmt.Sprintf("%s %d %s", o.name, i+1, call)] != ""
				if (err == nil) != optional || err != nil && !strings.Contains(err.Error(), errInjected.Error()) {
					t.Errorf("call %d (%s) fails: the operation returns %v", i+1, call, err)
				}
			}
		})
	}
}

// TestEachCallOfACheckFails: if a call of a store, or a request to the other server, fails during a check of the
// active server, the check returns the error.
func TestEachCallOfACheckFails(t *testing.T) { eachCallFails(t, checkOperations()) }

// TestEachCallOfAChangeFails: a change fails if a call fails.
func TestEachCallOfAChangeFails(t *testing.T) { eachCallFails(t, changeOperations()) }

// TestEachCallOfAReadFails: a read, or a status, fails if a call fails.
func TestEachCallOfAReadFails(t *testing.T) { eachCallFails(t, readOperations()) }

// TestEachCallOfACommandFails: the command of an operator fails if a call fails.
func TestEachCallOfACommandFails(t *testing.T) { eachCallFails(t, operatorOperations()) }
