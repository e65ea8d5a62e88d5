package fsimage

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// TestDecodersOfZstd: the decoder of a stream that was closed reads the next one, also after a damaged stream or one
// that was not read to its end. Streams that are open at the same time have a decoder each.
func TestDecodersOfZstd(t *testing.T) {
	packer, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var all zstdDecoders
	open := func(text string) (*zstdStream, func()) {
		t.Helper()
		r, err := all.open(bytes.NewReader(packer.EncodeAll([]byte(text), nil)))
		if err != nil {
			t.Fatal(err)
		}
		return r.(*zstdStream), func() {
			t.Helper()
			if got, err := io.ReadAll(r); err != nil || string(got) != text {
				t.Errorf("%q, %v, want %q", got, err, text)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	a, endA := open("a")
	b, endB := open(strings.Repeat("b", 1<<20))
	if a.Decoder == b.Decoder {
		t.Fatal("two open streams have one decoder")
	}
	first := a.Decoder
	endA()
	endB()
	for _, broken := range []string{"no zstd", "\x28\xb5\x2f\xfd"} {
		r, err := all.open(strings.NewReader(broken))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); err == nil {
			t.Errorf("%q was read", broken)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	c, _ := open(strings.Repeat("c", 1<<20))
	if _, err := io.ReadFull(c, make([]byte, 3)); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	d, endD := open("d")
	if d.Decoder != first {
		t.Error("the decoder was not used again")
	}
	endD()
}
