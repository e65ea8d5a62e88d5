package fsimage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
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
	at     int // of the next message
	start  int // of the last message
	offset int64
	span   span
	first  bool // it begins with the section's header
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
	at   int64  // of rest in the span's data
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

// next fills a batch with the next messages. It reports false at the end.
func (s *stream) next(b *Batch) (bool, error) {
	*b = Batch{data: append(b.data[:0], s.rest...), offset: s.at, span: s.span, first: s.span.first && s.at == 0}
	for size := batchSize; ; size = 2 * len(b.data) {
		if err := s.fill(b, max(size, batchSize)); err != nil {
			return false, err
		}
		end, err := border(b.data)
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
			err = s.whole(int64(len(b.data)))
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

// whole returns an error if the data of a span that is not compressed end early: the file became shorter.
func (s *stream) whole(last int64) error {
	if s.span.codec == nil && s.at+last < s.span.length {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// border returns where the last whole message in data ends.
func border(data []byte) (int, error) {
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

// Read calls fn for the messages of a section, in parallel: for a batch at a time in each worker, in any order. worker
// is less than workers. Sub-sections are read at the same time. It reads nothing if the image has no such section.
func (m *Image) Read(ctx context.Context, section string, workers int, fn func(worker int, b *Batch) error) error {
	spans := m.spans[section]
	if len(spans) >= workers || workers == 1 {
		return m.eachSpan(ctx, section, workers, fn)
	}
	group, ctx := errgroup.WithContext(ctx)
	full, free := make(chan *Batch, workers), make(chan *Batch, 2*workers+1)
	for range cap(free) {
		free <- new(Batch)
	}
	group.Go(func() error {
		defer close(full)
		for _, s := range spans {
			if err := m.produce(ctx, s, full, free); err != nil {
				return err
			}
		}
		return nil
	})
	for worker := range workers {
		group.Go(func() error {
			for b := range full {
				if err := fn(worker, b); err != nil {
					return err
				}
				free <- b
			}
			return nil
		})
	}
	return group.Wait()
}

// produce sends the batches of a span, in buffers from free.
func (m *Image) produce(ctx context.Context, s span, full chan<- *Batch, free <-chan *Batch) error {
	src, err := m.open(s)
	if err != nil {
		return err
	}
	defer src.src.Close()
	for {
		var b *Batch
		select {
		case b = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		if ok, err := src.next(b); !ok {
			return err
		}
		select {
		case full <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// eachSpan is Read with one goroutine for several parts of a section. A part's batches come in their order.
func (m *Image) eachSpan(ctx context.Context, section string, workers int, fn func(worker int, b *Batch) error) error {
	spans := m.spans[section]
	var mu sync.Mutex
	take := func() (s span, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(spans) == 0 {
			return s, false
		}
		s, spans = spans[0], spans[1:]
		return s, true
	}
	group, ctx := errgroup.WithContext(ctx)
	for worker := range max(1, min(workers, len(spans))) {
		group.Go(func() error {
			var b Batch
			for s, ok := take(); ok; s, ok = take() {
				if err := m.readSpan(ctx, s, &b, func(b *Batch) error { return fn(worker, b) }); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// readSpan calls fn for the batches of a span.
func (m *Image) readSpan(ctx context.Context, s span, b *Batch, fn func(*Batch) error) error {
	src, err := m.open(s)
	if err != nil {
		return err
	}
	defer src.src.Close()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if ok, err := src.next(b); !ok {
			return err
		}
		if err := fn(b); err != nil {
			return err
		}
	}
}

// part reads a part of a section in the order of its messages.
type part interface {
	batch(b *Batch) error
	end() error // at the end of the part
}

// readParts is like Read, for a section whose messages depend on those before them.
func (m *Image) readParts(ctx context.Context, section string, workers int, newPart func() part) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for _, s := range m.spans[section] {
		group.Go(func() error {
			p, b := newPart(), new(Batch)
			if err := m.readSpan(ctx, s, b, p.batch); err != nil {
				return err
			}
			if err := p.end(); err != nil {
				return s.damaged(b.offset+int64(len(b.data)), err)
			}
			return nil
		})
	}
	return group.Wait()
}
