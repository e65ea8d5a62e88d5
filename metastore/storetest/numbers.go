package storetest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"

	"claviger"
	"claviger/metastore"
)

// wantNext demands the next number of a name, and which of the numbers below top
// were given.
func wantNext(t *testing.T, s metastore.Store, name string, next int, given ...int) {
	t.Helper()
	if got, err := s.NextNumber(t.Context(), name); err != nil || got != next {
		t.Errorf("next number of %q: %d (%v), want %d", name, got, err, next)
	}
	const top = 12
	for n := -1; n < top; n++ {
		if got, err := s.Numbered(t.Context(), name, n); err != nil || got != slices.Contains(given, n) {
			t.Errorf("number %d of %q given: %v (%v)", n, name, got, err)
		}
	}
}

// numbered is n refs of objects of their own, which the store is to number.
func numbered(n int) []metastore.Ref {
	list := make([]metastore.Ref, n)
	for i := range list {
		objects.Lock()
		objects.n++
		list[i].Object = fmt.Sprintf("%016x", objects.n)
		objects.Unlock()
	}
	return list
}

var objects struct {
	sync.Mutex
	n int
}

// listOf makes a key's versions of an intent's refs.
func listOf(in metastore.Intent) (list []metastore.Version) {
	for i, r := range in.Refs {
		list = append(list, metastore.Version{ID: r.ID, Object: r.Object, Created: at(int64(i)), Check: []byte{1}})
	}
	return list
}

// testNumbers follows one name through everything that may happen to a key.
func testNumbers(t *testing.T, b Backend, s metastore.Store, where string) {
	ctx := t.Context()
	const name = "k@0" // as odd as the name of a version
	begin := func(op string, n int, want ...string) metastore.Intent {
		t.Helper()
		in, err := s.Begin(ctx, metastore.Intent{Key: name, Op: op, Refs: numbered(n)})
		must(t, err)
		var got []string
		for _, r := range in.Refs {
			got = append(got, r.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s is given the numbers %q, want %q", op, got, want)
		}
		p, err := s.Pending(ctx)
		must(t, err)
		if len(p) != 1 || !slices.Equal(p[0].Refs, in.Refs) {
			t.Errorf("Pending %+v, want %+v", p, in)
		}
		return in
	}
	key := func(list []metastore.Version) metastore.Key {
		return metastore.Key{Metadata: claviger.Metadata{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128,
			Attributes: map[string]string{}, Created: at(1)}, List: list}
	}
	count := func(want int, list ...metastore.Version) {
		t.Helper()
		got, err := s.Get(ctx, name)
		must(t, err)
		if got[0] == nil || got[0].Versions != want || !slices.EqualFunc(got[0].List, list, sameVersion) {
			t.Fatalf("key %+v, want %d and %v", got[0], want, list)
		}
		for _, v := range list {
			m, found, err := s.ByVersion(ctx, claviger.VersionName(name, v.ID))
			if err != nil || m.Versions != want || !sameVersion(found, v) {
				t.Errorf("version %s: %+v, %+v, %v; want %d and %+v", v.ID, m, found, err, want, v)
			}
		}
	}

	wantNext(t, s, name, 0)
	// A step that is begun has its numbers; made again, it has the same.
	first := begin("import", 2, "0", "1")
	if again := begin("import", 3, "0", "1"); !slices.Equal(again.Refs, first.Refs) {
		t.Errorf("begun again with %v, was %v", again.Refs, first.Refs)
	}
	wantNext(t, s, name, 2, 0, 1)
	// Given up, its numbers are not given again.
	must(t, s.Drop(ctx, name))
	list := listOf(begin("create", 1, "2"))
	must(t, s.Insert(ctx, key(list)))
	count(3, list...)
	list = append(list, listOf(begin("roll", 1, "3"))...)
	must(t, s.Append(ctx, name, list[1]))
	count(4, list...)
	// Numbers below are in use elsewhere: skipped, not given.
	must(t, s.SkipNumbers(ctx, name, 6))
	must(t, s.SkipNumbers(ctx, name, 5))
	must(t, s.SkipNumbers(ctx, name, 0))
	wantNext(t, s, name, 6, 0, 1, 2, 3)
	list = append(list, listOf(begin("roll", 1, "6"))...)
	must(t, s.Append(ctx, name, list[2]))
	count(7, list...)
	for _, n := range []int{-1, claviger.MaxVersion + 1} {
		wantKind(t, s.SkipNumbers(ctx, name, n), claviger.Invalid)
	}
	// On the shelf a key keeps its numbers, and a new one of the name has others.
	must(t, s.Shelve(ctx, name))
	fresh := listOf(begin("create", 1, "7"))
	must(t, s.Insert(ctx, key(fresh)))
	must(t, s.Shelve(ctx, name))
	if sh := shelved(t, s); len(sh) != 2 || sh[0].Versions != 7 || sh[1].Versions != 8 ||
		!slices.EqualFunc(sh[0].List, list, sameVersion) {
		t.Errorf("shelved %+v", sh)
	}
	must(t, s.Unshelve(ctx, name, fresh[0].ID))
	count(8, fresh...)
	in, err := s.Discard(ctx, name, list[0].ID)
	must(t, err)
	for i, v := range list {
		if len(in.Refs) != len(list) || in.Refs[i] != (metastore.Ref{ID: v.ID, Object: v.Object}) {
			t.Errorf("discarded %+v, want the refs of %v", in.Refs, list)
			break
		}
	}
	must(t, s.Drop(ctx, name))
	_, err = s.Remove(ctx, name)
	must(t, err)
	must(t, s.Drop(ctx, name))
	wantNext(t, s, name, 8, 0, 1, 2, 3, 6, 7)

	// A key that is written with numbers of its own takes them, wherever they lie.
	given := []metastore.Version{{ID: "9", Object: "aa09"}, {ID: "5", Object: "aa05"},
		{ID: "0123456789012345", Object: "aa00"}}
	must(t, s.Insert(ctx, key(given)))
	count(3, given...)
	wantNext(t, s, name, 10, 0, 1, 2, 3, 5, 6, 7, 9)
	must(t, s.Append(ctx, name, metastore.Version{ID: "4", Object: "aa04"}))
	wantNext(t, s, name, 10, 0, 1, 2, 3, 4, 5, 6, 7, 9)
	if err := s.Append(ctx, name, metastore.Version{ID: "4", Object: "aa14"}); err == nil {
		t.Error("a second version of one name was taken")
	}
	if err := s.Append(ctx, name, metastore.Version{ID: "11", Object: "aa04"}); err == nil {
		t.Error("a second version of one HSM object was taken")
	}
	must(t, s.Close())
	s = b.open(t, where)
	wantNext(t, s, name, 10, 0, 1, 2, 3, 4, 5, 6, 7, 9)
	_, err = s.Remove(ctx, name)
	must(t, err)
	must(t, s.Drop(ctx, name))
	begin("create", 1, "10")
	must(t, s.Drop(ctx, name))
	wantNext(t, s, "K@0", 0) // another name

	// The last number, and no further.
	must(t, s.SkipNumbers(ctx, name, claviger.MaxVersion))
	begin("create", 1, strconv.Itoa(claviger.MaxVersion))
	must(t, s.Drop(ctx, name))
	_, err = s.Begin(ctx, metastore.Intent{Key: name, Op: "create", Refs: numbered(1)})
	wantKind(t, err, claviger.Unsupported)
	if p, err := s.Pending(ctx); err != nil || len(p) != 0 {
		t.Errorf("Pending after a refusal: %v, %v", p, err)
	}
}

// testNumbersTogether: two stores on one place, many at once, no number twice.
func testNumbersTogether(t *testing.T, b Backend, s metastore.Store, where string) {
	const workers, rounds = 6, 8
	stores := []metastore.Store{s, b.open(t, where)}
	ctx := t.Context()
	var mu sync.Mutex
	given := map[string]bool{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			s := stores[w%len(stores)]
			for r := range rounds {
				// As the provider does: one step of a name at a time.
				unlock, err := s.Lock(ctx, "shared")
				if err != nil {
					t.Error(err)
					return
				}
				in, err := s.Begin(ctx, metastore.Intent{Key: "shared", Op: "roll", Refs: numbered(2)})
				if err == nil {
					err = s.Drop(ctx, "shared")
				}
				unlock()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, ref := range in.Refs {
					if given[ref.ID] {
						t.Errorf("number %s was given twice", ref.ID)
					}
					given[ref.ID] = true
				}
				mu.Unlock()
				// Without a lock, and at names of their own.
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

// numberCalls is what Numbers adds to calls.
func numberCalls(s metastore.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"NextNumber":  func(ctx context.Context) error { _, err := s.NextNumber(ctx, "k"); return err },
		"SkipNumbers": func(ctx context.Context) error { return s.SkipNumbers(ctx, "k", 1) },
		"Numbered":    func(ctx context.Context) error { _, err := s.Numbered(ctx, "k", 0); return err },
	}
}
