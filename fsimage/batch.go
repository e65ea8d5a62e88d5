package fsimage

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	batchSize  = 512 << 10
	maxMessage = 512 << 20 // bytes of one message: a folder with 100 million children
	// maxRatio is how much longer than its compressed form a section may be, beyond maxRatioFrom bytes. Sections of
	// real images are at most 20 times longer. The limit protects from files that are made to fill memory and time.
	maxRatio     = 500
	maxRatioFrom = 1 << 20
)

// Batch is a run of whole messages of a section. It is valid until the call to which it was passed returns.
type Batch struct {
	data   []byte
	at     int   // place of the next message in data
	start  int   // place of the last message in data
	offset int64 // of data in the span's data
	span   span
	first  bool // it begins with the section's header

	position position // of a batch of SNAPSHOT_DIFF
}

// Next returns the next message. Its bytes are valid as long as the batch.
func (b *Batch) Next() ([]byte, bool) {
	if b.at >= len(b.data) {
		return nil, false
	}
	n, k := varint(b.data[b.at:])
	b.start = b.at
	b.at += k + int(n) //nolint:gosec // the batch holds whole messages
	return b.data[b.start+k : b.at : b.at], true
}

// Header returns the first message of a section, if the batch begins with it. Sections INODE, SNAPSHOT and STRING_TABLE
// have a header.
func (b *Batch) Header() ([]byte, bool) {
	if !b.first || b.at > 0 {
		return nil, false
	}
	return b.Next()
}

// Bytes returns the size of the batch.
func (b *Batch) Bytes() int { return len(b.data) }

// Damaged returns err as damage of the message that Next returned last.
func (b *Batch) Damaged(err error) error { return b.span.damaged(b.offset+int64(b.start), err) }

// damaged returns err as damage at a byte of the span's data.
func (s span) damaged(offset int64, err error) error {
	if e := new(Error); errors.As(err, &e) || errors.Is(err, context.Canceled) {
		return err
	}
	if s.codec != nil {
		return &Error{Section: s.section, Offset: offset, Start: s.offset, Err: err}
	}
	return &Error{Section: s.section, Offset: s.offset + offset, Err: err}
}

// stream reads the messages of a span, batch by batch.
type stream struct {
	span span
	src  io.ReadCloser
	rest []byte // the beginning of a message, whose end is not yet read
	at   int64  // place of rest in the span's data
	end  bool
}

// open opens the stream of a span.
func (m *Image) open(s span) (*stream, error) {
	var raw io.Reader = io.NewSectionReader(m.file, s.offset, s.length)
	if s.codec == nil {
		return &stream{span: s, src: io.NopCloser(raw)}, nil
	}
	src, err := s.codec(bufio.NewReaderSize(raw, 128<<10))
	if err != nil {
		return nil, s.damaged(0, fmt.Errorf("its compressed data: %w", err))
	}
	return &stream{span: s, src: src}, nil
}

// next fills a batch with the next messages. It returns false at the end.
func (s *stream) next(b *Batch) (bool, error) {
	*b = Batch{data: append(b.data[:0], s.rest...), offset: s.at, span: s.span, first: s.span.first && s.at == 0}
	for size := batchSize; ; size = 2 * len(b.data) {
		if err := s.fill(b, max(size, batchSize)); err != nil {
			return false, err
		}
		end, err := endOfMessages(b.data)
		if err != nil {
			return false, s.span.damaged(s.at+int64(end), err)
		}
		if end == 0 && !s.end { // a message that is longer than the batch
			continue
		}
		if s.end && end < len(b.data) {
			return false, s.span.damaged(s.at+int64(end), errors.New("the last message is cut off"))
		}
		s.rest = append(s.rest[:0], b.data[end:]...)
		b.data = b.data[:end]
		s.at += int64(end)
		return end > 0, nil
	}
}

// fill reads until the batch has size bytes, or the data end.
func (s *stream) fill(b *Batch, size int) error {
	if s.span.codec == nil { // one byte more than the data shows their end
		size = min(size, int(s.span.length-s.at)+1)
	}
	if cap(b.data) < size {
		b.data = append(make([]byte, 0, size), b.data...)
	}
	for !s.end && len(b.data) < size {
		n, err := s.src.Read(b.data[len(b.data):size])
		b.data = b.data[:len(b.data)+n]
		if errors.Is(err, io.EOF) {
			s.end = true
			err = s.checkLength(int64(len(b.data)))
		}
		if err == nil && s.span.codec != nil && (s.at+int64(len(b.data))-maxRatioFrom)/maxRatio > s.span.length {
			err = fmt.Errorf("they are more than %d times longer than in the file", maxRatio)
		}
		if err != nil {
			return s.span.damaged(s.at+int64(len(b.data)), fmt.Errorf("its data: %w", err))
		}
	}
	return nil
}

// checkLength returns an error if an uncompressed span has ended early, because the file was cut off after it was
// opened. last is the number of bytes read after s.at.
func (s *stream) checkLength(last int64) error {
	if s.span.codec == nil && s.at+last < s.span.length {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// endOfMessages returns where the last complete message in data ends.
func endOfMessages(data []byte) (int, error) {
	at := 0
	for {
		n, k := varint(data[at:])
		if k <= 0 {
			if len(data)-at >= 10 {
				return at, errors.New("a message has no length")
			}
			return at, nil
		}
		if n > maxMessage {
			return at, fmt.Errorf("a message of %d bytes: at most %d are allowed", n, maxMessage)
		}
		if n > uint64(len(data)-at-k) { //nolint:gosec // not negative: k bytes were read
			return at, nil
		}
		at += k + int(n) //nolint:gosec // <= len(data)
	}
}

// Read calls fn for each batch of a section, in several goroutines. worker is the number of the goroutine, from 0 to
// workers-1. With one worker, the batches come in their order. If the image has no such section, Read reads nothing.
func (m *Image) Read(ctx context.Context, section string, workers int, fn func(worker int, b *Batch) error) error {
	worker := 0
	return m.readBatches(ctx, section, workers, func() func(*Batch) error {
		this := worker
		worker++
		return func(b *Batch) error { return fn(this, b) }
	})
}

// readBatches reads a section in several workers. It calls begin once for each worker; begin returns the function that
// the worker calls for its batches.
func (m *Image) readBatches(ctx context.Context, section string, workers int, begin func() func(*Batch) error) error {
	src := &source{image: m, spans: m.spans[section]}
	defer src.close()
	group, ctx := errgroup.WithContext(ctx)
	for range workers {
		fn := begin()
		group.Go(func() error { return src.read(ctx, fn) })
	}
	return group.Wait()
}

// source gives the batches of a section to workers. A worker reads its batches itself, so their bytes are in the cache
// of its processor. While one worker reads or decompresses a batch, the others decode theirs.
type source struct {
	image *Image
	mu    sync.Mutex
	spans []span    // that are not yet open
	open  []*shared // that have not ended
}

// shared is a span from which several workers read, one after the other.
type shared struct {
	workers int // guarded by source.mu

	mu       sync.Mutex // guards the rest
	stream   *stream
	position position // of SNAPSHOT_DIFF
	ended    bool
}

// read calls fn for batches until the source has no more.
func (r *source) read(ctx context.Context, fn func(*Batch) error) error {
	b := new(struct {
		Batch
		_ padding
	})
	for {
		s, err := r.take()
		if s == nil {
			return err
		}
		for {
			if err := ctx.Err(); err != nil {
				return err
			}
			if ok, err := s.next(&b.Batch); err != nil {
				return err
			} else if !ok {
				break
			}
			if err := fn(&b.Batch); err != nil {
				return err
			}
		}
		r.ended(s)
	}
}

// padding is at the end of a struct that a worker writes for each message, so that no other worker writes into
// the same cache line.
type padding [128]byte

// take opens the next span, if there is one. It returns the open span with the fewest workers, or nil at the end.
func (r *source) take() (*shared, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.spans) > 0 {
		stream, err := r.image.open(r.spans[0])
		if err != nil {
			return nil, err
		}
		r.spans = r.spans[1:]
		r.open = append(r.open, &shared{stream: stream})
	}
	if len(r.open) == 0 {
		return nil, nil //nolint:nilnil // nil is the end
	}
	s := slices.MinFunc(r.open, func(a, b *shared) int { return cmp.Compare(a.workers, b.workers) })
	s.workers++
	return s, nil
}

// next fills a batch. A batch of SNAPSHOT_DIFF gets its position.
func (s *shared) next(b *Batch) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false, nil
	}
	ok, err := s.stream.next(b)
	if err == nil && s.stream.span.section == SnapshotDiffs {
		err = s.follow(b, ok)
	}
	s.ended = !ok || err != nil
	return ok, err
}

// follow moves the position over a batch, or checks it at the end of the span.
func (s *shared) follow(b *Batch, more bool) error {
	b.position = s.position
	if more {
		return s.position.pass(*b)
	}
	if err := s.position.end(); err != nil {
		return s.stream.span.damaged(s.stream.at, err)
	}
	return nil
}

// ended removes a span that has ended.
func (r *source) ended(s *shared) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.Index(r.open, s); i >= 0 {
		r.open = slices.Delete(r.open, i, i+1)
		_ = s.stream.src.Close() // it was only read
	}
}

// close closes the spans that were not read to their end.
func (r *source) close() {
	for _, s := range r.open {
		_ = s.stream.src.Close() // it was only read
	}
}
