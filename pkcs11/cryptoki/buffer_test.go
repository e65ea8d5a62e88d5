package cryptoki

import (
	"bytes"
	"testing"
)

// TestBuffers: a buffer has the length that its user needs, and nothing of its last user is in it.
func TestBuffers(t *testing.T) {
	for _, n := range []int{0, 16, leastSize - 1, leastSize, 32 << 10, bufferSize, bufferSize + 1} {
		for range 3 {
			b := NewBuffer(n)
			if len(b) != n || len(bytes.Trim(b[:cap(b)], "\x00")) > 0 {
				t.Fatalf("a buffer for %d bytes has %d, or is not wiped", n, len(b))
			}
			for i := range b {
				b[i] = 'x'
			}
			clear(b)
			FreeBuffer(b)
		}
	}
	FreeBuffer(nil)
	FreeBuffer(make([]byte, 10, bufferSize)[2:]) // a part of a buffer is not taken
	if b := NewBuffer(bufferSize); cap(b) != bufferSize {
		t.Fatalf("a buffer has a capacity of %d", cap(b))
	}
}
