package census

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestSortBy: several goroutines sort as one does, whatever the order and the number of different entries.
func TestSortBy(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const n = 4 * fewEntries
	for what, key := range map[string]func(i int) uint64{
		"sorted": func(i int) uint64 { return uint64(i) }, "reversed": func(i int) uint64 { return uint64(n - i) },
		"equal": func(int) uint64 { return 7 }, "two values": func(i int) uint64 { return uint64(i % 2) },
		"random": func(int) uint64 { return random.Uint64() },
		"all but one are equal": func(i int) uint64 {
			if i == n/2 {
				return 0
			}
			return 1
		},
	} {
		var entries []uint64
		for i := range n {
			entries = append(entries, key(i))
		}
		want := slices.Clone(entries)
		slices.Sort(want)
		for workers := range 6 {
			got := slices.Clone(entries)
			if sortBy(got, workers, cmp.Compare[uint64]); !slices.Equal(got, want) {
				t.Errorf("%s, %d workers: not sorted, or other entries", what, workers)
			}
		}
	}
}

// TestMergeIDs: the ids of all lists are in their order, each once.
func TestMergeIDs(t *testing.T) {
	for n := 1; n < 8; n++ {
		var lists [][]uint64
		want := map[uint64]bool{}
		for i := range n {
			var list []uint64
			for k := range 50 * i { // the first list is empty
				id := uint64(k * 7 % (40 + i))
				list = append(list, id)
				want[id] = true
			}
			lists = append(lists, list)
		}
		got := mergeIDs(lists, 3)
		if len(got) != len(want) || !slices.IsSorted(got) {
			t.Errorf("%d lists: %d ids, want %d in their order", n, len(got), len(want))
		}
		if cap(got) > 2*len(want) {
			t.Errorf("%d lists: %d ids keep memory for %d", n, len(got), cap(got))
		}
	}
}

// TestJoin: entries from batches that several goroutines have read are in the order of the batches.
func TestJoin(t *testing.T) {
	const batches, entries = 20, firstPart + 3*longPart + 5
	lists := []*list[int]{{}, {}, {}}
	want := []int{}
	for batch := range batches {
		l := lists[batch%len(lists)]
		l.begin(int64(batch))
		for i := range entries * (batch % 2) { // every other batch is empty
			l.add(batch*entries + i)
			want = append(want, batch*entries+i)
		}
	}
	if got := join(lists...); !slices.Equal(got, want) {
		t.Errorf("%d entries, want %d in the order of the batches", len(got), len(want))
	}
}
