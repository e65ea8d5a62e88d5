package fsimage

import (
	"context"
	"fmt"
)

// The namespaces of extended attributes. Any user may set attributes of the first.
const (
	UserSpace   = 0
	SystemSpace = 3
	RawSpace    = 4
)

// The attributes of encryption, in RawSpace, and of snapshots, in SystemSpace.
const (
	FileAttr            = "hdfs.crypto.file.encryption.info"
	ZoneAttr            = "hdfs.crypto.encryption.zone"
	SnapshotDeletedAttr = "hdfs.snapshot.deleted"
)

// Names are the names of extended attributes, by the number that stands for them in the image.
type Names struct {
	ids map[string]uint32
	set []uint64 // bits of all ids that an attribute's name may have
}

// The table of an image is one numbering for users, groups and attributes, or has a part for each. A part is marked by
// the high bits of its ids.
const (
	maxNames  = 1 << 24
	attrPart  = 3
	nameShift = 6 // of the number in an attribute's name
	// unusedBits of an attribute's name are 0 in images. HDFS does not look at them (XAttrFormat).
	unusedBits = 1<<5 - 1
	lastSpace  = RawSpace
)

// noName is no attribute's name, because its namespace does not exist.
const noName = ^Name(0)

// ReadNames reads the section STRING_TABLE.
func (m *Image) ReadNames(ctx context.Context) (*Names, error) {
	n := &Names{ids: map[string]uint32{}}
	var mask, count, seen uint64
	err := m.Read(ctx, StringTable, 1, func(_ int, b *Batch) error {
		if h, ok := b.Header(); ok {
			if err := fields(h, shape{numbers: 1<<1 | 1<<2}, func(f field) error {
				switch f.num {
				case 1:
					count = f.value
				case 2:
					mask = f.value
				}
				return nil
			}); err != nil {
				return b.Damaged(err)
			}
			if mask > 8 {
				return b.Damaged(fmt.Errorf("%d bits for the parts of the table: at most 8 are allowed", mask))
			}
		}
		for msg, ok := b.Next(); ok; msg, ok = b.Next() {
			seen++
			if err := n.add(msg, uint(mask)); err != nil {
				return b.Damaged(err)
			}
		}
		return nil
	})
	if err == nil && seen != count {
		err = &Error{Section: StringTable, Offset: m.Start(StringTable),
			Err: fmt.Errorf("its header says %d names, and it has %d", count, seen)}
	}
	return n, err
}

// add adds an entry of the table, if it can be the name of an attribute.
func (n *Names) add(msg []byte, mask uint) error {
	var id uint64
	var text string
	if err := fields(msg, shape{numbers: 1 << 1, bytes: 1 << 2}, func(f field) error {
		switch f.num {
		case 1:
			id = f.value
		case 2:
			text = string(f.data)
		}
		return nil
	}); err != nil {
		return err
	}
	if mask > 0 {
		if id>>(32-mask) != attrPart {
			return nil
		}
		id &= 1<<(32-mask) - 1
	}
	wanted := text == FileAttr || text == ZoneAttr || text == SnapshotDeletedAttr
	if id >= maxNames {
		if wanted {
			return fmt.Errorf("the name %q has the number %d: at most %d are possible", text, id, maxNames)
		}
		return nil // of a user or group, in a table that is one numbering
	}
	for uint64(len(n.set)) <= id/64 {
		n.set = append(n.set, 0)
	}
	if n.set[id/64]&(1<<(id%64)) != 0 {
		return fmt.Errorf("the number %d is there twice, with the name %q", id, text)
	}
	n.set[id/64] |= 1 << (id % 64)
	if !wanted {
		return nil
	}
	if _, twice := n.ids[text]; twice {
		return fmt.Errorf("the name %q is there twice", text)
	}
	n.ids[text] = uint32(id)
	return nil
}

// known reports whether an attribute may have a name: its number is in the table, and its namespace exists.
func (n *Names) known(name Name) bool {
	id, space := name>>nameShift&(maxNames-1), name>>30|name>>5&1<<2
	return int(id/64) < len(n.set) && n.set[id/64]&(1<<(id%64)) != 0 && space <= lastSpace
}

// Attr returns the name of an attribute as the image's inodes have it. It reports false if the image has no such
// attribute.
func (n *Names) Attr(space uint32, name string) (Name, bool) {
	id, ok := n.ids[name]
	if !ok {
		return noName, false
	}
	return (space&3)<<30 | id<<nameShift | (space>>2)<<5, ok
}
