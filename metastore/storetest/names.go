package storetest

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
)

// randomName returns a name of n random letters, which a store cannot compress.
func randomName(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // the same name in each run
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	name := make([]byte, n)
	for i := range name {
		name[i] = letters[r.IntN(len(letters))]
	}
	return string(name)
}

// longNames returns a key name of the greatest length, and a name that differs from it in the last letter only. Both
// begin with \x, which some casts of a database read as the start of a hexadecimal number.
func longNames() (name, twin string) {
	name = `\x\` + randomName(1, claviger.MaxName-5) + "é"
	return name, name[:claviger.MaxName-2] + "--"
}

// testLongKeyName runs every step of a key with the longest allowed name.
func testLongKeyName(t *testing.T, b Backend, s metastore.Store, location string) {
	ctx := t.Context()
	name, twin := longNames()
	for i, n := range []string{name, twin} {
		first := []metastore.Ref{{Object: "0b" + strconv.Itoa(i)}}
		in, err := s.Begin(ctx, metastore.Intent{Key: n, Op: "create", Refs: first})
		must(t, err)
		again, err := s.Begin(ctx, metastore.Intent{Key: n, Op: "create", Refs: []metastore.Ref{{Object: "0c"}}})
		must(t, err)
		if !slices.Equal(again.Refs, in.Refs) || in.Refs[0].ID != "0" {
			t.Errorf("Begin %v, then %v", in.Refs, again.Refs)
		}
		must(t, s.Drop(ctx, n))
		must(t, s.SkipNumbers(ctx, n, 7))
		if next, err := s.NextNumber(ctx, n); err != nil || next != 7 {
			t.Errorf("NextNumber %d, %v", next, err)
		}
	}
	k := key(name, "7", "8")
	must(t, s.Insert(ctx, k))
	wantKind(t, s.Insert(ctx, key(name, "9")), claviger.KeyExists)
	must(t, s.Append(ctx, name, version("a1", 9)))
	must(t, s.SoftDelete(ctx, name))
	if list, err := s.DeletedKeys(ctx, name); err != nil || len(list) != 1 {
		t.Errorf("DeletedKeys %d, %v", len(list), err)
	}
	must(t, s.Undelete(ctx, name, "7"))
	got, err := s.Get(ctx, twin, name)
	must(t, err)
	if got[0] != nil || got[1] == nil || len(got[1].List) != 3 {
		t.Fatalf("Get of the twin %v, of the key %v", got[0] != nil, got[1])
	}
	_, v, err := s.ByVersion(ctx, claviger.VersionName(name, "8"))
	must(t, err)
	if v.ID != "8" {
		t.Errorf("ByVersion %q", v.ID)
	}
	in, err := s.Remove(ctx, name)
	must(t, err)
	if len(in.Refs) != 3 {
		t.Errorf("Remove returned %v", in.Refs)
	}
	must(t, s.Close())
	s = b.open(t, location)
	must(t, s.Drop(ctx, name))
	must(t, s.Insert(ctx, key(name, "30")))
}

// testLongNamesInRecords checks that a store writes counters, times, records and settings of the longest names. One
// write holds the records of several users, so a record that the store cannot write would lose the others too.
func testLongNamesInRecords(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	name, twin := longNames()
	longest := claviger.VersionName(name, strconv.Itoa(claviger.MaxVersion))
	source := "kms://" + randomName(2, claviger.MaxName)
	for range 2 { // the second write changes the rows that the first one wrote
		must(t, s.AddUse(ctx, []metastore.Use{
			{Source: source, Version: longest, Op: "decrypt", Count: 1, Last: at(1)},
			{Source: source, Version: "short@0", Op: "decrypt", Count: 2, Last: at(2)},
		}))
		must(t, s.RecordUses(ctx, []metastore.LastUse{{Version: longest, Last: at(3)},
			{Version: "short@0", Last: at(4)}}))
		must(t, s.Put(ctx, "run", name, []byte("{}")))
		must(t, metastore.SetAlias(ctx, s, name))
	}
	uses, err := s.Uses(ctx)
	must(t, err)
	slices.SortFunc(uses, func(a, b metastore.Use) int { return int(a.Count - b.Count) })
	if len(uses) != 2 || uses[0].Version != longest || uses[0].Count != 2 || uses[1].Count != 4 {
		t.Errorf("%d Uses", len(uses))
	}
	last, _, err := s.LastUses(ctx, longest, claviger.VersionName(twin, "0"), "short@0")
	must(t, err)
	if !slices.EqualFunc(last, []time.Time{at(3), {}, at(4)}, time.Time.Equal) {
		t.Errorf("LastUses %v", last)
	}
	if list, err := s.Records(ctx, "run"); err != nil || len(list) != 1 || list[0].Item != name {
		t.Errorf("%d Records, %v", len(list), err)
	}
	if here, ok, err := metastore.Alias(ctx, s, name); err != nil || !ok || here != name {
		t.Errorf("Alias %t, %v", ok, err)
	}
}
