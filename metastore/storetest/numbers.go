package storetest

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"claviger"
	"claviger/metastore"
)

// wantNext demands the next number of a name. Of the numbers below 12 exactly those in given must be given.
func wantNext(t *testing.T, s metastore.Store, name string, next int, given ...int) {
	t.Helper()
	if got, err := s.NextNumber(t.Context(), name); err != nil || got != next {
		t.Errorf("next number of %q: %d (%v), want %d", name, got, err, next)
	}
	for n := -1; n < 12; n++ {
		if got, err := s.Numbered(t.Context(), name, n); err != nil || got != slices.Contains(given, n) {
			t.Errorf("Numbered of number %d of %q: %v (%v)", n, name, got, err)
		}
	}
}

// numbered returns n refs without an ID, so the store gives them numbers. Their objects are unique in this process.
func numbered(n int) []metastore.Ref {
	list := make([]metastore.Ref, n)
	for i := range list {
		list[i].Object = fmt.Sprintf("%016x", objects.Add(1))
	}
	return list
}

// objects counts the objects that numbered has returned.
var objects atomic.Int64

// listOf returns the versions that the refs of an intent name.
func listOf(in metastore.Intent) (list []metastore.Version) {
	for i, r := range in.Refs {
		list = append(list, metastore.Version{ID: r.ID, Object: r.Object, Created: at(int64(i)), Check: []byte{1}})
	}
	return list
}

// numberedKey runs the steps of one key in a store, and checks the numbers that the store gives.
type numberedKey struct {
	t    *testing.T
	s    metastore.Store
	name string
}

// newNumberedKey returns a key whose name looks like a version's name, and so is hard to parse.
func newNumberedKey(t *testing.T, s metastore.Store) *numberedKey { return &numberedKey{t, s, "k@0"} }

// begin begins a step with n versions. The store must give these versions the numbers want.
func (k *numberedKey) begin(op string, n int, want ...string) metastore.Intent {
	k.t.Helper()
	in, err := k.s.Begin(k.t.Context(), metastore.Intent{Key: k.name, Op: op, Refs: numbered(n)})
	must(k.t, err)
	var got []string
	for _, r := range in.Refs {
		got = append(got, r.ID)
	}
	if !slices.Equal(got, want) {
		k.t.Errorf("the %s got the numbers %q, want %q", op, got, want)
	}
	p, err := k.s.Pending(k.t.Context())
	must(k.t, err)
	if len(p) != 1 || !slices.Equal(p[0].Refs, in.Refs) {
		k.t.Errorf("Pending %+v, want %+v", p, in)
	}
	return in
}

func (k *numberedKey) drop() {
	k.t.Helper()
	must(k.t, k.s.Drop(k.t.Context(), k.name))
}

// create creates the key with one version, which must get the number want.
func (k *numberedKey) create(want string) (list []metastore.Version) {
	k.t.Helper()
	list = listOf(k.begin("create", 1, want))
	k.insert(list)
	return list
}

func (k *numberedKey) insert(list []metastore.Version) {
	k.t.Helper()
	must(k.t, k.s.Insert(k.t.Context(), metastore.Key{Metadata: claviger.Metadata{Name: k.name,
		Cipher: claviger.DefaultCipher, BitLength: 128, Attributes: map[string]string{}, Created: at(1)}, List: list}))
}

// roll adds a version, which must get the number want, and returns the list with this version.
func (k *numberedKey) roll(list []metastore.Version, want string) []metastore.Version {
	k.t.Helper()
	v := listOf(k.begin("roll", 1, want))[0]
	must(k.t, k.s.Append(k.t.Context(), k.name, v))
	return append(list, v)
}

func (k *numberedKey) skip(next int) {
	k.t.Helper()
	must(k.t, k.s.SkipNumbers(k.t.Context(), k.name, next))
}

func (k *numberedKey) remove() {
	k.t.Helper()
	_, err := k.s.Remove(k.t.Context(), k.name)
	must(k.t, err)
	k.drop()
}

// wantVersions demands the versions of the key, and the number of versions that its metadata says.
func (k *numberedKey) wantVersions(count int, list ...metastore.Version) {
	k.t.Helper()
	ctx := k.t.Context()
	got, err := k.s.Get(ctx, k.name)
	must(k.t, err)
	if got[0] == nil || got[0].Versions != count || !slices.EqualFunc(got[0].List, list, sameVersion) {
		k.t.Fatalf("key %+v, want %d and %v", got[0], count, list)
	}
	for _, v := range list {
		m, found, err := k.s.ByVersion(ctx, claviger.VersionName(k.name, v.ID))
		if err != nil || m.Versions != count || !sameVersion(found, v) {
			k.t.Errorf("version %s: %+v, %+v, %v; want %d and %+v", v.ID, m, found, err, count, v)
		}
	}
}

func testNumbers(t *testing.T, _ Backend, s metastore.Store, _ string) {
	k := newNumberedKey(t, s)
	wantNext(t, s, k.name, 0)
	// A second Begin of the same step returns the first step's numbers.
	first := k.begin("import", 2, "0", "1")
	if again := k.begin("import", 3, "0", "1"); !slices.Equal(again.Refs, first.Refs) {
		t.Errorf("the second Begin returned %v, the first %v", again.Refs, first.Refs)
	}
	wantNext(t, s, k.name, 2, 0, 1)
	// The numbers of a dropped step are not given again.
	k.drop()
	list := k.create("2")
	k.wantVersions(3, list...)
	list = k.roll(list, "3")
	k.wantVersions(4, list...)
	// The numbers below 6 name versions elsewhere: the store skips them, and counts them as not given.
	k.skip(6)
	k.skip(5)
	k.skip(0)
	wantNext(t, s, k.name, 6, 0, 1, 2, 3)
	list = k.roll(list, "6")
	k.wantVersions(7, list...)
	wantNext(t, s, k.name, 7, 0, 1, 2, 3, 6)
	for _, n := range []int{-1, claviger.MaxVersion + 1} {
		wantKind(t, s.SkipNumbers(t.Context(), k.name, n), claviger.Invalid)
	}
	for name, n := range map[string]int{k.name: math.MinInt, k.name + "x": math.MaxInt, "\x00": 0, "\xff": 0} {
		if given, err := s.Numbered(t.Context(), name, n); given || err != nil {
			t.Errorf("the number %d of %q, which no version can have: %t, %v", n, name, given, err)
		}
	}
}

// testNumbersOfDeletedKeys checks that a deleted key keeps its numbers, that a new key of the same name gets others,
// and that no number is given again after the keys are discarded or removed.
func testNumbersOfDeletedKeys(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	k := newNumberedKey(t, s)
	old := k.roll(k.create("0"), "1")
	k.skip(6)
	old = k.roll(old, "6")
	must(t, s.SoftDelete(ctx, k.name))
	fresh := k.create("7")
	must(t, s.SoftDelete(ctx, k.name))
	if sh := deletedKeys(t, s); len(sh) != 2 || sh[0].Versions != 7 || sh[1].Versions != 8 ||
		!slices.EqualFunc(sh[0].List, old, sameVersion) {
		t.Errorf("deleted %+v", sh)
	}
	must(t, s.Undelete(ctx, k.name, fresh[0].ID))
	k.wantVersions(8, fresh...)
	in, err := s.Discard(ctx, k.name, old[0].ID)
	must(t, err)
	for i, v := range old {
		if len(in.Refs) != len(old) || in.Refs[i] != (metastore.Ref{ID: v.ID, Object: v.Object}) {
			t.Errorf("Discard returned %+v, want the refs of %v", in.Refs, old)
			break
		}
	}
	k.drop()
	k.remove()
	wantNext(t, s, k.name, 8, 0, 1, 6, 7)
}

// testNumbersOfOtherStores checks keys whose versions got their numbers elsewhere: the store counts these numbers as
// given, and its own numbers begin above them.
func testNumbersOfOtherStores(t *testing.T, b Backend, s metastore.Store, location string) {
	ctx := t.Context()
	k := newNumberedKey(t, s)
	k.skip(6)
	k.roll(k.create("6"), "7")
	k.remove()
	wantNext(t, s, k.name, 8, 6, 7)
	given := []metastore.Version{{ID: "9", Object: "aa09"}, {ID: "5", Object: "aa05"},
		{ID: "0123456789012345", Object: "aa00"}}
	k.insert(given)
	k.wantVersions(3, given...)
	wantNext(t, s, k.name, 10, 5, 6, 7, 9)
	must(t, s.Append(ctx, k.name, metastore.Version{ID: "4", Object: "aa04"}))
	wantNext(t, s, k.name, 10, 4, 5, 6, 7, 9)
	if err := s.Append(ctx, k.name, metastore.Version{ID: "4", Object: "aa14"}); err == nil {
		t.Error("Append accepted a second version of the same name")
	}
	if err := s.Append(ctx, k.name, metastore.Version{ID: "11", Object: "aa04"}); err == nil {
		t.Error("Append accepted a second version of the same HSM object")
	}
	must(t, s.Close())
	s = b.open(t, location)
	k.s = s
	wantNext(t, s, k.name, 10, 4, 5, 6, 7, 9)
	k.remove()
	k.begin("create", 1, "10")
	k.drop()
	wantNext(t, s, "K@0", 0) // another name
}

// testLastNumber checks that the store gives the highest number, and no number above it.
func testLastNumber(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	k := newNumberedKey(t, s)
	k.skip(claviger.MaxVersion)
	k.begin("create", 1, strconv.Itoa(claviger.MaxVersion))
	k.drop()
	_, err := s.Begin(ctx, metastore.Intent{Key: k.name, Op: "create", Refs: numbered(1)})
	wantKind(t, err, claviger.Unsupported)
	if p, err := s.Pending(ctx); err != nil || len(p) != 0 {
		t.Errorf("Pending after a refusal: %v, %v", p, err)
	}
}

// testNumbersConcurrency checks that two stores at one location give no number twice, while many goroutines use them.
func testNumbersConcurrency(t *testing.T, b Backend, s metastore.Store, location string) {
	const workers, rounds = 6, 8
	stores := []metastore.Store{s, b.open(t, location)}
	ctx := t.Context()
	var mu sync.Mutex
	given := map[string]bool{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			s := stores[w%len(stores)]
			for r := range rounds {
				refs, err := reserveLocked(ctx, s)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, ref := range refs {
					if given[ref.ID] {
						t.Errorf("number %s was given twice", ref.ID)
					}
					given[ref.ID] = true
				}
				mu.Unlock()
				// These two calls take no lock. All workers use the same names.
				if err := s.SkipNumbers(ctx, fmt.Sprint("skipped", r), w+1); err != nil {
					t.Error(err)
				}
				if _, err := s.Begin(ctx, metastore.Intent{Key: fmt.Sprint("together", r), Op: "create",
					Refs: numbered(1)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(given); n != workers*rounds*2 {
		t.Errorf("%d numbers", n)
	}
	for _, s := range stores {
		if next, err := s.NextNumber(ctx, "shared"); err != nil || next != workers*rounds*2 {
			t.Errorf("next number %d, %v", next, err)
		}
		for r := range rounds {
			wantNext(t, s, fmt.Sprint("skipped", r), workers)
			wantNext(t, s, fmt.Sprint("together", r), 1, 0)
		}
	}
}

// reserveLocked begins and drops a step of the key "shared", which reserves two numbers. It holds a lock, like the
// HSM provider, which runs one step of a name at a time.
func reserveLocked(ctx context.Context, s metastore.Store) ([]metastore.Ref, error) {
	unlock, err := s.Lock(ctx, "shared")
	if err != nil {
		return nil, err
	}
	defer unlock()
	in, err := s.Begin(ctx, metastore.Intent{Key: "shared", Op: "roll", Refs: numbered(2)})
	if err != nil {
		return nil, err
	}
	return in.Refs, s.Drop(ctx, "shared")
}

// numberCalls returns the calls of Numbers, as in calls.
func numberCalls(s metastore.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"NextNumber":  func(ctx context.Context) error { _, err := s.NextNumber(ctx, "k"); return err },
		"SkipNumbers": func(ctx context.Context) error { return s.SkipNumbers(ctx, "k", 1) },
		"Numbered":    func(ctx context.Context) error { _, err := s.Numbered(ctx, "k", 0); return err },
	}
}
