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

// put: a deposit is read back as it was put, by its uuid and by its owner and label.
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
}

// putRefuses: a refused deposit changes nothing, and its request is not recorded, so the sender may repeat it.
func putRefuses(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	label := Row(2).Label
	before := Digest(t, s)
	same := Row(9)
	same.Label = label
	wants(t, "a used label", s.Put(ctx, same, "", Request("p1")), claviger.KeyExists)
	same = Row(9)
	same.UUID = "u1" // of a deleted deposit
	wants(t, "a used uuid", s.Put(ctx, same, "", Request("p2")), claviger.KeyExists)
	wants(t, "in place of none", s.Put(ctx, Row(9), "none", Request("p3")), claviger.KeyNotFound)
	wants(t, "in place of a deleted deposit", s.Put(ctx, Row(9), "u1", Request("p4")), claviger.KeyNotFound)
	foreign := Row(9)
	foreign.Owner = "EE"
	_, err := s.AddClient(ctx, server.Client{Fingerprint: "EE", Org: Org, PublicKey: []byte{1},
		State: server.Active}, Request("p5"))
	check(t, err)
	withClient := Digest(t, s)
	wants(t, "in place of another's deposit", s.Put(ctx, foreign, "u2", Request("p6")), claviger.KeyNotFound)
	foreign.Label = label
	if err := s.Put(ctx, foreign, "", Request("p6")); err != nil {
		t.Errorf("the same label of another owner: %v", err)
	}
	if before == withClient || Digest(t, s) == withClient {
		t.Error("the digest has not changed")
	}
}

// replace: a deposit that replaces another may have its label, and the other cannot be undeleted.
func replace(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	r := Row(10)
	r.Label = Row(2).Label
	check(t, s.Put(ctx, r, "u2", Request("p7")))
	if found, err := s.Find(ctx, Owner, r.Label); err != nil || !reflect.DeepEqual(found, r) {
		t.Errorf("%+v, %v", found, err)
	}
	_, err := s.Get(ctx, "u2")
	wants(t, "a replaced deposit", err, claviger.KeyNotFound)
	wants(t, "undelete of a replaced deposit", s.Undelete(ctx, Owner, []string{"u2"}, Request("p8")),
		claviger.KeyNotFound)

	// A deposit that is added as a deleted deposit takes no label, and was never live.
	label := r.Label
	r = Row(11)
	r.Label = label
	r.Sealed.Deleted = &at
	check(t, s.Put(ctx, r, "", Request("p9")))
	_, err = s.Get(ctx, r.UUID)
	wants(t, "a deposit that was added as deleted", err, claviger.KeyNotFound)
	check(t, s.Purge(ctx, Owner, []string{r.UUID}, Request("p10")))
}

// lifecycle: a deposit is deleted, undeleted and purged, each only from the right state, by its owner, and all or none
// of several.
func lifecycle(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	before := Digest(t, s)
	for name, err := range map[string]error{
		"a deleted and a live deposit": s.Delete(ctx, Owner, []string{"u0", "u1"}, at, Request("1")),
		"one deposit named twice":      s.Delete(ctx, Owner, []string{"u0", "u0"}, at, Request("2")),
		"another's":                    s.Delete(ctx, "A", []string{"u0"}, at, Request("3")),
		"undelete live":                s.Undelete(ctx, Owner, []string{"u1", "u0"}, Request("4")),
		"undelete another's":           s.Undelete(ctx, "A", []string{"u1"}, Request("5")),
		"purge live":                   s.Purge(ctx, Owner, []string{"u1", "u0"}, Request("6")),
		"purge another's":              s.Purge(ctx, "A", []string{"u1"}, Request("7")),
		"purge none":                   s.Purge(ctx, Owner, []string{"none"}, Request("8")),
	} {
		wants(t, name, err, claviger.KeyNotFound)
	}
	if Digest(t, s) != before {
		t.Error("a refused change has changed the store")
	}
	check(t, s.Delete(ctx, Owner, []string{"u0", "u2"}, at, Request("9")))
	for _, uuid := range []string{"u0", "u2"} {
		_, err := s.Get(ctx, uuid)
		wants(t, "a deleted deposit", err, claviger.KeyNotFound)
		_, err = s.Find(ctx, Owner, Row(0).Label)
		wants(t, "the label of a deleted deposit", err, claviger.KeyNotFound)
	}
	// Another deposit may take the label of a deleted deposit, which then cannot be undeleted.
	newer := Row(20)
	newer.Label = Row(2).Label
	check(t, s.Put(ctx, newer, "", Request("10")))
	wants(t, "undelete onto a live label", s.Undelete(ctx, Owner, []string{"u0", "u2"}, Request("11")),
		claviger.KeyExists)
	_, err := s.Get(ctx, "u0")
	wants(t, "half of an undelete", err, claviger.KeyNotFound)
	check(t, s.Undelete(ctx, Owner, []string{"u0"}, Request("12")))
	if got, err := s.Get(ctx, "u0"); err != nil || !reflect.DeepEqual(got, Row(0)) {
		t.Errorf("%+v, %v", got, err)
	}
	check(t, s.Purge(ctx, Owner, []string{"u2", "u1"}, Request("13")))
	wants(t, "undelete of a purged deposit", s.Undelete(ctx, Owner, []string{"u1"}, Request("14")),
		claviger.KeyNotFound)
}

// concurrentChanges: if several callers change the same deposits at the same time, one succeeds, even if they name the
// deposits in opposite order. The others are refused only because the deposits have changed.
func concurrentChanges(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	const n = 8
	wantOneSuccess := func(do func(i int) error, kind claviger.Kind) {
		t.Helper()
		errs := make([]error, n)
		var group sync.WaitGroup
		for i := range n {
			group.Go(func() { errs[i] = do(i) })
		}
		group.Wait()
		successes := 0
		for _, err := range errs {
			if err == nil {
				successes++
			} else {
				wants(t, "another caller", err, kind)
			}
		}
		if successes != 1 {
			t.Errorf("%d callers have succeeded, want 1", successes)
		}
	}
	wantOneSuccess(func(i int) error {
		return s.Put(ctx, Row(100+i), "u2", Request(fmt.Sprint("a", i)))
	}, claviger.KeyNotFound)
	wantOneSuccess(func(i int) error {
		r := Row(200 + i)
		r.Label = "one"
		return s.Put(ctx, r, "", Request(fmt.Sprint("b", i)))
	}, claviger.KeyExists)
	wantOneSuccess(func(i int) error {
		pair := []string{"u0", "u4"}
		if i%2 == 1 {
			pair = []string{"u4", "u0"}
		}
		return s.Delete(ctx, Owner, pair, at, Request(fmt.Sprint("c", i)))
	}, claviger.KeyNotFound)
	wantOneSuccess(func(int) error { return s.Put(ctx, Row(300), "", Request("same")) }, claviger.Invalid)
}

// labels are the labels of the deposits that fillLabels adds.
var labels = []string{"Z", "a", "a!", "a%", "a_b", "aXb", "b", "é", "\U0001f511", "a\x01"}

// fillLabels adds a deposit for each label, of Owner and of another client. The uuid of a deposit is the owner and
// the index of the label.
func fillLabels(t *testing.T, s server.Store) {
	t.Helper()
	ctx := t.Context()
	check(t, s.AddOrg(ctx, server.Org{Name: Org, UUID: "o"}))
	for _, owner := range []string{Owner, "EE"} {
		_, err := s.AddClient(ctx, server.Client{Fingerprint: owner, Org: Org, PublicKey: []byte{1},
			State: server.Active}, Request("c"+owner))
		check(t, err)
		for i, label := range labels {
			check(t, s.Put(ctx, server.Row{UUID: owner + fmt.Sprint(i), Owner: owner, Org: Org, Label: label,
				Sealed: Row(0).Sealed}, "", Request(owner+label)))
		}
	}
}

// listAll returns the labels of all pages of a list of Owner.
func listAll(t *testing.T, s server.Store, a trustee.ListArgs) (got []string) {
	t.Helper()
	for range len(labels) + 2 {
		page, err := s.List(t.Context(), Owner, a)
		check(t, err)
		if len(page) == 0 {
			return got
		}
		if len(page) > a.Limit {
			t.Errorf("%d deposits on a page of at most %d", len(page), a.Limit)
		}
		for _, r := range page {
			if r.Owner != Owner || r.Sealed.Content != nil {
				t.Errorf("%+v", r)
			}
			got = append(got, r.Label)
			a.After = r.Label + "\x00" + r.UUID
		}
	}
	t.Errorf("the list with %+v has no end", a)
	return got
}

// list: pages are in the order of the labels' bytes, and a prefix is compared literally.
func list(t *testing.T, s server.Store) {
	fillLabels(t, s)
	for _, limit := range []int{1, 3, 100} {
		for prefix, want := range map[string][]string{
			"":   {"Z", "a", "a\x01", "a!", "a%", "aXb", "a_b", "b", "é", "\U0001f511"},
			"a":  {"a", "a\x01", "a!", "a%", "aXb", "a_b"},
			"a_": {"a_b"},
			"a%": {"a%"},
			"é":  {"é"},
			"A":  nil,
		} {
			if got := listAll(t, s, trustee.ListArgs{Prefix: prefix, Limit: limit}); !reflect.DeepEqual(got, want) {
				t.Errorf("prefix %q, pages of %d: %q; want %q", prefix, limit, got, want)
			}
		}
	}
}

// listDeleted: deleted deposits are in a list of their own. Several may have the same label.
func listDeleted(t *testing.T, s server.Store) {
	ctx := t.Context()
	fillLabels(t, s)
	check(t, s.Delete(ctx, Owner, []string{"FF1", "FF6"}, at, Request("d")))
	check(t, s.Put(ctx, server.Row{UUID: "again", Owner: Owner, Org: Org, Label: "a", Sealed: Row(0).Sealed}, "",
		Request("again")))
	check(t, s.Delete(ctx, Owner, []string{"again"}, at, Request("d2")))
	for _, limit := range []int{1, 100} {
		if got := listAll(t, s, trustee.ListArgs{Deleted: true, Limit: limit}); !reflect.DeepEqual(got,
			[]string{"a", "a", "b"}) {
			t.Errorf("deleted: %q", got)
		}
		if got := listAll(t, s, trustee.ListArgs{Prefix: "a", Limit: limit}); len(got) != 5 {
			t.Errorf("live: %q", got)
		}
	}
}

// replay: a request whose digest is recorded is refused, whatever its verb, and changes nothing.
func replay(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	check(t, s.Delete(ctx, Owner, []string{"u0"}, at, Request("r")))
	before := Digest(t, s)
	_, err := s.AddClient(ctx, server.Client{Fingerprint: "EE", Org: Org, PublicKey: []byte{1}, State: server.Active},
		Request("r"))
	for name, err := range map[string]error{
		"register": err,
		"put":      s.Put(ctx, Row(30), "u2", Request("r")),
		"delete":   s.Delete(ctx, Owner, []string{"u4"}, at, Request("r")),
		"undelete": s.Undelete(ctx, Owner, []string{"u0"}, Request("r")),
		"purge":    s.Purge(ctx, Owner, []string{"u1"}, Request("r")),
	} {
		if !errors.Is(err, trustee.ErrReplay) || !claviger.Is(err, claviger.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if Digest(t, s) != before {
		t.Error("a replay has changed the store")
	}
}

// forget: Forget removes the records of requests and the deposits that have expired, and nothing earlier.
func forget(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	check(t, s.Forget(ctx, time.UnixMilli(1700000600000))) // the records of requests are kept until this time
	if err := s.Put(ctx, Row(40), "", Request("d1")); !errors.Is(err, trustee.ErrReplay) {
		t.Error(err)
	}
	check(t, s.Forget(ctx, time.UnixMilli(1700000600001)))
	check(t, s.Put(ctx, Row(40), "", server.Once{Digest: "d1", Until: at.Add(24 * time.Hour)}))
	_, err := s.Get(ctx, "u3")
	check(t, err)
	check(t, s.Forget(ctx, at.Add(time.Hour+time.Millisecond)))
	_, err = s.Get(ctx, "u3")
	wants(t, "an expired deposit", err, claviger.KeyNotFound)
}

// cancelled: no call begins after its context has ended.
func cancelled(t *testing.T, s server.Store) {
	Fill(t, s)
	before := Digest(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Put(ctx, Row(50), "", Request("g")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := s.Get(ctx, "u0"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if Digest(t, s) != before {
		t.Error("the store was changed")
	}
}
