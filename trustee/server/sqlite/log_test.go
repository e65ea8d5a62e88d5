package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/storetest"
)

func as(t *testing.T, s *Store, role server.Role, epoch uint64) replica.Position {
	t.Helper()
	st, err := s.UpdatePosition(t.Context(),
		func(st *replica.Position) error { st.Role, st.Epoch = role, epoch; return nil })
	check(t, err)
	return st
}

func head(t *testing.T, s *Store) replica.Head {
	t.Helper()
	st, err := s.Position(t.Context())
	check(t, err)
	return st.Head
}

// loaded makes a passive store that is equal to a store.
func loaded(t *testing.T, from *Store) *Store {
	t.Helper()
	to := newStore(t)
	as(t, to, server.RolePassive, 0)
	var h replica.Head
	var list []server.Record
	check(t, from.Snapshot(t.Context(), func(at replica.Head) error { h = at; return nil },
		func(r server.Record) error { list = append(list, r); return nil }))
	check(t, to.Load(t.Context(), 1, h, storetest.NextOf(list)))
	return to
}

func equal(t *testing.T, a, b *Store) {
	t.Helper()
	if ha, hb := head(t, a), head(t, b); ha != hb {
		t.Errorf("heads %+v, %+v", ha, hb)
	}
	if storetest.Digest(t, a) != storetest.Digest(t, b) {
		t.Error("the stores are not equal")
	}
}

// TestLog: the changes in the log of one store make a second store equal, whatever the changes are.
func TestLog(t *testing.T) {
	ctx, a := t.Context(), newFilledStore(t)
	if st := as(t, a, server.RoleActive, 1); st.Head.Seq != 1 || len(st.Head.Digest) != 64 {
		t.Fatalf("%+v", st)
	}
	b := loaded(t, a)
	equal(t, a, b)
	start := head(t, a)
	at := time.UnixMilli(1700000000999)
	_, err := a.AddClient(ctx, server.Client{Fingerprint: "EE", Org: "EMPTY", PublicKey: []byte{2},
		State: server.Pending, Created: at}, storetest.Request("n1"))
	check(t, err)
	for _, err := range []error{
		a.AddOrg(ctx, server.Org{Name: "NEW", UUID: "n", Contacts: []string{"<&>"}, Created: at}),
		a.SetAuth(ctx, "NEW", "\u2028"),
		a.SetState(ctx, "EE", server.Active),
		a.Put(ctx, storetest.Row(10), "u0", storetest.Request("n2")),
		a.Delete(ctx, "FF", []string{"u2", "u10"}, at, storetest.Request("n3")),
		a.Undelete(ctx, "FF", []string{"u10"}, storetest.Request("n4")),
		a.Purge(ctx, "FF", []string{"u1", "u2"}, storetest.Request("n5")),
		a.Forget(ctx, time.UnixMilli(1700003600124)),
	} {
		check(t, err)
	}
	list, err := a.Entries(ctx, start, 100, 1<<20)
	if err != nil || len(list) != 9 || list[8].Head != head(t, a) {
		t.Fatalf("%d, %v", len(list), err)
	}
	if one, err := a.Entries(ctx, start, 100, 1); err != nil || len(one) != 1 || one[0].Head != list[0].Head {
		t.Errorf("%d, %v", len(one), err)
	}
	if none, err := a.Entries(ctx, head(t, a), 100, 1); err != nil || len(none) != 0 {
		t.Errorf("%d, %v", len(none), err)
	}
	for name, after := range map[string]replica.Head{"another digest": {Seq: start.Seq, Epoch: 1,
		Digest: strings.Repeat("0", 64)}, "ahead": {Seq: 99}, "from nothing": {}} {
		if _, err := a.Entries(ctx, after, 100, 1<<20); !errors.Is(err, replica.ErrChain) {
			t.Errorf("%s: %v", name, err)
		}
	}
	forged := list[1]
	forged.Change = []byte(`{"op":"add-org","org":{"Name":"EVIL"}}`)
	for name, l := range map[string][]replica.Entry{"a gap": list[1:], "a forged one": {list[0], forged},
		"two entries in the wrong order": {list[1], list[0]}} {
		if err := b.Apply(ctx, server.RolePassive, 1, l); !errors.Is(err, replica.ErrChain) || head(t, b) != start {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.Apply(ctx, server.RoleActive, 1, list); !claviger.Is(err, claviger.Denied) {
		t.Errorf("as another role: %v", err)
	}
	for range 2 { // the entries may be sent twice
		check(t, b.Apply(ctx, server.RolePassive, 3, list))
	}
	equal(t, a, b)
	if err := b.Apply(ctx, server.RolePassive, 2, nil); !claviger.Is(err, claviger.Denied) {
		t.Errorf("an epoch that is over: %v", err)
	}
	if err := b.Load(ctx, 2, start, storetest.NextOf(nil)); !claviger.Is(err, claviger.Denied) {
		t.Errorf("an epoch that is over: %v", err)
	}
	if err := b.SetAuth(ctx, "ORG", "z"); !errors.Is(err, trustee.ErrPassive) ||
		!claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a change of the passive: %v", err)
	}
	equal(t, a, b)
	// The log of a store that was restored from a backup follows no other log.
	check(t, a.Import(ctx, storetest.NextOf(storetest.Records(t, a))))
	if h := head(t, a); h.Seq != list[8].Seq+1 || storetest.Digest(t, a) != storetest.Digest(t, b) {
		t.Errorf("%+v", h)
	}
	if _, err := a.Entries(ctx, list[8].Head, 10, 1<<20); !errors.Is(err, replica.ErrChain) {
		t.Error(err)
	}
}

// TestGuard: a change is made only if the guard allows it. If the caller cancels after the peer has the change,
// the change is still made.
func TestGuard(t *testing.T) {
	a := newFilledStore(t)
	as(t, a, server.RoleActive, 1)
	before, was := head(t, a), storetest.Digest(t, a)
	no := claviger.Errorf("x", claviger.Unavailable, "", "no")
	a.Guard(func(_ context.Context, st replica.Position, e replica.Entry) (bool, error) {
		if st.Head != before || e.Seq != before.Seq+1 {
			t.Errorf("%+v, %+v", st, e)
		}
		return false, no
	})
	if err := a.SetAuth(t.Context(), "ORG", "new"); !errors.Is(err, no) || head(t, a) != before ||
		storetest.Digest(t, a) != was {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	a.Guard(func(ctx context.Context, _ replica.Position, _ replica.Entry) (bool, error) {
		cancel()
		return true, ctx.Err()
	})
	if err := a.SetAuth(ctx, "ORG", "new"); err != nil || head(t, a).Seq != before.Seq+1 {
		t.Error(err)
	}
	if st, _ := a.Position(t.Context()); st.Unshared != 0 {
		t.Errorf("%+v", st)
	}
}

// TestPrune: the log has a limited length, and keeps the entries that the peer lacks.
func TestPrune(t *testing.T) {
	ctx, a := t.Context(), newFilledStore(t)
	count := func() (n int) {
		check(t, a.db.Reader.QueryRow("SELECT count(*) FROM change").Scan(&n))
		return n
	}
	check(t, a.SetAuth(ctx, "ORG", "single"))
	if count() != 0 {
		t.Error("a single store has a log")
	}
	as(t, a, server.RoleActive, 1)
	start := head(t, a)
	for i := range keepShared + 50 {
		check(t, a.SetAuth(ctx, "ORG", fmt.Sprint(i)))
	}
	if st, _ := a.Position(ctx); count() != keepShared+50 || st.Unshared != start.Seq+1 {
		t.Errorf("%d entries, %+v", count(), st)
	}
	_, err := a.UpdatePosition(ctx, func(st *replica.Position) error { st.Unshared = 0; return nil })
	check(t, err)
	if count() != keepShared {
		t.Errorf("%d entries", count())
	}
	if _, err := a.Entries(ctx, start, 1000, 1<<20); !errors.Is(err, replica.ErrChain) {
		t.Error(err)
	}
}

// TestPruneByGuard: the log is short while the peer has each change, and long while the peer does not answer.
func TestPruneByGuard(t *testing.T) {
	ctx, a := t.Context(), newFilledStore(t)
	as(t, a, server.RoleActive, 1)
	shared := true
	a.Guard(func(context.Context, replica.Position, replica.Entry) (bool, error) { return shared, nil })
	count := func() (n int) {
		check(t, a.db.Reader.QueryRow("SELECT count(*) FROM change").Scan(&n))
		return n
	}
	for i := range keepShared + 5 {
		check(t, a.SetAuth(ctx, "ORG", fmt.Sprint(i)))
	}
	if count() != keepShared {
		t.Errorf("%d entries that the peer has", count())
	}
	shared = false
	for i := range 5 {
		check(t, a.SetAuth(ctx, "ORG", fmt.Sprint(i)))
	}
	_, err := a.UpdatePosition(ctx, func(st *replica.Position) error { st.Alone = true; return nil })
	check(t, err)
	if count() != keepShared+5 {
		t.Errorf("%d entries while the peer does not answer", count())
	}
	_, err = a.db.Writer.ExecContext(ctx, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i "+
		"< ?) INSERT INTO change (seq, epoch, digest, payload) SELECT -i, 1, '', x'' FROM n", keepAlone)
	check(t, err)
	check(t, a.SetAuth(ctx, "ORG", "last"))
	var first int64
	check(t, a.db.Reader.QueryRow("SELECT min(seq) FROM change").Scan(&first))
	if want := int64(head(t, a).Seq) - keepAlone + 1; first != want { //nolint:gosec // a small number
		t.Errorf("the first of many entries is %d, want %d", first, want)
	}
}

// TestSave: the copy holds all records, and only its owner can read it.
func TestSave(t *testing.T) {
	a := newFilledStore(t)
	name, err := a.Save(t.Context(), "dropped")
	check(t, err)
	if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	b, err := Open(t.Context(), name, false)
	check(t, err)
	defer b.Close()
	equal(t, a, b)
}
