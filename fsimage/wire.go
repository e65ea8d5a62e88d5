package fsimage

import (
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

// next reads the first field of b, and returns how many bytes it takes; 0 if b does not begin with a field. Groups do
// not occur in images. Fields have few numbers, and short values are the rule, so that one byte is the case to be fast.
func next(b []byte, f *field) int {
	tag, n := varint(b)
	if n <= 0 {
		return 0
	}
	num, typ := protowire.DecodeTag(tag)
	if num <= 0 {
		return 0
	}
	f.num, f.typ, f.value, f.data = num, typ, 0, nil
	var m int
	switch typ {
	case protowire.VarintType:
		f.value, m = varint(b[n:])
	case protowire.BytesType:
		length, k := varint(b[n:])
		if k <= 0 || length > uint64(len(b)-n-k) { //nolint:gosec // not negative: k bytes of b were read
			return 0
		}
		m = k + int(length) //nolint:gosec // <= len(b)
		f.data = b[n+k : n+m : n+m]
	case protowire.Fixed64Type:
		f.value, m = protowire.ConsumeFixed64(b[n:])
	case protowire.Fixed32Type:
		var v uint32
		v, m = protowire.ConsumeFixed32(b[n:])
		f.value = uint64(v)
	default:
		return 0
	}
	if m <= 0 {
		return 0
	}
	return n + m
}

// varint reads a varint, and returns how many bytes it takes, or a negative number.
func varint(b []byte) (uint64, int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	return protowire.ConsumeVarint(b)
}

// fields calls f for each field of a message. It is for messages that are rare: the closure costs time.
func fields(b []byte, f func(field) error) error {
	for len(b) > 0 {
		var one field
		n := next(b, &one)
		if n == 0 {
			return errField
		}
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
