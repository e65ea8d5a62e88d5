package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

func put(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	got, err := s.Get(ctx, "u2")
	if want := Row(2); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got, err := s.Get(ctx, "u3"); err != nil || len(got.Access) != 0 || !got.Expires.Equal(at.Add(time.Hour)) {
		t.Errorf("%+v, %v", got, err)
	}
	if found, err := s.Find(ctx, Owner, got.Label); err != nil || !reflect.DeepEqual(found, got) {
		t.Errorf("%+v, %v", found, err)
	}
	_, err = s.Find(ctx, "A", got.Label)
	wants(t, "another's label", err, claviger.KeyNotFound)
	_, err = s.Get(ctx, "none")
	wants(t, "no deposit", err, claviger.KeyNotFound)

	before := Digest(t, s)
	same := Row(9)
	same.Label = got.Label
	wants(t, "a label twice", s.Put(ctx, same, "", Until("p1")), claviger.KeyExists)
	same = Row(9)
	same.UUID = "u1" // a deleted one's
	wants(t, "a uuid twice", s.Put(ctx, same, "", Until("p2")), claviger.KeyExists)
	wants(t, "in place of none", s.Put(ctx, Row(9), "none", Until("p3")), claviger.KeyNotFound)
	wants(t, "in place of a deleted one", s.Put(ctx, Row(9), "u1", Until("p4")), claviger.KeyNotFound)
	theirs := Row(9)
	theirs.Owner = "EE"
	_, err = s.AddClient(ctx, server.Client{Fingerprint: "EE", Org: Org, PublicKey: []byte{1}, State: server.Active},
		Until("p5"))
	check(t, err)
	withClient := Digest(t, s)
	wants(t, "in place of another's", s.Put(ctx, theirs, "u2", Until("p6")), claviger.KeyNotFound)
	// What is refused is not remembered: its sender may ask again.
	theirs.Label = got.Label
	if err := s.Put(ctx, theirs, "", Until("p6")); err != nil {
		t.Errorf("another's same label: %v", err)
	}
	if before == withClient || Digest(t, s) == withClient {
		t.Error("the digest sees nothing")
	}

	// In the same moment the one is gone and the other there, of the same label.
	r := Row(10)
	r.Label = got.Label
	check(t, s.Put(ctx, r, "u2", Until("p7")))
	if found, err := s.Find(ctx, Owner, got.Label); err != nil || !reflect.DeepEqual(found, r) {
		t.Errorf("%+v, %v", found, err)
	}
	_, err = s.Get(ctx, "u2")
	wants(t, "what was replaced", err, claviger.KeyNotFound)
	wants(t, "bringing back what was replaced", s.Undelete(ctx, Owner, []string{"u2"}, Until("p8")),
		claviger.KeyNotFound)

	// A deposit that is put as a deleted one takes no label, and was never live.
	r = Row(11)
	r.Label = got.Label
	r.Sealed.Deleted = &at
	check(t, s.Put(ctx, r, "", Until("p9")))
	_, err = s.Get(ctx, r.UUID)
	wants(t, "what was put as deleted", err, claviger.KeyNotFound)
	check(t, s.Purge(ctx, Owner, []string{r.UUID}, Until("p10")))
}

func life(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	before := Digest(t, s)
	for name, err := range map[string]error{
		"a deleted one with a live one": s.Delete(ctx, Owner, []string{"u0", "u1"}, at, Until("1")),
		"one twice":                     s.Delete(ctx, Owner, []string{"u0", "u0"}, at, Until("2")),
		"another's":                     s.Delete(ctx, "A", []string{"u0"}, at, Until("3")),
		"undelete live":                 s.Undelete(ctx, Owner, []string{"u1", "u0"}, Until("4")),
		"undelete another's":            s.Undelete(ctx, "A", []string{"u1"}, Until("5")),
		"purge live":                    s.Purge(ctx, Owner, []string{"u1", "u0"}, Until("6")),
		"purge another's":               s.Purge(ctx, "A", []string{"u1"}, Until("7")),
		"purge none":                    s.Purge(ctx, Owner, []string{"none"}, Until("8")),
	} {
		wants(t, name, err, claviger.KeyNotFound)
	}
	if Digest(t, s) != before {
		t.Error("what was refused has changed the store: all or none")
	}
	check(t, s.Delete(ctx, Owner, []string{"u0", "u2"}, at, Until("9")))
	for _, uuid := range []string{"u0", "u2"} {
		_, err := s.Get(ctx, uuid)
		wants(t, "a deleted one", err, claviger.KeyNotFound)
		_, err = s.Find(ctx, Owner, Row(0).Label)
		wants(t, "a deleted one's label", err, claviger.KeyNotFound)
	}
	// A label is free while its deposit is deleted, and then in its way.
	taken := Row(20)
	taken.Label = Row(2).Label
	check(t, s.Put(ctx, taken, "", Until("10")))
	wants(t, "undelete onto a live label", s.Undelete(ctx, Owner, []string{"u0", "u2"}, Until("11")),
		claviger.KeyExists)
	_, err := s.Get(ctx, "u0")
	wants(t, "half of an undelete", err, claviger.KeyNotFound)
	check(t, s.Undelete(ctx, Owner, []string{"u0"}, Until("12")))
	if got, err := s.Get(ctx, "u0"); err != nil || !reflect.DeepEqual(got, Row(0)) {
		t.Errorf("%+v, %v", got, err)
	}
	check(t, s.Purge(ctx, Owner, []string{"u2", "u1"}, Until("13")))
	wants(t, "undelete what was purged", s.Undelete(ctx, Owner, []string{"u1"}, Until("14")), claviger.KeyNotFound)
}

// atOnce: of those who change the same thing one wins, and whoever changes the
// same two in opposite order waits, and is not refused for it.
func atOnce(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	const n = 8
	won := func(do func(i int) error, kind claviger.Kind) {
		t.Helper()
		errs := make([]error, n)
		var group sync.WaitGroup
		for i := range n {
			group.Go(func() { errs[i] = do(i) })
		}
		group.Wait()
		wins := 0
		for _, err := range errs {
			if err == nil {
				wins++
			} else {
				wants(t, "a loser", err, kind)
			}
		}
		if wins != 1 {
			t.Errorf("%d have won", wins)
		}
	}
	won(func(i int) error { return s.Put(ctx, Row(100+i), "u2", Until(fmt.Sprint("a", i))) }, claviger.KeyNotFound)
	won(func(i int) error {
		r := Row(200 + i)
		r.Label = "one"
		return s.Put(ctx, r, "", Until(fmt.Sprint("b", i)))
	}, claviger.KeyExists)
	won(func(i int) error {
		pair := []string{"u0", "u4"}
		if i%2 == 1 {
			pair = []string{"u4", "u0"}
		}
		return s.Delete(ctx, Owner, pair, at, Until(fmt.Sprint("c", i)))
	}, claviger.KeyNotFound)
	won(func(int) error { return s.Put(ctx, Row(300), "", Until("same")) }, claviger.Invalid)
}

func list(t *testing.T, s server.Store) {
	ctx := t.Context()
	check(t, s.AddOrg(ctx, server.Org{Name: Org, UUID: "o"}))
	for _, owner := range []string{Owner, "EE"} {
		_, err := s.AddClient(ctx, server.Client{Fingerprint: owner, Org: Org, PublicKey: []byte{1},
			State: server.Active}, Until("c"+owner))
		check(t, err)
	}
	sealed := Row(0).Sealed
	labels := []string{"Z", "a", "a!", "a%", "a_b", "aXb", "b", "é", "\U0001f511", "a\x01"}
	for i, label := range labels {
		for _, owner := range []string{Owner, "EE"} {
			check(t, s.Put(ctx, server.Row{UUID: owner + fmt.Sprint(i), Owner: owner, Org: Org, Label: label,
				Sealed: sealed}, "", Until(owner+label)))
		}
	}
	pages := func(a trustee.ListArgs) (got []string) {
		t.Helper()
		for range len(labels) + 2 {
			page, err := s.List(ctx, Owner, a)
			check(t, err)
			if len(page) == 0 {
				return got
			}
			if len(page) > a.Limit {
				t.Errorf("%d of at most %d", len(page), a.Limit)
			}
			for _, r := range page {
				if r.Owner != Owner || r.Sealed.Content != nil {
					t.Errorf("%+v", r)
				}
				got = append(got, r.Label)
				a.After = r.Label + "\x00" + r.UUID
			}
		}
		t.Errorf("%+v has no end", a)
		return got
	}
	for _, limit := range []int{1, 3, 100} {
		for prefix, want := range map[string][]string{
			"":   {"Z", "a", "a\x01", "a!", "a%", "aXb", "a_b", "b", "é", "\U0001f511"},
			"a":  {"a", "a\x01", "a!", "a%", "aXb", "a_b"},
			"a_": {"a_b"},
			"a%": {"a%"},
			"é":  {"é"},
			"A":  nil,
		} {
			if got := pages(trustee.ListArgs{Prefix: prefix, Limit: limit}); !reflect.DeepEqual(got, want) {
				t.Errorf("prefix %q, pages of %d: %q; want %q", prefix, limit, got, want)
			}
		}
	}
	check(t, s.Delete(ctx, Owner, []string{"FF1", "FF6"}, at, Until("d")))
	// A label may be deleted several times.
	check(t, s.Put(ctx, server.Row{UUID: "again", Owner: Owner, Org: Org, Label: "a", Sealed: sealed}, "",
		Until("again")))
	check(t, s.Delete(ctx, Owner, []string{"again"}, at, Until("d2")))
	for _, limit := range []int{1, 100} {
		if got := pages(trustee.ListArgs{Deleted: true, Limit: limit}); !reflect.DeepEqual(got,
			[]string{"a", "a", "b"}) {
			t.Errorf("deleted: %q", got)
		}
		if got := pages(trustee.ListArgs{Prefix: "a", Limit: limit}); len(got) != 5 {
			t.Errorf("live: %q", got)
		}
	}
}

// replay: a request is done once, whatever it is, and not at all where it has
// been remembered.
func replay(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	check(t, s.Delete(ctx, Owner, []string{"u0"}, at, Until("r")))
	before := Digest(t, s)
	_, err := s.AddClient(ctx, server.Client{Fingerprint: "EE", Org: Org, PublicKey: []byte{1}, State: server.Active},
		Until("r"))
	for name, err := range map[string]error{
		"register": err,
		"put":      s.Put(ctx, Row(30), "u2", Until("r")),
		"delete":   s.Delete(ctx, Owner, []string{"u4"}, at, Until("r")),
		"undelete": s.Undelete(ctx, Owner, []string{"u0"}, Until("r")),
		"purge":    s.Purge(ctx, Owner, []string{"u1"}, Until("r")),
	} {
		if !errors.Is(err, trustee.ErrReplay) || !claviger.Is(err, claviger.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if Digest(t, s) != before {
		t.Error("a replay has changed the store")
	}
}

func forget(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	check(t, s.Forget(ctx, time.UnixMilli(1700000600000))) // not before that
	if err := s.Put(ctx, Row(40), "", Until("d1")); !errors.Is(err, trustee.ErrReplay) {
		t.Error(err)
	}
	check(t, s.Forget(ctx, time.UnixMilli(1700000600001)))
	check(t, s.Put(ctx, Row(40), "", server.Once{Digest: "d1", Until: at.Add(24 * time.Hour)}))
	_, err := s.Get(ctx, "u3")
	check(t, err)
	check(t, s.Forget(ctx, at.Add(time.Hour+time.Millisecond)))
	_, err = s.Get(ctx, "u3")
	wants(t, "an expired one", err, claviger.KeyNotFound)
}

// gone: nothing is begun for whoever has gone.
func gone(t *testing.T, s server.Store) {
	Fill(t, s)
	before := Digest(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Put(ctx, Row(50), "", Until("g")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := s.Get(ctx, "u0"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if Digest(t, s) != before {
		t.Error("the store was changed")
	}
}
