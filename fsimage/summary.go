package fsimage

import (
	"encoding/binary"
	"fmt"
	"io"
)

// section is an entry of the index.
type section struct {
	name           string
	length, offset uint64
}

// summary is the message FileSummary, the index of an image.
type summary struct {
	layout   int32
	codec    string
	sections []section
}

// readSummary reads the index at the end of an image, and returns the byte where it begins.
func readSummary(file io.ReaderAt, size int64) (*summary, int64, error) {
	damaged := func(at int64, format string, args ...any) (*summary, int64, error) {
		return nil, 0, &Error{Offset: at, Err: fmt.Errorf(format, args...)}
	}
	at := size - trailer
	if at < int64(len(magic)) {
		return damaged(size, "the file has only %d bytes", size)
	}
	var last [trailer]byte
	if _, err := file.ReadAt(last[:], at); err != nil {
		return damaged(at, "%w", err)
	}
	length := int64(binary.BigEndian.Uint32(last[:]))
	if length > maxSummary || length > at-int64(len(magic)) {
		return damaged(at, "the last 4 bytes of the file are no length of an index: %d", length)
	}
	b := make([]byte, length)
	if _, err := file.ReadAt(b, at-length); err != nil {
		return damaged(at-length, "%w", err)
	}
	m, n := varint(b)
	if n <= 0 || m != uint64(len(b)-n) { //nolint:gosec // n <= len(b)
		return damaged(at-length, "these bytes are not a message of %d bytes", length)
	}
	s, err := decodeSummary(b[n:])
	if err != nil {
		return damaged(at-length, "%w", err)
	}
	return s, at - length, nil
}

func decodeSummary(b []byte) (*summary, error) {
	var s summary
	var version uint64
	err := fields(b, shape{numbers: 1<<1 | 1<<2, bytes: 1 << 3, lists: 1 << 4}, func(f field) error {
		switch f.num {
		case 1:
			version = f.value
		case 2:
			s.layout = int32(uint32(f.value)) //nolint:gosec // Hadoop writes the negative number as unsigned 32 bits
		case 3:
			s.codec = string(f.data)
		case 4:
			var e section
			err := fields(f.data, shape{numbers: 1<<2 | 1<<3, bytes: 1 << 1}, func(f field) error {
				switch f.num {
				case 1:
					e.name = string(f.data)
				case 2:
					e.length = f.value
				case 3:
					e.offset = f.value
				}
				return nil
			})
			s.sections = append(s.sections, e)
			return err
		}
		return nil
	})
	if err == nil && version != 1 {
		err = fmt.Errorf("the version of the index is %d, and only version 1 is known", version)
	}
	return &s, err
}
