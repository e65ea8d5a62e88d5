package storetest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
)

func shelved(t *testing.T, s metastore.Store) []metastore.Shelved {
	t.Helper()
	list, err := s.Shelved(t.Context())
	must(t, err)
	return list
}

func testShelf(t *testing.T, b Backend, s metastore.Store, where string) {
	ctx := t.Context()
	wantKind(t, s.Shelve(ctx, "k"), claviger.KeyNotFound)
	wantKind(t, s.Unshelve(ctx, "k", "01"), claviger.KeyNotFound)
	_, err := s.Discard(ctx, "k", "01")
	wantKind(t, err, claviger.KeyNotFound)

	first := key("k", "03", "01", "02")
	other := key("other", "0a")
	must(t, s.Insert(ctx, first))
	must(t, s.Insert(ctx, other))
	before := time.Now().Add(-10 * time.Second)
	must(t, s.Shelve(ctx, "k"))
	got, err := s.Get(ctx, "k", "other")
	must(t, err)
	if got[0] != nil {
		t.Errorf("shelved key is seen: %+v", got[0])
	}
	wantKey(t, got[1], other)
	if names, err := s.Names(ctx); err != nil || !slices.Equal(names, []string{"other"}) {
		t.Errorf("Names %q, %v", names, err)
	}
	_, _, err = s.ByVersion(ctx, "k@01")
	wantKind(t, err, claviger.VersionNotFound)
	if p, err := s.Pending(ctx); err != nil || len(p) != 0 {
		t.Errorf("Pending after Shelve: %+v, %v", p, err)
	}
	wantKind(t, s.Shelve(ctx, "k"), claviger.KeyNotFound)
	_, err = s.Remove(ctx, "k")
	wantKind(t, err, claviger.KeyNotFound)
	wantKind(t, s.Append(ctx, "k", version("05", 1)), claviger.KeyNotFound)

	// The name is free; a key that comes back must not push another out.
	second := key("k", "04")
	must(t, s.Insert(ctx, second))
	wantKind(t, s.Unshelve(ctx, "k", "01"), claviger.KeyExists)
	must(t, s.Shelve(ctx, "k"))
	must(t, s.Close())
	s = b.open(t, where)
	list := shelved(t, s)
	if len(list) != 2 {
		t.Fatalf("shelved keys: %+v", list)
	}
	wantKey(t, &list[0].Key, first)
	wantKey(t, &list[1].Key, second)
	for _, k := range list {
		if k.Since.Before(before) || k.Since.After(time.Now().Add(10*time.Second)) ||
			!k.Since.Equal(k.Since.Truncate(time.Millisecond)) {
			t.Errorf("shelved at %v", k.Since)
		}
	}
	for names, want := range map[string]int{"k": 2, "other": 0, "k,other": 2, "\xff": 0, "a\x00": 0} {
		some, err := s.Shelved(ctx, strings.Split(names, ",")...)
		if err != nil || len(some) != want {
			t.Errorf("shelved keys of the names %q: %+v, %v; want %d", names, some, err, want)
		}
	}
	// Of several keys of a name it is the one that has the version, older or younger.
	for _, none := range []string{"", "05", "0a", "k@01", "\xff", "a\x00"} {
		wantKind(t, s.Unshelve(ctx, "k", none), claviger.KeyNotFound)
	}
	wantKind(t, s.Unshelve(ctx, "other", "01"), claviger.KeyNotFound)
	must(t, s.Unshelve(ctx, "k", "01"))
	got, err = s.Get(ctx, "k")
	must(t, err)
	wantKey(t, got[0], first)
	must(t, s.Shelve(ctx, "k")) // it is now the younger one
	must(t, s.Unshelve(ctx, "k", "04"))
	got, err = s.Get(ctx, "k")
	must(t, err)
	wantKey(t, got[0], second)
	must(t, s.Append(ctx, "k", version("05", 1)))
	wantKind(t, s.Unshelve(ctx, "k", "02"), claviger.KeyExists)

	// What is discarded is what was named, by an intent; without a name nothing is.
	_, err = s.Discard(ctx, "k")
	wantKind(t, err, claviger.KeyNotFound)
	_, err = s.Discard(ctx, "k", "04", "05", "k@01", "\xff")
	wantKind(t, err, claviger.KeyNotFound)
	in, err := s.Discard(ctx, "k", "01", "02", "05")
	must(t, err)
	if in.Key != "k" || in.Op != "delete" || !slices.Equal(in.Refs, refs("03", "01", "02")) {
		t.Errorf("Discard returned %+v", in)
	}
	if p, err := s.Pending(ctx); err != nil || len(p) != 1 || p[0].Op != "delete" ||
		!slices.Equal(p[0].Refs, in.Refs) {
		t.Errorf("Pending after Discard: %+v, %v", p, err)
	}
	if list := shelved(t, s); len(list) != 0 {
		t.Errorf("shelved keys after Discard: %+v", list)
	}
	if _, v, err := s.ByVersion(ctx, "k@05"); err != nil || v.ID != "05" {
		t.Errorf("version of the key that is there: %+v, %v", v, err)
	}

	// No step under way is forgotten.
	wantKind(t, s.Shelve(ctx, "k"), claviger.Unavailable)
	must(t, s.Drop(ctx, "k"))
	must(t, s.Shelve(ctx, "k"))
	_, err = s.Begin(ctx, metastore.Intent{Key: "k", Op: "create", Refs: refs("06")})
	must(t, err)
	wantKind(t, s.Unshelve(ctx, "k", "04"), claviger.Unavailable)
	_, err = s.Discard(ctx, "k", "04")
	wantKind(t, err, claviger.Unavailable)
	if list := shelved(t, s); len(list) != 1 || len(list[0].List) != 2 {
		t.Errorf("shelved keys after refusals: %+v", list)
	}
	must(t, s.Drop(ctx, "k"))
	// Several keys of a name go together, and into a deletion that is there already. One
	// that is not named stays.
	must(t, s.Insert(ctx, key("k", "09")))
	must(t, s.Shelve(ctx, "k"))
	must(t, s.Insert(ctx, key("k", "07")))
	must(t, s.Shelve(ctx, "k"))
	_, err = s.Begin(ctx, metastore.Intent{Key: "k", Op: "delete", Refs: refs("08")})
	must(t, err)
	in, err = s.Discard(ctx, "k", "07", "05")
	must(t, err)
	if !slices.Equal(in.Refs, refs("08", "04", "05", "07")) {
		t.Errorf("Discard of two keys: refs %q", in.Refs)
	}
	if list := shelved(t, s); len(list) != 1 || list[0].List[0].ID != "09" {
		t.Errorf("shelved keys after a Discard of others: %+v", list)
	}
}

func testLastUses(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	_, since, err := s.LastUses(ctx)
	must(t, err)
	if d := time.Since(since); d < -time.Minute || d > time.Hour {
		t.Errorf("last uses are kept since %v", since)
	}
	must(t, s.Touch(ctx, []metastore.LastUse{{Version: "k@01", Last: at(5)}, {Version: "k@02", Last: at(9)},
		{Version: "k@03", Last: at(7)}}))
	must(t, s.Touch(ctx, []metastore.LastUse{{Version: "k@02", Last: at(3)}, {Version: "k@01", Last: at(8)}}))
	want := func(versions []string, times ...time.Time) {
		t.Helper()
		last, again, err := s.LastUses(ctx, versions...)
		must(t, err)
		if !slices.EqualFunc(last, times, time.Time.Equal) || !again.Equal(since) {
			t.Errorf("last uses of %q: %v since %v, want %v since %v", versions, last, again, times, since)
		}
	}
	want([]string{"k@02", "none", "k@01", "k@02"}, at(9), time.Time{}, at(8), at(9))
	// What goes for ever takes its times along, by either way.
	must(t, s.Insert(ctx, key("k", "01")))
	must(t, s.Shelve(ctx, "k"))
	want([]string{"k@01"}, at(8))
	_, err = s.Discard(ctx, "k", "01")
	must(t, err)
	must(t, s.Drop(ctx, "k"))
	must(t, s.Insert(ctx, key("k", "02")))
	_, err = s.Remove(ctx, "k")
	must(t, err)
	want([]string{"k@01", "k@02", "k@03"}, time.Time{}, time.Time{}, at(7))
}

// testNeverUsed: that a version was never used is known until the first Touch, and outlasts
// the version; nothing is certain of what no Begin has numbered.
func testNeverUsed(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	want := func(when string, never ...string) {
		t.Helper()
		for _, v := range []string{"k@0", "k@1", "k@2", "k@7", "old@0", "k@01", "none@0", "k@0\x00"} {
			if got, err := s.NeverUsed(ctx, v); err != nil || got != slices.Contains(never, v) {
				t.Errorf("%s: %q never used: %v (%v)", when, v, got, err)
			}
		}
	}
	want("empty")
	in, err := s.Begin(ctx, metastore.Intent{Key: "k", Op: "create", Refs: numbered(2)})
	must(t, err)
	must(t, s.Insert(ctx, metastore.Key{Metadata: key("k", "01").Metadata, List: listOf(in)}))
	must(t, s.Insert(ctx, key("old", "0"))) // as an adoption makes it
	want("made", "k@0", "k@1")
	must(t, s.Touch(ctx, []metastore.LastUse{{Version: "k@1", Last: at(5)}, {Version: "old@0", Last: at(5)}}))
	want("used", "k@0")
	must(t, s.Shelve(ctx, "k"))
	want("deleted", "k@0")
	_, err = s.Discard(ctx, "k", "0")
	must(t, err)
	must(t, s.Drop(ctx, "k"))
	want("purged", "k@0")
	in, err = s.Begin(ctx, metastore.Intent{Key: "k", Op: "create", Refs: numbered(1)})
	must(t, err)
	again, err := s.Begin(ctx, metastore.Intent{Key: "k", Op: "create", Refs: numbered(1)})
	must(t, err)
	if !slices.Equal(in.Refs, again.Refs) {
		t.Errorf("%v, and %v", in.Refs, again.Refs)
	}
	must(t, s.Insert(ctx, metastore.Key{Metadata: key("k", "01").Metadata, List: listOf(in)}))
	want("made anew", "k@0", "k@2")
	_, err = s.Remove(ctx, "k")
	must(t, err)
	want("removed", "k@0", "k@2")
	must(t, s.ForgetUnused(ctx))
	want("forgotten")
}

// testClocks: the clocks of this process and of its store, on one machine here, agree.
func testClocks(t *testing.T, _ Backend, s metastore.Store, _ string) { testClockOf(t, s) }

func testClockOf(t *testing.T, s metastore.Clock) {
	t.Helper()
	for range 2 { // the clock goes on
		begun := time.Now()
		c, err := s.Clocks(t.Context())
		must(t, err)
		if ended := time.Now(); c.Here.Before(begun) || c.Here.After(ended) {
			t.Errorf("our clock shows %v, between %v and %v", c.Here, begun, ended)
		}
		if c.There.Sub(c.Here).Abs() > 10*time.Second || c.Ahead.Abs() > time.Second || c.Apart() != nil ||
			c.Whose == "" {
			t.Errorf("%+v: %v", c, c.Apart())
		}
		time.Sleep(1200 * time.Millisecond)
	}
}

// shelfCalls is what Shelf and LastUses add to calls.
func shelfCalls(s metastore.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Shelve":   func(ctx context.Context) error { return s.Shelve(ctx, "k") },
		"Shelved":  func(ctx context.Context) error { _, err := s.Shelved(ctx); return err },
		"Unshelve": func(ctx context.Context) error { return s.Unshelve(ctx, "k", "01") },
		"Discard":  func(ctx context.Context) error { _, err := s.Discard(ctx, "k", "01"); return err },
		"Touch": func(ctx context.Context) error {
			return s.Touch(ctx,
				[]metastore.LastUse{{Version: "k@01"}})
		},
		"LastUses":     func(ctx context.Context) error { _, _, err := s.LastUses(ctx, "k@01"); return err },
		"Clocks":       func(ctx context.Context) error { _, err := s.Clocks(ctx); return err },
		"NeverUsed":    func(ctx context.Context) error { _, err := s.NeverUsed(ctx, "k@0"); return err },
		"ForgetUnused": s.ForgetUnused,
	}
}
