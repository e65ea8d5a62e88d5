// Package imagetest writes fsimages for tests: small ones with each kind of record, and large ones for measurements.
// Its messages have all fields that a NameNode needs to load them. It shares no code with package fsimage, which it
// tests.
package imagetest

import (
	"bytes"
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"google.golang.org/protobuf/encoding/protowire"
)

// The compressions that a Writer knows.
const (
	None    = ""
	Deflate = "org.apache.hadoop.io.compress.DefaultCodec"
	Gzip    = "org.apache.hadoop.io.compress.GzipCodec"
	Snappy  = "org.apache.hadoop.io.compress.SnappyCodec"
	LZ4     = "org.apache.hadoop.io.compress.Lz4Codec"
	Zstd    = "org.apache.hadoop.io.compress.ZStandardCodec"
)

// Codecs has the compressions above.
var Codecs = []string{None, Deflate, Gzip, Snappy, LZ4, Zstd}

// Section is an entry of the index that a Writer has written.
type Section struct {
	Name           string
	Offset, Length int64
}

// Writer writes the sections of an image, one after the other. The first error stays; Close returns it.
type Writer struct {
	Layout   int32
	Codec    string
	Sections []Section

	out       io.Writer
	at        int64 // bytes written
	err       error
	name      string
	begun     int64 // of the section
	subBegun  int64 // of the sub-section
	subs      []Section
	to        io.Writer // the section
	endStream func() error
}

// NewWriter begins an image.
func NewWriter(out io.Writer, codec string) *Writer {
	w := &Writer{Layout: -67, Codec: codec, out: out}
	_, w.err = w.Write([]byte("HDFSIMG1"))
	return w
}

// Write writes bytes of the file as they are.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	w.at += int64(n)
	return n, err
}

// Begin begins a section.
func (w *Writer) Begin(name string) {
	w.name, w.begun, w.subBegun, w.subs = name, w.at, w.at, nil
	w.to, w.endStream = w, func() error { return nil }
	switch w.Codec {
	case Deflate:
		z := zlib.NewWriter(w)
		w.to, w.endStream = z, z.Close
	case Gzip:
		z := gzip.NewWriter(w)
		w.to, w.endStream = z, z.Close
	case Zstd:
		z, err := zstd.NewWriter(w)
		if err != nil {
			w.err = err
			return
		}
		w.to, w.endStream = z, z.Close
	case Snappy:
		z := &blockWriter{to: w, encode: func(b []byte) ([]byte, error) { return snappy.Encode(nil, b), nil }}
		w.to, w.endStream = z, z.close
	case LZ4:
		z := &blockWriter{to: w, encode: encodeLZ4}
		w.to, w.endStream = z, z.close
	}
}

// Message writes a message into the section.
func (w *Writer) Message(m []byte) {
	if w.err == nil {
		_, w.err = w.to.Write(protowire.AppendVarint(nil, uint64(len(m))))
	}
	if w.err == nil {
		_, w.err = w.to.Write(m)
	}
}

// Sub ends a sub-section, if anything was written since the last one.
func (w *Writer) Sub() {
	if w.at > w.subBegun {
		w.subs = append(w.subs, Section{w.name + "_SUB", w.subBegun, w.at - w.subBegun})
		w.subBegun = w.at
	}
}

// End ends the section.
func (w *Writer) End() {
	if w.err == nil {
		w.err = w.endStream()
	}
	w.Sub()
	if w.Codec == None && len(w.subs) > 1 {
		w.Sections = append(w.Sections, w.subs...)
	}
	w.Sections = append(w.Sections, Section{w.name, w.begun, w.at - w.begun})
}

// Close writes the index.
func (w *Writer) Close() error {
	s := number(nil, 1, 1)
	s = number(s, 2, uint64(uint32(w.Layout))) //nolint:gosec // as Hadoop does
	if w.Codec != None {
		s = text(s, 3, w.Codec)
	}
	for _, e := range w.Sections {
		m := text(nil, 1, e.Name)
		m = number(m, 2, uint64(e.Length)) //nolint:gosec // not negative
		m = number(m, 3, uint64(e.Offset)) //nolint:gosec // not negative
		s = message(s, 4, m)
	}
	s = append(protowire.AppendVarint(nil, uint64(len(s))), s...)
	s = binary.BigEndian.AppendUint32(s, uint32(len(s))) //nolint:gosec // a few KB
	if w.err == nil {
		_, w.err = w.Write(s)
	}
	return w.err
}

// blockWriter writes Hadoop's blocks: the length of the data, then chunks of their compressed length and bytes.
type blockWriter struct {
	to     io.Writer
	encode func([]byte) ([]byte, error)
	block  bytes.Buffer
}

// blockSize is about Hadoop's. Messages are longer or shorter, and cross the borders of blocks.
const blockSize = 200 << 10

func (z *blockWriter) Write(p []byte) (int, error) {
	z.block.Write(p)
	for z.block.Len() >= blockSize {
		if err := z.write(z.block.Next(blockSize)); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// write writes a block in two chunks: Hadoop does so if a single write is longer than its buffer.
func (z *blockWriter) write(b []byte) error {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(b))) //nolint:gosec // <= blockSize
	for _, part := range [][]byte{b[:len(b)/2], b[len(b)/2:]} {
		if len(part) == 0 {
			continue
		}
		c, err := z.encode(part)
		if err != nil {
			return err
		}
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(c))), c...) //nolint:gosec // a block
	}
	_, err := z.to.Write(out)
	return err
}

func (z *blockWriter) close() error { return z.write(z.block.Bytes()) }

func encodeLZ4(b []byte) ([]byte, error) {
	out := make([]byte, lz4.CompressBlockBound(len(b)))
	var c lz4.Compressor
	n, err := c.CompressBlock(b, out)
	if n == 0 && err == nil { // it cannot be compressed: one literal of all bytes
		return literalLZ4(b), nil
	}
	return out[:n], err
}

// literalLZ4 returns an LZ4 block that is a single literal.
func literalLZ4(b []byte) []byte {
	if len(b) < 15 {
		return append([]byte{byte(len(b)) << 4}, b...)
	}
	out := []byte{0xf0}
	n := len(b) - 15
	for ; n >= 255; n -= 255 {
		out = append(out, 255)
	}
	return append(append(out, byte(n)), b...)
}

// number, text and message append a field to a message.
func number(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func text(b []byte, num protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func message(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func fixed64(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(b, num, protowire.Fixed64Type), v)
}

// packed appends a list of numbers.
func packed(b []byte, num protowire.Number, list []uint64) []byte {
	if len(list) == 0 {
		return b
	}
	var p []byte
	for _, v := range list {
		p = protowire.AppendVarint(p, v)
	}
	return message(b, num, p)
}
