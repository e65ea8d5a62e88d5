package replica_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server/sqlite"
)

// TestRecover: records that resync has dropped are added to the store of the active server, and reach the passive
// server. A deposit whose label is taken is not added, and is named. The passive server refuses changes.
func TestRecover(t *testing.T) {
	a, b, c := startedPair(t)
	must(t, put(t, c, "both", "x"))
	b.stop()
	must(t, a.operatorRequest(trustee.VerbAlone, replica.AloneArgs{On: true}))
	ofA := a.client(identities()[1])
	for _, label := range []string{"late", "taken", "deleted"} {
		must(t, put(t, ofA, label, "a"))
	}
	d, err := ofA.Find(t.Context(), "deleted")
	must(t, err)
	must(t, ofA.Delete(t.Context(), d.UUID))
	a.stop()
	b.start()
	must(t, b.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{Force: true}))
	must(t, b.operatorRequest(trustee.VerbAlone, replica.AloneArgs{On: true}))
	must(t, put(t, b.client(identities()[1]), "taken", "b"))
	a.start()
	b.await("the warning", func(r replica.StatusReport) bool { return strings.Contains(r.Why, `deposit "late"`) })
	must(t, b.operatorRequest(trustee.VerbResync, replica.ResyncArgs{Drop: true}))
	b.await("both servers being synchronized", synchronized)
	kept, err := filepath.Glob(a.path + ".dropped-*")
	if err != nil || len(kept) != 1 {
		t.Fatalf("%q, %v", kept, err)
	}
	from, err := sqlite.Open(t.Context(), kept[0], false)
	must(t, err)
	defer from.Close()

	if r, err := replica.Recover(t.Context(), b.store, from, replica.RecoverOptions{Dry: true}); err != nil ||
		r.Lacked.Deposits != 3 || !r.Added.None() {
		t.Errorf("a dry run: %+v, %v", r, err)
	}
	if _, err := replica.Recover(t.Context(), a.store, from, replica.RecoverOptions{}); !errors.Is(err,
		trustee.ErrPassive) {
		t.Errorf("at the passive: %v", err)
	}
	_, err = replica.Recover(t.Context(), b.store, from, replica.RecoverOptions{Revive: []string{"late", "latr"}})
	if !claviger.Is(err, claviger.KeyNotFound) || !strings.Contains(err.Error(), "did you mean late?") {
		t.Errorf("a name that the other store does not hold: %v", err)
	}
	r, err := replica.Recover(t.Context(), b.store, from, replica.RecoverOptions{})
	if err != nil || r.Added.Deposits != 2 || len(r.NotAdded) != 1 || !strings.Contains(r.NotAdded[0],
		`deposit "taken": the store has another`) {
		t.Fatalf("%+v, %v", r, err)
	}
	b.await("both servers being synchronized", synchronized)
	for _, h := range []*pairServer{a, b} {
		one := h.client(identities()[1])
		if d, err := one.Find(t.Context(), "late"); err != nil || string(d.Content) != "a" {
			t.Errorf("late: %+v, %v", d, err)
		}
		if d, err := one.Find(t.Context(), "taken"); err != nil || string(d.Content) != "b" {
			t.Errorf("taken: %+v, %v", d, err)
		}
		if _, err := one.Find(t.Context(), "deleted"); !claviger.Is(err, claviger.KeyNotFound) {
			t.Errorf("a deleted deposit: %v", err)
		}
	}
	must(t, b.client(identities()[1]).Undelete(t.Context(), d.UUID))
	if d, err := b.client(identities()[1]).Find(t.Context(), "deleted"); err != nil || string(d.Content) != "a" {
		t.Errorf("%+v, %v", d, err)
	}
	r, err = replica.Recover(t.Context(), b.store, from, replica.RecoverOptions{Revive: []string{"late", "taken"}})
	if err != nil || !r.Added.None() || !slices.Equal(r.NotLacked, []string{"late"}) {
		t.Errorf("a second time: %+v, %v", r, err)
	}
}
