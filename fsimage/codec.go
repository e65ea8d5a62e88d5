package fsimage

import (
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// codec opens the stream of a section. nil means that the section is not compressed.
type codec func(io.Reader) (io.ReadCloser, error)

// codecs are Hadoop's classes of compression. A section is one stream of its own.
func codecs() map[string]codec {
	return map[string]codec{
		"DefaultCodec":   zlib.NewReader,
		"DeflateCodec":   zlib.NewReader,
		"GzipCodec":      func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) },
		"BZip2Codec":     func(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(bzip2.NewReader(r)), nil },
		"SnappyCodec":    blocks(decodeSnappy),
		"Lz4Codec":       blocks(lz4.UncompressBlock),
		"ZStandardCodec": new(zstdDecoders).open,
	}
}

const codecPackage = "org.apache.hadoop.io.compress."

func codecOf(class string) (codec, error) {
	if class == "" {
		return nil, nil //nolint:nilnil // nil is the codec of data that are not compressed
	}
	name, ok := strings.CutPrefix(class, codecPackage)
	if c := codecs()[name]; ok && c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("the compression %q is not known: save the image with one of Hadoop's own classes in "+
		"dfs.image.compression.codec, or without compression", class)
}

// maxWindow bounds the memory of a zstd stream. Hadoop's levels 1 to 22 have windows up to 128 MB.
const maxWindow = 128 << 20

// zstdDecoders opens the zstd streams of an image. A decoder has a buffer of the size of the window, so the decoder of
// a stream that was read is used again.
type zstdDecoders struct {
	mu    sync.Mutex
	spare *zstd.Decoder // nil for none
}

func (z *zstdDecoders) open(r io.Reader) (io.ReadCloser, error) {
	z.mu.Lock()
	d := z.spare
	z.spare = nil
	z.mu.Unlock()
	if d != nil {
		if err := d.Reset(r); err != nil {
			return nil, err
		}
		return &zstdStream{d, z}, nil
	}
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow),
		zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	return &zstdStream{d, z}, nil
}

// zstdStream is a stream that gives its decoder back.
type zstdStream struct {
	*zstd.Decoder
	from *zstdDecoders
}

func (s *zstdStream) Close() error {
	z := s.from
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.spare == nil && s.Reset(nil) == nil {
		z.spare = s.Decoder
	} else {
		s.Decoder.Close()
	}
	return nil
}

func decodeSnappy(src, dst []byte) (int, error) {
	n, err := snappy.DecodedLen(src)
	if err != nil {
		return 0, err
	}
	if n > len(dst) {
		return 0, errChunk
	}
	b, err := snappy.Decode(dst[:n], src)
	return len(b), err
}

// maxBlock bounds the blocks of Snappy and LZ4. Hadoop's blocks have the size of io.compression.codec.*.buffersize, 256
// KB.
const maxBlock = 64 << 20

var (
	errBlock = fmt.Errorf("a compressed block is cut off, or longer than %d bytes", maxBlock)
	errChunk = errors.New("a compressed chunk gives more data than its block has")
)

// blockReader reads the stream of Hadoop's BlockCompressorStream: the length of a block, and chunks until that many
// bytes are decompressed. A chunk is its compressed length and its bytes. The lengths have 4 bytes, big-endian.
type blockReader struct {
	src     io.Reader
	decode  func(src, dst []byte) (int, error)
	in, out []byte
	rest    []byte // decompressed bytes that are not yet read
	missing int    // bytes of the block that are not yet decompressed
	failed  error
	begun   bool // a block has begun
}

func blocks(decode func(src, dst []byte) (int, error)) codec {
	return func(r io.Reader) (io.ReadCloser, error) {
		return io.NopCloser(&blockReader{src: r, decode: decode}), nil
	}
}

func (r *blockReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.failed == nil {
			r.failed = r.chunk()
		}
		if r.failed != nil {
			return 0, r.failed
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// chunk decompresses the next chunk. It returns io.EOF at the end of the stream, which is the end of a block.
func (r *blockReader) chunk() error {
	if r.missing == 0 {
		n, err := r.length()
		if errors.Is(err, io.EOF) && r.begun {
			return io.EOF
		}
		if err != nil {
			return errBlock
		}
		r.missing, r.begun = n, true
		return nil
	}
	n, err := r.length()
	if err != nil {
		return errBlock
	}
	if r.in, err = readN(r.src, r.in, n); err != nil {
		return errBlock
	}
	// The file states the block's length, which may be false. So the chunk's real size bounds the memory: LZ4 expands
	// most, by a factor of up to 255.
	if size := min(r.missing, 255*n+64); cap(r.out) < size {
		r.out = make([]byte, size)
	}
	n, err = r.decode(r.in, r.out[:min(r.missing, cap(r.out))])
	if err != nil {
		return fmt.Errorf("a compressed chunk: %w", err)
	}
	if n == 0 {
		return errBlock // so that a stream of empty chunks does not run for ever
	}
	r.rest, r.missing = r.out[:n], r.missing-n
	return nil
}

// length reads the length of a block or chunk.
func (r *blockReader) length() (int, error) {
	var b [4]byte
	if _, err := io.ReadFull(r.src, b[:]); err != nil {
		return 0, err
	}
	if n := binary.BigEndian.Uint32(b[:]); n <= maxBlock {
		return int(n), nil
	}
	return 0, errBlock
}

// readN reads n bytes into b or a longer slice. It allocates step by step, so a false n costs at most one step.
func readN(r io.Reader, b []byte, n int) ([]byte, error) {
	const step = 1 << 20
	b = b[:0]
	for len(b) < n {
		k := min(step, n-len(b))
		if cap(b)-len(b) < k {
			b = append(b, make([]byte, k)...)[:len(b)]
		}
		if _, err := io.ReadFull(r, b[len(b):len(b)+k]); err != nil {
			return b, err
		}
		b = b[:len(b)+k]
	}
	return b, nil
}
