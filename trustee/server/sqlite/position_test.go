package sqlite

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/storetest"
)

var errStop = errors.New("the caller stops")

// TestUpdatePosition: a log begins only when a single store becomes active. If the function fails, nothing changes.
func TestUpdatePosition(t *testing.T) {
	a := newFilledStore(t)
	if st := as(t, a, server.RolePassive, 1); st.Head != (replica.Head{}) {
		t.Errorf("a passive store: %+v", st)
	}
	if st := as(t, a, server.RoleActive, 2); st.Head != (replica.Head{}) {
		t.Errorf("a promoted store: %+v", st)
	}
	as(t, a, server.RoleSingle, 2)
	began := as(t, a, server.RoleActive, 3)
	if began.Head.Seq != 1 || began.Head.Epoch != 3 || began.Epoch != 3 {
		t.Errorf("the start of a log: %+v", began)
	}
	if st := as(t, a, server.RoleActive, 4); st.Head != began.Head || st.Epoch != 4 {
		t.Errorf("an active store: %+v", st)
	}
	before := stateOf(t, a)
	_, err := a.UpdatePosition(t.Context(), func(st *replica.Position) error {
		st.Epoch++
		return errStop
	})
	if !errors.Is(err, errStop) || stateOf(t, a) != before {
		t.Errorf("%v, or the store has changed", err)
	}
}

// TestHas: a log has its entries, and no others.
func TestHas(t *testing.T) {
	ctx, a := t.Context(), newFilledStore(t)
	as(t, a, server.RoleActive, 1)
	start := head(t, a)
	for _, auth := range []string{"1", "2"} {
		check(t, a.SetAuth(ctx, storetest.Org, auth))
	}
	list, err := a.Entries(ctx, start, 9, 1<<20)
	check(t, err)
	other := list[0].Head
	other.Digest = strings.Repeat("0", 64)
	for what, tt := range map[string]struct {
		head replica.Head
		want bool
	}{"the last": {list[1].Head, true}, "an older one": {list[0].Head, true}, "another": {other, false},
		"one that is missing": {replica.Head{Seq: 99}, false}} {
		if got, err := a.Has(ctx, tt.head); err != nil || got != tt.want {
			t.Errorf("%s: %t, %v", what, got, err)
		}
	}
}

// TestUnfitChanges: a change that does not fit the records of the passive store proves that the stores are not equal.
func TestUnfitChanges(t *testing.T) {
	ctx, a := t.Context(), newFilledStore(t)
	as(t, a, server.RoleActive, 1)
	b := loaded(t, a)
	before := stateOf(t, b)
	row := storetest.Row(50)
	row.Owner = "NOBODY"
	for what, ch := range map[string]replica.Change{
		"an unknown operation":              {Op: "other"},
		"no organization":                   {Op: replica.OpAddOrg},
		"no client":                         {Op: replica.OpAddClient},
		"no deposit":                        {Op: replica.OpPut},
		"an organization that is missing":   {Op: replica.OpSetAuth, Name: "NONE"},
		"an organization that exists":       {Op: replica.OpAddOrg, Org: &server.Org{Name: storetest.Org, UUID: "x"}},
		"a deposit of an unknown owner":     {Op: replica.OpPut, Deposit: &row},
		"a request that was handled before": {Op: replica.OpForget, Once: storetest.Request("d1")},
		"an unknown state":                  {Op: replica.OpSetState, Name: storetest.Owner, State: "asleep"},
	} {
		text, err := json.Marshal(ch)
		check(t, err)
		err = b.Apply(ctx, server.RolePassive, 1, []replica.Entry{before.position.Head.Next(1, text)})
		if !errors.Is(err, replica.ErrChain) || !claviger.Is(err, claviger.Invalid) ||
			!strings.Contains(err.Error(), "the two stores are not equal") || stateOf(t, b) != before {
			t.Errorf("%s: %v, or the store has changed", what, err)
		}
	}
	err := b.Apply(ctx, server.RolePassive, 1, []replica.Entry{before.position.Head.Next(1, []byte("no JSON"))})
	if !claviger.Is(err, claviger.Invalid) || errors.Is(err, replica.ErrChain) || stateOf(t, b) != before {
		t.Errorf("a change that is not JSON: %v", err)
	}
}

// TestForgedPast: an entry that has the number of an entry in the log, and another digest, does not follow the log.
func TestForgedPast(t *testing.T) {
	ctx, a := t.Context(), newFilledStore(t)
	as(t, a, server.RoleActive, 1)
	b := loaded(t, a)
	start := head(t, a)
	for _, auth := range []string{"1", "2"} {
		check(t, a.SetAuth(ctx, storetest.Org, auth))
	}
	list, err := a.Entries(ctx, start, 9, 1<<20)
	check(t, err)
	check(t, b.Apply(ctx, server.RolePassive, 1, list))
	list[0].Digest = strings.Repeat("0", 64)
	before := stateOf(t, b)
	if err := b.Apply(ctx, server.RolePassive, 1, list); !errors.Is(err, replica.ErrChain) || !claviger.Is(err,
		claviger.Invalid) || stateOf(t, b) != before {
		t.Errorf("%v, or the store has changed", err)
	}
}

// TestEntriesOfManySizes: a part of the log ends before the first entry that is too long, although a later entry is
// not.
func TestEntriesOfManySizes(t *testing.T) {
	ctx, a := t.Context(), newFilledStore(t)
	as(t, a, server.RoleActive, 1)
	start := head(t, a)
	for _, auth := range []string{"1", strings.Repeat("2", 1000), "3"} {
		check(t, a.SetAuth(ctx, storetest.Org, auth))
	}
	all, err := a.Entries(ctx, start, 9, 1<<20)
	if err != nil || len(all) != 3 {
		t.Fatalf("%d entries, %v", len(all), err)
	}
	first := len(all[0].Change)
	for bytes, want := range map[int]int{first: 1, 3 * first: 1, first + len(all[1].Change) - 1: 1,
		first + len(all[1].Change): 2} {
		if list, err := a.Entries(ctx, start, 9, bytes); err != nil || len(list) != want {
			t.Errorf("%d entries of %d bytes, %v; want %d", len(list), bytes, err, want)
		}
	}
}

// TestApplyUnshared: the changes of the active server end what the passive server has not shared. The changes that an
// active server gets back from the passive one do not.
func TestApplyUnshared(t *testing.T) {
	for role, want := range map[server.Role]uint64{server.RolePassive: 0, server.RoleActive: 7} {
		a := newFilledStore(t)
		as(t, a, role, 1)
		_, err := a.UpdatePosition(t.Context(), func(st *replica.Position) error { st.Unshared = 7; return nil })
		check(t, err)
		text, err := json.Marshal(replica.Change{Op: replica.OpSetAuth, Name: storetest.Org, Auth: "x"})
		check(t, err)
		check(t, a.Apply(t.Context(), role, 1, []replica.Entry{head(t, a).Next(1, text)}))
		st, err := a.Position(t.Context())
		check(t, err)
		if st.Unshared != want {
			t.Errorf("%s: %+v", role, st)
		}
	}
}

// TestSnapshotStops: a snapshot ends with the first error of its caller.
func TestSnapshotStops(t *testing.T) {
	a, calls := newFilledStore(t), 0
	record := func(server.Record) error { calls++; return errStop }
	for want, head := range []func(replica.Head) error{func(replica.Head) error { return errStop },
		func(replica.Head) error { return nil }} {
		if err := a.Snapshot(t.Context(), head, record); !errors.Is(err, errStop) || calls != want {
			t.Errorf("%v after %d records, want %d", err, calls, want)
		}
	}
}

// TestNoJSONOfAChange: a time that has no JSON form ends a change.
func TestNoJSONOfAChange(t *testing.T) {
	a := newFilledStore(t)
	before := stateOf(t, a)
	at := time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)
	if err := a.Delete(t.Context(), storetest.Owner, []string{"u2"}, at, storetest.Request("x")); !claviger.Is(err,
		claviger.Internal) || stateOf(t, a) != before {
		t.Errorf("%v, or the store has changed", err)
	}
}

// TestMovedMeanwhile: a change is not committed if its file is moved meanwhile.
func TestMovedMeanwhile(t *testing.T) {
	a := newFilledStore(t)
	as(t, a, server.RoleActive, 1)
	before, path := stateOf(t, a), a.db.Path()
	a.Guard(func(context.Context, replica.Position, replica.Entry) (bool, error) {
		return true, os.Rename(path, path+".away")
	})
	failures := a.Failures()
	if err := a.SetAuth(t.Context(), storetest.Org, "late"); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "is gone") || a.Failures() != failures+1 {
		t.Errorf("%v, and %d failures", err, a.Failures()-failures)
	}
	check(t, os.Rename(path+".away", path))
	if stateOf(t, a) != before {
		t.Error("the store has changed")
	}
}
