package fsimage_test

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"claviger/fsimage"
)

// part is a field of a message, of any type.
type part struct {
	num   protowire.Number
	typ   protowire.Type
	value uint64
	data  []byte
}

func decodeParts(t *testing.T, b []byte) (parts []part) {
	t.Helper()
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			t.Fatal("a message of the sample cannot be read")
		}
		b = b[n:]
		p := part{num: num, typ: typ}
		switch typ {
		case protowire.VarintType:
			p.value, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			p.data, n = protowire.ConsumeBytes(b)
		case protowire.Fixed32Type:
			n = 4
			p.data = b[:4]
		default:
			n = 8
			p.data = b[:8]
		}
		parts, b = append(parts, p), b[n:]
	}
	return parts
}

func encodeParts(parts []part) (b []byte) {
	for _, p := range parts {
		b = protowire.AppendTag(b, p.num, p.typ)
		switch p.typ {
		case protowire.VarintType:
			b = protowire.AppendVarint(b, p.value)
		case protowire.BytesType:
			b = protowire.AppendBytes(b, p.data)
		default:
			b = append(b, p.data...)
		}
	}
	return b
}

// inside changes the message that is at path in a message, as in INode 4 (file), 9 (attributes), 1 (the first one).
func inside(t *testing.T, m []byte, change func([]part) []part, path ...protowire.Number) []byte {
	t.Helper()
	parts := decodeParts(t, m)
	if len(path) == 0 {
		return encodeParts(change(parts))
	}
	for i := range parts {
		if parts[i].num == path[0] {
			parts[i].data = inside(t, parts[i].data, change, path[1:]...)
			return encodeParts(parts)
		}
	}
	t.Fatalf("no field %d", path[0])
	return nil
}

// changed returns the image of sample with one message of a section changed.
func changed(t *testing.T, section string, number int, change func([]part) []part, path ...protowire.Number) []byte {
	t.Helper()
	return rewrite(t, section, func(b []byte) (out []byte) {
		for i := 0; len(b) > 0; i++ {
			m, n := protowire.ConsumeBytes(b)
			if i == number {
				m = inside(t, m, change, path...)
			}
			out, b = protowire.AppendBytes(out, m), b[n:]
		}
		return out
	})
}

// double has a field twice.
func double(num protowire.Number) func([]part) []part {
	return func(parts []part) []part {
		for _, p := range parts {
			if p.num == num {
				return append(parts, p)
			}
		}
		return nil
	}
}

// set gives a field another type, or another value.
func set(p part) func([]part) []part {
	return func(parts []part) []part {
		for i := range parts {
			if parts[i].num == p.num {
				parts[i] = p
			}
		}
		return parts
	}
}

func fixed(b ...byte) part { return part{num: 1, typ: protowire.Fixed32Type, data: b} }

// The third inode of sample is the file /zone/a: its message, and the paths of messages in it.
const fileA = 3

var (
	toAttrs = []protowire.Number{4, 9}
	toUser  = []protowire.Number{4, 9, 1}
)

// TestHiddenEDEKs: a message in which an EDEK could be hidden, and that no NameNode writes, is damage. Such are fields
// that occur twice, of which protobuf takes the last one; fields of another type, which protobuf drops; the body of a
// file in a folder; and attributes whose names are not in the image.
func TestHiddenEDEKs(t *testing.T) {
	for _, c := range []struct {
		want, section string
		message       int
		change        func([]part) []part
		path          []protowire.Number
	}{
		{"fields of another type", "INODE", fileA, set(part{num: 1, value: 2}), nil},
		{"fields of another type", "INODE", fileA, set(part{num: 1, value: 3}), nil},
		{"there twice", "INODE", fileA, double(1), nil},
		{"there twice", "INODE", fileA, double(2), nil},
		{"there twice", "INODE", fileA, double(4), nil},
		{"another type than", "INODE", fileA, set(part{num: 2, typ: protowire.BytesType}), nil},
		{"there twice", "INODE", fileA, double(9), []protowire.Number{4}},
		{"two attributes with the same name", "INODE", 4, double(1), toAttrs},
		{"there twice", "INODE", 4, double(1), toUser},
		{"there twice", "INODE", 4, double(2), toUser},
		{"there twice", "INODE", 4, double(3), []protowire.Number{4, 9, 1, 2}},
		{"another type than", "INODE", 4, set(part{num: 3, value: 1}), []protowire.Number{4, 9, 1, 2}},
		{"another type than", "INODE", 4, set(part{num: 1, value: 1}), toUser},
		{"which is not in the section STRING_TABLE", "INODE", 4, set(fixed(0xe0, 0x7f, 0, 0)), toUser},
		{"which is not in the section STRING_TABLE", "INODE", 4, set(fixed(0x60, 0, 0, 0x40)), toUser},
		{"has no name", "INODE", 4, func(p []part) []part { return p[1:] }, toUser},
		{"there twice", "INODE", 2, double(6), []protowire.Number{5}},
		{"the number 1 is there twice", "STRING_TABLE", 4, set(part{num: 1, value: 3<<29 | 1}), nil},
		{"encryption.info\" is there twice", "STRING_TABLE", 4, set(part{num: 2, typ: protowire.BytesType,
			data: []byte("hdfs.crypto.file.encryption.info")}), nil},
		{"there twice", "STRING_TABLE", 0, double(2), nil},
		{"another type than", "SNAPSHOT_DIFF", 0, set(part{num: 3, typ: protowire.BytesType}), nil},
		{"there twice", "SNAPSHOT_DIFF", 0, double(3), nil},
	} {
		image := changed(t, c.section, c.message, c.change, c.path...)
		mustBeDamaged(t, image, c.want, "section "+c.section, c.want)
	}
}

// TestAbsentName: if the image does not have the name of an attribute, no attribute has that name, also not one of the
// number 0.
func TestAbsentName(t *testing.T) {
	image := changed(t, "STRING_TABLE", 4, set(part{num: 1, value: 3 << 29}))
	m, err := fsimage.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	names, err := m.ReadNames(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	absent, ok := names.Attr(fsimage.RawSpace, "absent")
	if ok {
		t.Error("the name is there")
	}
	attr := encodeParts([]part{{num: 1, typ: protowire.BytesType, data: encodeParts([]part{fixed(0, 0, 0, 0)})}})
	if _, ok, err := (&fsimage.INode{XAttrs: attr}).Attr(names, absent); ok || err != nil {
		t.Errorf("found %v, %v", ok, err)
	}
}

// TestUnusedBits: HDFS does not look at the low bits of an attribute's name, so such an EDEK counts.
func TestUnusedBits(t *testing.T) {
	image := changed(t, "INODE", 4, set(fixed(0x61, 0, 0, 0)), toUser...)
	lines, err := readAll(image, 1)
	if err != nil || !bytes.Contains([]byte(lines[9]), []byte("edek orders@0")) {
		t.Errorf("%v: %q", err, lines)
	}
	if plain, _ := sample().Bytes(); bytes.Equal(plain, image) {
		t.Error("the image was not changed")
	}
}
