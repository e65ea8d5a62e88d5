// Package writable reads and writes the elements of Hadoop's Writables: numbers of variable length, texts and bytes.
// Delegation tokens and master keys consist of these elements, on the wire and in ZooKeeper.
//
// The format is that of org.apache.hadoop.io.WritableUtils and Text.
package writable

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// AppendLong writes a number like WritableUtils.writeVLong. A number from -112 to 127 is one byte. Any other number is
// a byte with sign and length, and then the bytes of the number (of its complement if it is negative), highest byte
// first. The format of a VInt is the same.
func AppendLong(b []byte, n int64) []byte {
	if n >= -112 && n <= 127 {
		return append(b, byte(n))
	}
	first := -112
	if n < 0 {
		n, first = ^n, -120
	}
	size := (bits.Len64(uint64(n)) + 7) / 8 //nolint:gosec // n is not negative here
	var word [8]byte
	binary.BigEndian.PutUint64(word[:], uint64(n)) //nolint:gosec // n is not negative here
	b = append(b, byte(first-size))
	return append(b, word[8-size:]...)
}

// AppendText writes a Text: its length in bytes as a VInt, and UTF-8.
func AppendText(b []byte, s string) []byte {
	return append(AppendLong(b, int64(len(s))), s...)
}

// Reader reads elements from the front of Rest. After a failure every result is empty.
type Reader struct {
	Rest   []byte
	Failed bool
}

// Take returns the next n bytes, which share the memory of Rest.
func (r *Reader) Take(n int64) []byte {
	if n < 0 || n > int64(len(r.Rest)) || r.Failed {
		r.Failed, r.Rest = true, nil
		return []byte{}
	}
	taken := r.Rest[:n:n]
	r.Rest = r.Rest[n:]
	return taken
}

// Text reads a Text.
func (r *Reader) Text() string { return string(r.Take(r.Long())) }

// Long reads a VLong.
func (r *Reader) Long() int64 {
	head := r.Take(1)
	if r.Failed {
		return 0
	}
	first := int64(int8(head[0])) //nolint:gosec // a signed byte, as in Java
	if first >= -112 {
		return first
	}
	size, negative := -112-first, first < -120
	if negative {
		size = -120 - first
	}
	var word [8]byte
	copy(word[8-size:], r.Take(size))
	n := int64(binary.BigEndian.Uint64(word[:])) //nolint:gosec // eight bytes are a long
	if negative {
		n = ^n
	}
	return n
}

// Int reads a VInt. It fails for a number that is not an int32.
func (r *Reader) Int() int32 {
	n := r.Long()
	if n < math.MinInt32 || n > math.MaxInt32 {
		r.Failed = true
		return 0
	}
	return int32(n)
}
