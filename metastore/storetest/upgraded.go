package storetest

import (
	"fmt"
	"slices"
	"testing"

	"claviger"
	"claviger/metastore"
)

// Upgraded checks a store that an older release wrote, and that this program has opened. In the older release the id
// of a version had 16 hexadecimal digits. The store is in the testdata of each backend.
func Upgraded(t *testing.T, s metastore.Store) {
	ctx := t.Context()
	names, err := s.Names(ctx)
	must(t, err)
	if len(names) != len(upgradedKeys) {
		t.Fatalf("names %q", names)
	}
	for i, k := range upgradedKeys {
		got, err := s.Get(ctx, k.name)
		must(t, err)
		wantUpgraded(t, got[0], names[i], len(k.list), k.list)
		for _, v := range k.list {
			m, found, err := s.ByVersion(ctx, claviger.VersionName(k.name, v.ID))
			if err != nil || m.Versions != len(k.list) || !sameVersion(found, v) {
				t.Errorf("version %s of %q: %+v, %+v, %v", v.ID, k.name, m, found, err)
			}
		}
		wantNext(t, s, k.name, k.next)
	}
	deleted := deletedKeys(t, s)
	if len(deleted) != 2 {
		t.Fatalf("deleted %+v", deleted)
	}
	wantUpgraded(t, &deleted[0].Key, "rolled", 4, upgradedList("a0f1000000000001", "a0f1000000000002",
		"a0f1000000000003", "a0f1000000000004"))
	wantUpgraded(t, &deleted[1].Key, "shelf", 2, upgradedList("d0f1000000000001", "d0f1000000000002"))
	wantNext(t, s, "shelf", 2)
	wantNext(t, s, "gone", 4) // a source has, or had, a key of this name
	wantNext(t, s, "dying", 0)
	wantNext(t, s, "half", 0)
	pending, err := s.Pending(ctx)
	must(t, err)
	if got, want := fmt.Sprint(refsOf(pending)),
		"[half create [{e0f1000000000001 e0f1000000000001}] dying delete [{f0f1000000000001 f0f1000000000001} "+
			"{f0f1000000000002 f0f1000000000002}]]"; got != want {
		t.Errorf("intents %s, want %s", got, want)
	}
	last, _, err := s.LastUses(ctx, claviger.VersionName("plain", upgradedDigits))
	if err != nil || !last[0].Equal(at(40)) {
		t.Errorf("last uses %v, %v", last, err)
	}
	rollUpgraded(t, s)
}

// upgradedDigits is an old id that looks like a number.
const upgradedDigits = "1234567890123456"

// upgradedKeys are the live keys of the older release's store. next is the number of each key's next version.
var upgradedKeys = []struct {
	name string
	list []metastore.Version
	next int
}{
	{"k@0", slices.Concat(upgradedList("b0f1000000000001"), upgradedList("b0f1000000000002")), 2},
	{"migrated", upgradedList("c0f1000000000001"), 5}, // its source has five versions
	{"plain", upgradedList(upgradedDigits), 1},
	// The deleted key of this name has four versions.
	{"rolled", upgradedList("a0f1000000000005", "a0f1000000000006", "a0f1000000000007"), 4},
}

func upgradedList(ids ...string) (list []metastore.Version) {
	for i, id := range ids {
		list = append(list, metastore.Version{ID: id, Object: id, Created: at(int64(10 + i)),
			Check: []byte{1, 2, 3, 4, 5, 6, 7, byte(i)}})
	}
	return list
}

func wantUpgraded(t *testing.T, k *metastore.Key, name string, versions int, list []metastore.Version) {
	t.Helper()
	if k == nil || k.Name != name || k.Versions != versions || k.BitLength != 256 || k.Description == nil ||
		*k.Description != "zone" ||
		k.Attributes[claviger.ACLNameAttribute] != "acl" || !k.Created.Equal(at(1)) ||
		!slices.EqualFunc(k.List, list, sameVersion) {
		t.Errorf("%q is %+v, want %d of %v", name, k, versions, list)
	}
}

// rollUpgraded rolls each key of the older release once. The new version N is the current one, because clients compute
// the name of the current version as NAME@(Versions-1).
func rollUpgraded(t *testing.T, s metastore.Store) {
	t.Helper()
	ctx := t.Context()
	for _, k := range upgradedKeys {
		in, err := s.Begin(ctx, metastore.Intent{Key: k.name, Op: "roll", Refs: numbered(1)})
		must(t, err)
		v := listOf(in)[0]
		if v.ID != fmt.Sprint(k.next) {
			t.Errorf("%q is rolled to %s, want %d", k.name, v.ID, k.next)
		}
		must(t, s.Append(ctx, k.name, v))
		got, err := s.Get(ctx, k.name)
		must(t, err)
		wantUpgraded(t, got[0], k.name, k.next+1, append(slices.Clone(k.list), v))
	}
}

func refsOf(pending []metastore.Intent) (list []any) {
	for _, i := range pending {
		list = append(list, i.Key, i.Op, i.Refs)
	}
	return list
}
