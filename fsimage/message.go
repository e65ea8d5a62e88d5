package fsimage

import (
	"context"
	"errors"
	"fmt"
)

// The types of an inode.
const (
	File      = 1
	Directory = 2
	Symlink   = 3
)

// RootID is the inode of the folder "/".
const RootID = 16385

// Name is the name of an extended attribute, as inodes have it: namespace and number.
type Name = uint32

// INode is a message of the section INODE, or a snapshot's copy. Its bytes belong to the batch.
type INode struct {
	Type     uint64
	ID       uint64
	Name     []byte
	Modified uint64 // milliseconds since 1970
	Open     bool   // a file that is open for writing
	XAttrs   []byte
}

// Decode reads an INode.
func (n *INode) Decode(b []byte) error {
	*n = INode{}
	seen := uint64(0)
	for len(b) > 0 {
		tag, value, data, k := next(b)
		if k == 0 {
			return errField
		}
		b = b[k:]
		if num := tag >> 3; num <= symlinkField {
			if seen&(1<<num) != 0 {
				return errTwice
			}
			seen |= 1 << num
		}
		switch tag {
		case 1<<3 | varintType:
			n.Type = value
		case 2<<3 | varintType:
			n.ID = value
		case 3<<3 | bytesType:
			n.Name = data
		case 4<<3 | bytesType:
			if err := n.DecodeFile(data); err != nil {
				return err
			}
		case 5<<3 | bytesType:
			if err := n.decodeDirectory(data); err != nil {
				return err
			}
		case symlinkField<<3 | bytesType:
		default:
			if tag>>3 <= symlinkField {
				return errType
			}
		}
	}
	if n.ID == 0 || n.Type < File || n.Type > Symlink {
		return fmt.Errorf("an inode of type %d with id %d", n.Type, n.ID)
	}
	// HDFS reads the field of the type, and drops the others, in which an EDEK may be.
	if seen>>fileField&^(1<<(n.Type-File)) != 0 {
		return fmt.Errorf("the inode %d of type %d has fields of another type", n.ID, n.Type)
	}
	return nil
}

// The fields of INode that only one type of inodes has. That of folders is between them, in the order of the types.
const (
	fileField    = 4
	symlinkField = 6
)

// DecodeFile reads an INodeFile, which is also a snapshot's copy of a file.
func (n *INode) DecodeFile(b []byte) error {
	attrs := false
	for len(b) > 0 {
		if t := uint64(b[0]); t&7 == varintType && t != 2<<3|varintType && t >= 8 && t < 0x80 {
			k := skipNumber(b)
			if k == 0 {
				return errField
			}
			b = b[k:]
			continue
		}
		tag, value, data, k := next(b)
		if k == 0 {
			return errField
		}
		b = b[k:]
		switch tag {
		case 2<<3 | varintType:
			n.Modified = value
		case 7<<3 | bytesType:
			n.Open = true
		case 9<<3 | bytesType:
			if attrs {
				return errTwice
			}
			n.XAttrs, attrs = data, true
		}
	}
	return nil
}

// decodeDirectory reads an INodeDirectory.
func (n *INode) decodeDirectory(b []byte) error {
	return fields(b, shape{numbers: 1 << 1, bytes: 1 << 6}, func(f field) error {
		switch f.num {
		case 1:
			n.Modified = f.value
		case 6:
			n.XAttrs = f.data
		}
		return nil
	})
}

// Attr returns the value of an extended attribute. id is from [Names.Attr].
func (n *INode) Attr(names *Names, id Name) (value []byte, ok bool, err error) {
	for b := n.XAttrs; len(b) > 0; {
		tag, _, entry, k := next(b)
		if k == 0 {
			return nil, false, errField
		}
		b = b[k:]
		if tag != 1<<3|bytesType {
			continue
		}
		name, data, err := decodeAttr(entry)
		switch {
		case err != nil:
			return nil, false, err
		case !names.known(name):
			return nil, false, fmt.Errorf("an attribute has the name %#x, which is not in the section %s", name,
				StringTable)
		case name&^unusedBits != id:
		case ok:
			return nil, false, errors.New("an inode has two attributes with the same name")
		default:
			value, ok = data, true
		}
	}
	return value, ok, nil
}

// decodeAttr reads an XAttrCompactProto.
func decodeAttr(b []byte) (name Name, value []byte, err error) {
	seen := uint64(0)
	for len(b) > 0 {
		tag, v, data, k := next(b)
		if k == 0 {
			return 0, nil, errField
		}
		b = b[k:]
		num := tag >> 3
		if num > 2 {
			continue
		}
		if seen&(1<<num) != 0 {
			return 0, nil, errTwice
		}
		seen |= 1 << num
		switch tag {
		case 1<<3 | fixed32Type:
			name = uint32(v) //nolint:gosec // 32 bits
		case 2<<3 | bytesType:
			value = data
		default:
			return 0, nil, errType
		}
	}
	if seen&(1<<1) == 0 {
		return 0, nil, errors.New("an attribute has no name")
	}
	return name, value, nil
}

// EDEK is the value of a file's attribute with its encrypted key. Its bytes belong to the batch.
type EDEK struct{ Key, IV, Version []byte }

// Decode reads a PerFileEncryptionInfoProto.
func (e *EDEK) Decode(b []byte) error {
	*e = EDEK{}
	seen := uint64(0)
	for len(b) > 0 {
		tag, _, data, k := next(b)
		if k == 0 {
			return errField
		}
		b = b[k:]
		if num := tag >> 3; num <= 3 {
			if tag&7 != bytesType {
				return errType
			}
			if seen&(1<<num) != 0 {
				return errTwice
			}
			seen |= 1 << num
		}
		switch tag {
		case 1<<3 | bytesType:
			e.Key = data
		case 2<<3 | bytesType:
			e.IV = data
		case 3<<3 | bytesType:
			e.Version = data
		}
	}
	if len(e.Version) == 0 || len(e.Key) == 0 {
		return errors.New("an EDEK without bytes or key version")
	}
	return nil
}

// Zone is the value of a folder's attribute that makes it an encryption zone.
type Zone struct {
	Key         string
	Suite       uint64
	Reencrypted *Reencryption // nil: the zone was never re-encrypted
}

// Reencryption is the record of a zone's last re-encryption. Times are milliseconds since 1970; 0 is none.
type Reencryption struct {
	Version              string
	Submitted, Completed uint64
	Canceled             bool
	Files, Failures      uint64
	LastFile             string
}

// Decode reads a ZoneEncryptionInfoProto.
func (z *Zone) Decode(b []byte) error {
	*z = Zone{}
	return fields(b, shape{numbers: 1<<1 | 1<<2, bytes: 1<<3 | 1<<4}, func(f field) error {
		switch f.num {
		case 1:
			z.Suite = f.value
		case 3:
			z.Key = string(f.data)
		case 4:
			z.Reencrypted = new(Reencryption)
			return z.Reencrypted.decode(f.data)
		}
		return nil
	})
}

func (r *Reencryption) decode(b []byte) error {
	return fields(b, shape{numbers: 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6, bytes: 1<<1 | 1<<7}, func(f field) error {
		switch f.num {
		case 1:
			r.Version = string(f.data)
		case 2:
			r.Submitted = f.value
		case 3:
			r.Canceled = f.value != 0
		case 4:
			r.Files = f.value
		case 5:
			r.Failures = f.value
		case 6:
			r.Completed = f.value
		case 7:
			r.LastFile = string(f.data)
		}
		return nil
	})
}

// INodeHeader is the first message of the section INODE.
type INodeHeader struct{ LastID, Count uint64 }

// Decode reads an INodeSection.
func (h *INodeHeader) Decode(b []byte) error {
	return fields(b, shape{numbers: 1<<1 | 1<<2}, func(f field) error {
		switch f.num {
		case 1:
			h.LastID = f.value
		case 2:
			h.Count = f.value
		}
		return nil
	})
}

// DirEntry lists the children of a folder: inodes, and indexes into the section INODE_REFERENCE.
type DirEntry struct {
	Parent           uint64
	Children, RefIdx List
}

// Decode reads a DirEntry.
func (d *DirEntry) Decode(b []byte) error {
	*d = DirEntry{}
	var children, refs numbers
	if err := fields(b, shape{numbers: 1 << 1, lists: 1<<2 | 1<<3}, func(f field) error {
		switch f.num {
		case 1:
			d.Parent = f.value
		case 2:
			return children.add(&f)
		case 3:
			return refs.add(&f)
		}
		return nil
	}); err != nil {
		return err
	}
	d.Children, d.RefIdx = children.packed, refs.packed
	return nil
}

// Reference is a second place of an inode that was renamed while a snapshot held its old place.
type Reference struct {
	ID          uint64
	Name        []byte // the old name; of a new place, it is empty
	Destination bool   // the new place; otherwise the old one
}

// Decode reads an INodeReference.
func (r *Reference) Decode(b []byte) error {
	*r = Reference{}
	return fields(b, shape{numbers: 1<<1 | 1<<3 | 1<<4, bytes: 1 << 2}, func(f field) error {
		switch f.num {
		case 1:
			r.ID = f.value
		case 2:
			r.Name = f.data
		case 3:
			r.Destination = true
		}
		return nil
	})
}

// Info is the message of the section NS_INFO.
type Info struct {
	NamespaceID    uint32
	Transaction    uint64 // the last one that the image contains
	RollingUpgrade uint64 // when one began, in milliseconds since 1970; 0 is none
}

// ReadInfo reads the section NS_INFO.
func (m *Image) ReadInfo(ctx context.Context) (info Info, err error) {
	found := false
	err = m.Read(ctx, NSInfo, 1, func(_ int, b *Batch) error {
		msg, ok := b.Next()
		if !ok || found {
			return nil
		}
		found = true
		if err := fields(msg, shape{numbers: 1<<1 | 1<<6 | 1<<7}, func(f field) error {
			switch f.num {
			case 1:
				info.NamespaceID = uint32(f.value) //nolint:gosec // a uint32 in the message
			case 6:
				info.Transaction = f.value
			case 7:
				info.RollingUpgrade = f.value
			}
			return nil
		}); err != nil {
			return b.Damaged(err)
		}
		return nil
	})
	if err == nil && !found {
		err = &Error{Section: NSInfo, Offset: m.Start(NSInfo), Err: errors.New("it is missing or empty")}
	}
	return info, err
}

// errHeader stops the reading of a section after its header.
var errHeader = errors.New("the header is read")

// ReadINodeHeader reads the header of the section INODE.
func (m *Image) ReadINodeHeader(ctx context.Context) (h INodeHeader, err error) {
	err = m.Read(ctx, INodes, 1, func(_ int, b *Batch) error {
		msg, ok := b.Header()
		if !ok {
			return b.Damaged(errors.New("it has no header"))
		}
		if err := h.Decode(msg); err != nil {
			return b.Damaged(err)
		}
		return errHeader
	})
	if err == nil {
		err = &Error{Section: INodes, Offset: m.Start(INodes), Err: errors.New("it is empty")}
	}
	if errors.Is(err, errHeader) {
		err = nil
	}
	return h, err
}
