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

func deletedKeys(t *testing.T, s metastore.Store) []metastore.DeletedKey {
	t.Helper()
	list, err := s.DeletedKeys(t.Context())
	must(t, err)
	return list
}

// insertDeleted inserts keys and deletes each of them, in order.
func insertDeleted(t *testing.T, s metastore.Store, keys ...metastore.Key) {
	t.Helper()
	for _, k := range keys {
		must(t, s.Insert(t.Context(), k))
		must(t, s.SoftDelete(t.Context(), k.Name))
	}
}

// wantLive demands that a live key has that name, and that the key is want.
func wantLive(t *testing.T, s metastore.Store, want metastore.Key) {
	t.Helper()
	got, err := s.Get(t.Context(), want.Name)
	must(t, err)
	wantKey(t, got[0], want)
}

func testSoftDelete(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	wantKind(t, s.SoftDelete(ctx, "k"), claviger.KeyNotFound)
	wantKind(t, s.Undelete(ctx, "k", "01"), claviger.KeyNotFound)
	for _, name := range []string{"k", "\x00"} { // the second name is one that PostgreSQL cannot store
		_, err := s.Discard(ctx, name, "01")
		wantKind(t, err, claviger.KeyNotFound)
	}

	other := key("other", "0a")
	must(t, s.Insert(ctx, other))
	insertDeleted(t, s, key("k", "03", "01", "02"))
	if got, err := s.Get(ctx, "k"); err != nil || got[0] != nil {
		t.Errorf("Get returns a deleted key: %+v, %v", got[0], err)
	}
	wantLive(t, s, other)
	if names, err := s.Names(ctx); err != nil || !slices.Equal(names, []string{"other"}) {
		t.Errorf("Names %q, %v", names, err)
	}
	_, _, err := s.ByVersion(ctx, "k@01")
	wantKind(t, err, claviger.VersionNotFound)
	if p, err := s.Pending(ctx); err != nil || len(p) != 0 {
		t.Errorf("Pending after SoftDelete: %+v, %v", p, err)
	}
	wantKind(t, s.SoftDelete(ctx, "k"), claviger.KeyNotFound)
	_, err = s.Remove(ctx, "k")
	wantKind(t, err, claviger.KeyNotFound)
	wantKind(t, s.Append(ctx, "k", version("05", 1)), claviger.KeyNotFound)
}

func testDeletedKeys(t *testing.T, b Backend, s metastore.Store, location string) {
	ctx := t.Context()
	before := time.Now().Add(-10 * time.Second)
	must(t, s.Insert(ctx, key("other", "0a")))
	first, second := key("k", "03", "01", "02"), key("k", "04")
	insertDeleted(t, s, first, second)
	must(t, s.Close())
	s = b.open(t, location)
	list := deletedKeys(t, s)
	if len(list) != 2 {
		t.Fatalf("deleted keys: %+v", list)
	}
	wantKey(t, &list[0].Key, first)
	wantKey(t, &list[1].Key, second)
	for _, k := range list {
		if k.Since.Before(before) || k.Since.After(time.Now().Add(10*time.Second)) ||
			!k.Since.Equal(k.Since.Truncate(time.Millisecond)) {
			t.Errorf("deleted at %v", k.Since)
		}
	}
	for names, want := range map[string]int{"k": 2, "other": 0, "k,other": 2, "\xff": 0, "a\x00": 0} {
		some, err := s.DeletedKeys(ctx, strings.Split(names, ",")...)
		if err != nil || len(some) != want {
			t.Errorf("deleted keys of the names %q: %+v, %v; want %d", names, some, err, want)
		}
	}
}

// testUndelete checks that Undelete picks the deleted key that has the given version, whether another key of the name
// was deleted earlier or later, and that Undelete does not replace a live key.
func testUndelete(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	first, second := key("k", "03", "01", "02"), key("k", "04")
	must(t, s.Insert(ctx, key("other", "0a")))
	insertDeleted(t, s, first)
	must(t, s.Insert(ctx, second))
	wantKind(t, s.Undelete(ctx, "k", "01"), claviger.KeyExists)
	must(t, s.SoftDelete(ctx, "k"))
	for _, none := range []string{"", "05", "0a", "k@01", "\xff", "a\x00"} {
		wantKind(t, s.Undelete(ctx, "k", none), claviger.KeyNotFound)
	}
	wantKind(t, s.Undelete(ctx, "other", "01"), claviger.KeyNotFound)
	must(t, s.Undelete(ctx, "k", "01"))
	wantLive(t, s, first)
	must(t, s.SoftDelete(ctx, "k")) // now first is the key that was deleted later
	must(t, s.Undelete(ctx, "k", "04"))
	wantLive(t, s, second)
	must(t, s.Append(ctx, "k", version("05", 1)))
	wantKind(t, s.Undelete(ctx, "k", "02"), claviger.KeyExists)
}

// testDiscard checks that Discard removes the deleted key that has a given version, that the removal is written as an
// intent, and that the live key of the same name stays.
func testDiscard(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	insertDeleted(t, s, key("k", "03", "01", "02"))
	must(t, s.Insert(ctx, key("k", "04", "05")))
	_, err := s.Discard(ctx, "k")
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
	if list := deletedKeys(t, s); len(list) != 0 {
		t.Errorf("deleted keys after Discard: %+v", list)
	}
	if _, v, err := s.ByVersion(ctx, "k@05"); err != nil || v.ID != "05" {
		t.Errorf("version of the live key after Discard: %+v, %v", v, err)
	}
}

// testDeletedDuringStep checks that no key is deleted, undeleted or discarded while a step of its name is unfinished.
func testDeletedDuringStep(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	must(t, s.Insert(ctx, key("k", "04", "05")))
	_, err := s.Begin(ctx, metastore.Intent{Key: "k", Op: "delete", Refs: refs("01")})
	must(t, err)
	wantKind(t, s.SoftDelete(ctx, "k"), claviger.Unavailable)
	must(t, s.Drop(ctx, "k"))
	must(t, s.SoftDelete(ctx, "k"))
	_, err = s.Begin(ctx, metastore.Intent{Key: "k", Op: "create", Refs: refs("06")})
	must(t, err)
	wantKind(t, s.Undelete(ctx, "k", "04"), claviger.Unavailable)
	_, err = s.Discard(ctx, "k", "04")
	wantKind(t, err, claviger.Unavailable)
	if list := deletedKeys(t, s); len(list) != 1 || len(list[0].List) != 2 {
		t.Errorf("deleted keys after refusals: %+v", list)
	}
}

// testDiscardSeveral checks that one Discard can remove several keys of a name, that it adds their refs to a deletion
// that was begun before, and that the keys that were not given stay.
func testDiscardSeveral(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	insertDeleted(t, s, key("k", "04", "05"), key("k", "09"), key("k", "07"))
	_, err := s.Begin(ctx, metastore.Intent{Key: "k", Op: "delete", Refs: refs("08")})
	must(t, err)
	in, err := s.Discard(ctx, "k", "07", "05")
	must(t, err)
	if !slices.Equal(in.Refs, refs("08", "04", "05", "07")) {
		t.Errorf("Discard of two keys: refs %q", in.Refs)
	}
	if list := deletedKeys(t, s); len(list) != 1 || list[0].List[0].ID != "09" {
		t.Errorf("deleted keys after a Discard of two others: %+v", list)
	}
}

func testLastUses(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	_, since, err := s.LastUses(ctx)
	must(t, err)
	if d := time.Since(since); d < -time.Minute || d > time.Hour {
		t.Errorf("the recording of last uses began at %v", since)
	}
	must(t, s.RecordUses(ctx, []metastore.LastUse{{Version: "k@01", Last: at(5)}, {Version: "k@02", Last: at(9)},
		{Version: "k@03", Last: at(7)}}))
	must(t, s.RecordUses(ctx, []metastore.LastUse{{Version: "k@02", Last: at(3)}, {Version: "k@01", Last: at(8)}}))
	want := func(versions []string, times ...time.Time) {
		t.Helper()
		last, again, err := s.LastUses(ctx, versions...)
		must(t, err)
		if !slices.EqualFunc(last, times, time.Time.Equal) || !again.Equal(since) {
			t.Errorf("last uses of %q: %v since %v, want %v since %v", versions, last, again, times, since)
		}
	}
	want([]string{"k@02", "none", "k@01", "k@02"}, at(9), time.Time{}, at(8), at(9))
	// Discard and Remove both remove the times of the versions that they remove.
	must(t, s.Insert(ctx, key("k", "01")))
	must(t, s.SoftDelete(ctx, "k"))
	want([]string{"k@01"}, at(8))
	_, err = s.Discard(ctx, "k", "01")
	must(t, err)
	must(t, s.Drop(ctx, "k"))
	must(t, s.Insert(ctx, key("k", "02")))
	_, err = s.Remove(ctx, "k")
	must(t, err)
	want([]string{"k@01", "k@02", "k@03"}, time.Time{}, time.Time{}, at(7))
}

// testNeverUsed checks that NeverUsed is true until the first RecordUses, also after the version is removed, and that
// it is false for a version that no Begin has numbered.
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
	want("in an empty store")
	in, err := s.Begin(ctx, metastore.Intent{Key: "k", Op: "create", Refs: numbered(2)})
	must(t, err)
	must(t, s.Insert(ctx, metastore.Key{Metadata: key("k", "01").Metadata, List: listOf(in)}))
	must(t, s.Insert(ctx, key("old", "0"))) // a recovered key, which no Begin has numbered
	want("after the creation", "k@0", "k@1")
	must(t, s.RecordUses(ctx, []metastore.LastUse{{Version: "k@1", Last: at(5)}, {Version: "old@0", Last: at(5)}}))
	want("after a use", "k@0")
	must(t, s.SoftDelete(ctx, "k"))
	want("after the deletion", "k@0")
	_, err = s.Discard(ctx, "k", "0")
	must(t, err)
	must(t, s.Drop(ctx, "k"))
	want("after the purge", "k@0")
	in, err = s.Begin(ctx, metastore.Intent{Key: "k", Op: "create", Refs: numbered(1)})
	must(t, err)
	again, err := s.Begin(ctx, metastore.Intent{Key: "k", Op: "create", Refs: numbered(1)})
	must(t, err)
	if !slices.Equal(in.Refs, again.Refs) {
		t.Errorf("Begin returned %v, and again %v", in.Refs, again.Refs)
	}
	must(t, s.Insert(ctx, metastore.Key{Metadata: key("k", "01").Metadata, List: listOf(in)}))
	want("after another creation", "k@0", "k@2")
	_, err = s.Remove(ctx, "k")
	must(t, err)
	want("after the removal", "k@0", "k@2")
	must(t, s.ForgetUnused(ctx))
	want("after ForgetUnused")
}

// testClocks checks that the clocks of this process and of its store agree. Here both are on one machine.
func testClocks(t *testing.T, _ Backend, s metastore.Store, _ string) { checkClocks(t, s) }

func checkClocks(t *testing.T, s metastore.Clock) {
	t.Helper()
	for i := range 2 {
		if i > 0 {
			time.Sleep(1200 * time.Millisecond) // a stored result of the first call would now be out of date
		}
		begun := time.Now()
		c, err := s.Clocks(t.Context())
		must(t, err)
		if ended := time.Now(); c.Local.Before(begun) || c.Local.After(ended) {
			t.Errorf("this process's clock shows %v, want a time between %v and %v", c.Local, begun, ended)
		}
		if c.Store.Sub(c.Local).Abs() > 10*time.Second || c.Ahead.Abs() > time.Second || c.Check() != nil ||
			c.ClockOwner == "" {
			t.Errorf("%+v: %v", c, c.Check())
		}
	}
}

// deletedKeysCalls returns the calls of DeletedKeys, LastUses and Clock, as in calls.
func deletedKeysCalls(s metastore.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"SoftDelete":  func(ctx context.Context) error { return s.SoftDelete(ctx, "k") },
		"DeletedKeys": func(ctx context.Context) error { _, err := s.DeletedKeys(ctx); return err },
		"Undelete":    func(ctx context.Context) error { return s.Undelete(ctx, "k", "01") },
		"Discard":     func(ctx context.Context) error { _, err := s.Discard(ctx, "k", "01"); return err },
		"RecordUses": func(ctx context.Context) error {
			return s.RecordUses(ctx, []metastore.LastUse{{Version: "k@01"}})
		},
		"LastUses":     func(ctx context.Context) error { _, _, err := s.LastUses(ctx, "k@01"); return err },
		"Clocks":       func(ctx context.Context) error { _, err := s.Clocks(ctx); return err },
		"NeverUsed":    func(ctx context.Context) error { _, err := s.NeverUsed(ctx, "k@0"); return err },
		"ForgetUnused": s.ForgetUnused,
	}
}
