package fsimage

import (
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// field is a field of a protobuf message. A varint or fixed number is in value, bytes are in data.
type field struct {
	num   protowire.Number
	typ   protowire.Type
	value uint64
	data  []byte
}

var (
	errField  = errors.New("a field of the message is cut off or malformed")
	errNumber = errors.New("a list of numbers is cut off or malformed")
)

// A tag is a field's number and wire type, as the message has it: number << 3 | type.
const (
	varintType  = uint64(protowire.VarintType)
	fixed64Type = uint64(protowire.Fixed64Type)
	bytesType   = uint64(protowire.BytesType)
	fixed32Type = uint64(protowire.Fixed32Type)
)

// next reads the first field of b: its tag, its number or its bytes, and how many bytes of b it takes. n is 0 if b does
// not begin with a field. Most tags have one byte, and most lengths one or two, so these are decoded here: the reading
// of an image spends most of its time in this function.
func next(b []byte) (tag, value uint64, data []byte, n int) {
	if len(b) < 2 || b[0] >= 0x80 || b[0] < 8 {
		return nextLong(b)
	}
	tag = uint64(b[0])
	switch tag & 7 {
	case bytesType:
		length, from := uint(b[1]), uint(2)
		if length >= 0x80 {
			if len(b) < 3 || b[2] >= 0x80 {
				return nextLong(b)
			}
			length, from = length&0x7f|uint(b[2])<<7, 3
		}
		end := from + length
		if end > uint(len(b)) {
			return 0, 0, nil, 0
		}
		return tag, 0, b[from:end:end], int(end) //nolint:gosec // <= len(b)
	case varintType:
		if b[1] < 0x80 {
			return tag, uint64(b[1]), nil, 2
		}
		value, n = protowire.ConsumeVarint(b[1:])
		if n <= 0 {
			return 0, 0, nil, 0
		}
		return tag, value, nil, n + 1
	case fixed64Type:
		if len(b) >= 9 {
			return tag, binary.LittleEndian.Uint64(b[1:]), nil, 9
		}
	case fixed32Type:
		if len(b) >= 5 {
			return tag, uint64(binary.LittleEndian.Uint32(b[1:])), nil, 5
		}
	}
	return 0, 0, nil, 0
}

// nextLong is next for fields with a long tag or a long length. Groups do not occur in images.
func nextLong(b []byte) (tag, value uint64, data []byte, n int) {
	tag, n = protowire.ConsumeVarint(b)
	if n <= 0 || tag>>3 == 0 || tag>>3 > uint64(protowire.MaxValidNumber) {
		return 0, 0, nil, 0
	}
	m := 0
	switch tag & 7 {
	case varintType:
		value, m = protowire.ConsumeVarint(b[n:])
	case bytesType:
		data, m = protowire.ConsumeBytes(b[n:])
	case fixed64Type:
		value, m = protowire.ConsumeFixed64(b[n:])
	case fixed32Type:
		var v uint32
		v, m = protowire.ConsumeFixed32(b[n:])
		value = uint64(v)
	}
	if m <= 0 {
		return 0, 0, nil, 0
	}
	return tag, value, data, n + m
}

// varint reads a varint, and returns how many bytes it takes, or a negative number.
func varint(b []byte) (uint64, int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	if len(b) > 1 && b[1] < 0x80 { // the length of most inodes
		return uint64(b[0]&0x7f) | uint64(b[1])<<7, 2
	}
	return protowire.ConsumeVarint(b)
}

// skipNumber returns how many bytes the first field of b takes, if it is a number with a short tag; otherwise 0.
func skipNumber(b []byte) int {
	n := 1
	for n < len(b) && b[n] >= 0x80 {
		n++
	}
	if n >= len(b) || n > 10 {
		return 0
	}
	return n + 1
}

// shape has the known fields of a message, as bits: 1<<5 is field 5. Numbers and bytes occur at most once; lists may
// occur often. protobuf merges fields that occur twice, and skips those of another type. No NameNode writes such a
// message, so an image with one is damaged: the bytes of a needed EDEK may be hidden in the message.
type shape struct{ numbers, bytes, lists uint32 }

var (
	errTwice = errors.New("a field of the message is there twice")
	errType  = errors.New("a field of the message has another type than in an image")
)

// check checks the next field of a message, by its tag. seen has the fields before it, as bits.
func (s *shape) check(tag uint64, seen uint32) (uint32, error) {
	num, typ := tag>>3, tag&7
	if num >= 32 {
		return seen, nil
	}
	bit := uint32(1) << num
	if seen&bit&(s.numbers|s.bytes) != 0 {
		return seen, errTwice
	}
	if bit&s.numbers != 0 && typ != varintType || bit&s.bytes != 0 && typ != bytesType {
		return seen, errType
	}
	return seen | bit, nil
}

// fields calls f for each field of a message. It is for messages that are rare: the closure costs time.
func fields(b []byte, s shape, f func(field) error) error {
	seen := uint32(0)
	for len(b) > 0 {
		tag, value, data, n := next(b)
		if n == 0 {
			return errField
		}
		var err error
		if seen, err = s.check(tag, seen); err != nil {
			return err
		}
		//nolint:gosec // checked by next
		one := field{protowire.Number(tag >> 3), protowire.Type(tag & 7), value, data}
		if err := f(one); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// numbers collects a repeated field of numbers, packed or not, as the concatenation of their varints. A single packed
// run, which is what Hadoop writes, is not copied.
type numbers struct {
	packed []byte
	own    bool // packed is a copy
}

func (s *numbers) add(f *field) error {
	switch {
	case f.typ == protowire.BytesType && s.packed == nil:
		s.packed = f.data
		return nil
	case f.typ != protowire.BytesType && f.typ != protowire.VarintType:
		return fmt.Errorf("field %d is no list of numbers", f.num)
	}
	if !s.own {
		s.packed, s.own = append([]byte(nil), s.packed...), true
	}
	if f.typ == protowire.BytesType {
		s.packed = append(s.packed, f.data...)
	} else {
		s.packed = protowire.AppendVarint(s.packed, f.value)
	}
	return nil
}

// A List is a list of numbers in their encoded form. Its bytes are valid until the batch's next call.
type List []byte

// Next takes the first number from the list. It reports false at the end; then Err says whether the list was whole.
func (l *List) Next() (uint64, bool) {
	v, n := varint(*l)
	if n <= 0 {
		return 0, false
	}
	*l = (*l)[n:]
	return v, true
}

// Err returns the damage at which Next ended.
func (l List) Err() error {
	if len(l) > 0 {
		return errNumber
	}
	return nil
}
