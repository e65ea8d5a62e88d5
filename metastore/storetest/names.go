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

// randomName has letters that no store can press together.
func randomName(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // the same name in each run
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	name := make([]byte, n)
	for i := range name {
		name[i] = letters[r.IntN(len(letters))]
	}
	return string(name)
}

// testLongNames takes a key of the longest name through its life. Nothing that a caller
// may name must keep a store from writing, for one record that does not fit takes those
// of others with it.
func testLongNames(t *testing.T, b Backend, s metastore.Store, where string) {
	ctx := t.Context()
	name := `\x\` + randomName(1, claviger.MaxName-5) + "é" // \x is more than itself in some casts
	twin := name[:claviger.MaxName-2] + "--"                // differs in its last letter only
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
	must(t, s.Shelve(ctx, name))
	if list, err := s.Shelved(ctx, name); err != nil || len(list) != 1 {
		t.Errorf("Shelved %d, %v", len(list), err)
	}
	must(t, s.Unshelve(ctx, name, "7"))
	got, err := s.Get(ctx, twin, name)
	must(t, err)
	if got[0] != nil || got[1] == nil || len(got[1].List) != 3 {
		t.Fatalf("Get of the twin %v, of the key %v", got[0] != nil, got[1])
	}
	longest := claviger.VersionName(name, "2147483646")
	_, v, err := s.ByVersion(ctx, claviger.VersionName(name, "8"))
	must(t, err)
	if v.ID != "8" {
		t.Errorf("ByVersion %q", v.ID)
	}

	// Each twice: the second finds what the first wrote.
	source := "kms://" + randomName(2, claviger.MaxName)
	for range 2 {
		must(t, s.AddUse(ctx, []metastore.Use{
			{Source: source, Version: longest, Op: "decrypt", Count: 1, Last: at(1)},
			{Source: source, Version: "short@0", Op: "decrypt", Count: 2, Last: at(2)},
		}))
		must(t, s.Touch(ctx, []metastore.LastUse{{Version: longest, Last: at(3)}, {Version: "short@0", Last: at(4)}}))
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
	in, err := s.Remove(ctx, name)
	must(t, err)
	if len(in.Refs) != 3 {
		t.Errorf("Remove left %v", in.Refs)
	}
	must(t, s.Close())
	s = b.open(t, where)
	must(t, s.Drop(ctx, name))
	must(t, s.Insert(ctx, key(name, "30")))
}
