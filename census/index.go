package census

import (
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"
)

// The payload of an index entry: the number of the folder, and flags of the child.
const (
	seenFlag    = 1 << 31 // the child's record was read
	copiesFlag  = 1 << 30 // a snapshot has copies of the child's record, or the child is a folder in collector.changed
	placesFlag  = 1 << 29 // the child has other places than the folder
	folderMask  = placesFlag - 1
	noFolder    = folderMask // no folder has this number
	maxFolders  = noFolder
	shortBits   = 16
	longBits    = 32
	maxIDBits   = 62
	bucketsFree = 1 << 20 // number of buckets that an index may have even if the image has few children
)

// index maps each child to its folder. It has a bucket for each range of 2^shift ids. A bucket has the low bits of the
// ids, ascending. The index takes 6 bytes a child, or 8 if the ids are very sparse.
type index struct {
	shift    uint
	starts   []uint32 // the first entry of each bucket; while the index is filled, its next free entry
	short    []uint16 // low bits of the ids; nil if shift is over 16
	long     []uint32
	payloads []uint32
}

// newIndex returns an index for ids up to last, of about n children.
func newIndex(last, n uint64) (*index, error) {
	shift := uint(shortBits)
	for shift < longBits && last>>shift > n/16+bucketsFree {
		shift++
	}
	if bits.Len64(last) > maxIDBits || last>>shift > n/16+bucketsFree {
		return nil, fmt.Errorf("the last inode id is %d, which is too large for an image of %d inodes", last, n)
	}
	return &index{shift: shift, starts: make([]uint32, last>>shift+2)}, nil
}

// bucket returns the bucket of an id.
func (x *index) bucket(id uint64) uint64 { return id >> x.shift }

// count announces n children of a bucket. Several goroutines may call it.
func (x *index) count(bucket uint64, n uint32) { atomic.AddUint32(&x.starts[bucket+1], n) }

// allocate ends the counting. It returns the number of children.
func (x *index) allocate() uint64 {
	sum := uint64(0)
	for i := range x.starts {
		sum += uint64(x.starts[i])
		x.starts[i] = uint32(sum) //nolint:gosec // at most as many as inodes, which are checked to be fewer
	}
	x.payloads = make([]uint32, sum)
	if x.shift <= shortBits {
		x.short = make([]uint16, sum)
	} else {
		x.long = make([]uint32, sum)
	}
	return sum
}

// reserve takes n entries of a bucket, and returns the first. Several goroutines may call it.
func (x *index) reserve(bucket uint64, n uint32) uint32 {
	return atomic.AddUint32(&x.starts[bucket], n) - n
}

// put sets an entry.
func (x *index) put(entry uint32, id uint64, payload uint32) {
	low := id & (1<<x.shift - 1)
	if x.short != nil {
		x.short[entry] = uint16(low) //nolint:gosec // 16 bits
	} else {
		x.long[entry] = uint32(low) //nolint:gosec // 32 bits
	}
	x.payloads[entry] = payload
}

// sorter has the memory to sort a bucket.
type sorter struct {
	slots []uint32 // by low bits: the payload + 1
	pairs []uint64
}

// sort sorts bucket b. All entries of the bucket must have been put before. sort returns an id that has two entries.
func (x *index) sort(b int, s *sorter) (twice uint64, found bool) {
	from, to := x.entries(uint64(b)) //nolint:gosec // not negative
	if x.short != nil && to-from > 1<<shortBits/64 {
		return x.sortBySlots(b, from, to, s)
	}
	s.pairs = s.pairs[:0]
	for i := from; i < to; i++ {
		s.pairs = append(s.pairs, uint64(x.low(i))<<32|uint64(x.payloads[i]))
	}
	slices.Sort(s.pairs)
	for i, p := range s.pairs {
		low := uint32(p >> 32)
		if i > 0 && uint32(s.pairs[i-1]>>32) == low {
			return uint64(b)<<x.shift | uint64(low), true //nolint:gosec // not negative
		}
		x.put(from+uint32(i), uint64(low), uint32(p)) //nolint:gosec // both fit
	}
	return 0, false
}

// sortBySlots sorts a bucket with many entries: it puts each payload into the slot of its low bits, and reads the slots
// in order. The results are those of sort.
func (x *index) sortBySlots(b int, from, to uint32, s *sorter) (twice uint64, found bool) {
	if s.slots == nil {
		s.slots = make([]uint32, 1<<shortBits)
	}
	clear(s.slots)
	for i := from; i < to; i++ {
		low := x.short[i]
		if s.slots[low] != 0 {
			return uint64(b)<<x.shift | uint64(low), true //nolint:gosec // not negative
		}
		s.slots[low] = x.payloads[i] + 1
	}
	for low, p := range s.slots {
		if p != 0 {
			x.short[from], x.payloads[from] = uint16(low), p-1 //nolint:gosec // 16 bits
			from++
		}
	}
	return 0, false
}

// finish completes the index. reserve has moved each bucket's start to its end, which is the start of the next bucket.
func (x *index) finish() {
	copy(x.starts[1:], x.starts)
	x.starts[0] = 0
}

func (x *index) low(i uint32) uint32 {
	if x.short != nil {
		return uint32(x.short[i])
	}
	return x.long[i]
}

// entries returns the entries of a bucket of a complete index.
func (x *index) entries(b uint64) (from, to uint32) { return x.starts[b], x.starts[b+1] }

// find returns the payload of a child, or nil.
func (x *index) find(id uint64) *uint32 {
	b := x.bucket(id)
	if b+1 >= uint64(len(x.starts)) {
		return nil
	}
	from, to := x.entries(b)
	if from == to {
		return nil
	}
	low := uint32(id & (1<<x.shift - 1)) //nolint:gosec // 32 bits
	var i uint32
	if x.short != nil {
		i = from + search16(x.short[from:to], uint16(low)) //nolint:gosec // 16 bits
	} else {
		n, _ := slices.BinarySearch(x.long[from:to], low)
		i = from + uint32(n) //nolint:gosec // fits
	}
	if i == to || x.low(i) != low {
		return nil
	}
	return &x.payloads[i]
}

// search16 is a binary search. It begins at the place that the entry has if the ids are evenly spread, as they often
// are.
func search16(keys []uint16, key uint16) uint32 {
	n := len(keys)
	i := min(int(key)*n>>shortBits, n-1)
	var lo, hi int
	step := 8
	if keys[i] >= key {
		hi = i + 1
		for hi-step > 0 && keys[hi-step-1] >= key {
			hi -= step
			step *= 2
		}
		lo = max(0, hi-step-1)
	} else {
		lo = i + 1
		for lo+step < n && keys[lo+step] < key {
			lo += step
			step *= 2
		}
		hi = min(n, lo+step+1)
	}
	for lo < hi {
		m := (lo + hi) / 2
		if keys[m] < key {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return uint32(lo) //nolint:gosec // <= 65536
}
