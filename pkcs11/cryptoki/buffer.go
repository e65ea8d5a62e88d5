package cryptoki

import "sync"

// buffers has wiped buffers of bufferSize bytes for the data and the results of Encrypt.
var buffers sync.Pool

const (
	// bufferSize is 64 KiB of blocks, which is a batch of 2,000 EDEKs, with the block that proves the key.
	bufferSize = 64<<10 + 16
	leastSize  = 4 << 10 // a smaller buffer is made quickly
)

// NewBuffer returns a buffer of n bytes, which are zero.
func NewBuffer(n int) []byte {
	if n < leastSize || n > bufferSize {
		return make([]byte, n)
	}
	if b, ok := buffers.Get().(*[bufferSize]byte); ok {
		return b[:n]
	}
	return make([]byte, n, bufferSize)
}

// FreeBuffer keeps a buffer of NewBuffer for another caller of NewBuffer. The caller has wiped it, and nothing else
// uses it. Other slices are left to the garbage collector.
func FreeBuffer(b []byte) {
	if cap(b) == bufferSize {
		buffers.Put((*[bufferSize]byte)(b[:bufferSize]))
	}
}
