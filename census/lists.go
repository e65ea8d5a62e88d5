package census

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
)

// list is a long list in parts, to which one goroutine adds entries. A slice would be copied each time it grows, and
// the old copies would take memory until the next garbage collection.
type list[T any] struct {
	full []part[T]
	last part[T]
}

// part is a part of a list.
type part[T any] struct {
	at      int64 // where the batch with these entries begins in the section
	entries []T
}

// Capacities of the first part after begin, and of the parts after that.
const (
	firstPart = 64
	longPart  = 2048
)

// begin begins a part with the entries of another batch.
func (l *list[T]) begin(at int64) {
	l.finish()
	l.last.at = at
}

func (l *list[T]) finish() {
	if len(l.last.entries) > 0 {
		l.full = append(l.full, l.last)
		l.last.entries = nil
	}
}

func (l *list[T]) add(v T) {
	if len(l.last.entries) == cap(l.last.entries) {
		l.grow()
	}
	l.last.entries = append(l.last.entries, v)
}

func (l *list[T]) grow() {
	size := firstPart
	if l.last.entries != nil {
		size = longPart
	}
	l.finish()
	l.last.entries = make([]T, 0, size)
}

// parts returns the parts, in the order in which they were made.
func (l *list[T]) parts() []part[T] {
	l.finish()
	return l.full
}

// join returns the entries of several lists as a slice, in the order of the batches.
func join[T any](lists ...*list[T]) []T {
	var parts []part[T]
	n := 0
	for _, l := range lists {
		parts = append(parts, l.parts()...)
	}
	for _, p := range parts {
		n += len(p.entries)
	}
	slices.SortStableFunc(parts, func(a, b part[T]) int { return cmp.Compare(a.at, b.at) })
	all := make([]T, 0, n)
	for _, p := range parts {
		all = append(all, p.entries...)
	}
	return all
}

// each calls f for each number from 0 to n-1, in at most workers goroutines.
func each(workers, n int, f func(i int)) {
	var group sync.WaitGroup
	var next atomic.Int64
	for range min(workers, n) {
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				f(int(i))
			}
		})
	}
	group.Wait()
}

// together calls several functions at the same time.
func together(f ...func()) { each(len(f), len(f), func(i int) { f[i]() }) }

// Fewer than fewEntries are sorted by one goroutine.
const fewEntries = 1 << 14

// sortBy sorts entries in place, in several goroutines. The order of equal entries is undefined.
func sortBy[T any](entries []T, workers int, compare func(a, b T) int) {
	if workers <= 1 || len(entries) < fewEntries {
		slices.SortFunc(entries, compare)
		return
	}
	n := partition(entries, median(entries, compare), compare)
	together(func() { sortBy(entries[:n], workers/2, compare) },
		func() { sortBy(entries[n:], workers-workers/2, compare) })
}

// median returns an approximate median of many entries: that of a sample.
func median[T any](entries []T, compare func(a, b T) int) T {
	const n = 101
	some := make([]T, n)
	for i := range some {
		some[i] = entries[i*(len(entries)-1)/(n-1)]
	}
	slices.SortFunc(some, compare)
	return some[n/2]
}

// partition moves the entries below pivot before all others, and returns their number. Entries that are sorted already
// are not moved, so they stay fast to sort.
func partition[T any](entries []T, pivot T, compare func(a, b T) int) int {
	i, k := 0, len(entries)
	for {
		for i < k && compare(entries[i], pivot) < 0 {
			i++
		}
		for i < k && compare(entries[k-1], pivot) >= 0 {
			k--
		}
		if i == k {
			return i
		}
		entries[i], entries[k-1] = entries[k-1], entries[i]
	}
}

// mergeIDs returns the ids of all lists in ascending order, each once. It sorts the lists in place.
func mergeIDs(lists [][]uint64, workers int) []uint64 {
	each(workers, len(lists), func(i int) { slices.Sort(lists[i]) })
	for len(lists) > 1 {
		pairs := make([][]uint64, (len(lists)+1)/2)
		each(workers, len(pairs), func(i int) {
			if pairs[i] = lists[2*i]; 2*i+1 < len(lists) {
				pairs[i] = mergeTwo(lists[2*i], lists[2*i+1])
			}
		})
		lists = pairs
	}
	return slices.Clone(slices.Compact(lists[0])) // the clone needs less memory if many ids were in several lists
}

// mergeTwo merges two sorted lists.
func mergeTwo(a, b []uint64) []uint64 {
	all := make([]uint64, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0] <= b[0] {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return append(append(all, a...), b...)
}
