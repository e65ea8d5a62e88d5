package imagetest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Root is the inode of "/".
const Root = 16385

// The ids of names in the string table. They differ between the parts of the table, on purpose.
const (
	fileAttrID    = 1
	zoneAttrID    = 2
	deletedAttrID = 3
)

// Node is an inode: a file if Children is nil and Folder is false.
type Node struct {
	ID       uint64
	Name     string
	Folder   bool
	Symlink  bool
	Open     bool
	EDEK     string // "orders@1": the key version; "" for none. "orders@1#x" is another EDEK of the same version
	UserAttr bool   // it also has an attribute of the user's namespace with the EDEK's name
	Zone     string // key of the zone
	Reencrypted
	Children []uint64
	Refs     []uint64  // indexes into Tree.Refs
	Modified time.Time // zero is 2026-01-01
}

// Reencrypted is a zone's record of its last re-encryption; Version is "" if there is none.
type Reencrypted struct {
	Version   string
	Files     uint64
	Failures  uint64
	Submitted uint64 // in milliseconds since 1970, as Completed; 0 is 1000
	Completed uint64
}

// Ref is a reference: to the old place of an inode, with the old name, or to the new place.
type Ref struct {
	ID          uint64
	Name        string
	Last        uint32 // the last snapshot with the old name
	Destination bool
}

// Snapshot is a snapshot of a folder.
type Snapshot struct {
	ID      uint32
	Root    uint64
	Name    string
	Deleted bool
}

// Diff is the difference between an inode and one of its snapshots.
type Diff struct {
	Snapshot uint32
	Copy     bool     // a file: there is a copy of its record, with CopyEDEK
	CopyEDEK string   // as Node.EDEK
	Created  []string // a folder
	Deleted  []uint64
	Refs     []uint64
}

// Tree is a namespace that can be written as an image.
type Tree struct {
	Nodes     []Node
	Refs      []Ref
	Snapshots []Snapshot
	Diffs     []struct {
		ID    uint64
		File  bool
		Diffs []Diff
	}
	Codec     string
	Layout    int32  // 0 is -67
	FlatTable bool   // the string table is one numbering, as before Hadoop 3.2
	Unpacked  bool   // lists of numbers are repeated fields
	SubEvery  int    // messages in a sub-section; 0 for no sub-sections
	Count     uint64 // in the header of INODE; 0 is the number of Nodes
	Namespace uint32 // 0 is 4711
	// Transaction is the last one that the image contains; 0 is the number of Nodes.
	Transaction uint64
}

// AddDiffs adds the differences of an inode, the newest first.
func (t *Tree) AddDiffs(id uint64, file bool, diffs ...Diff) {
	t.Diffs = append(t.Diffs, struct {
		ID    uint64
		File  bool
		Diffs []Diff
	}{id, file, diffs})
}

// EDEKBytes returns the wrapped key that a file with Node.EDEK has.
func EDEKBytes(edek string) []byte {
	sum := sha256.Sum256([]byte(edek))
	return sum[:16]
}

// Bytes returns the image.
func (t *Tree) Bytes() ([]byte, []Section) {
	var b bytes.Buffer
	sections, err := t.Write(&b)
	if err != nil {
		panic(err)
	}
	return b.Bytes(), sections
}

// Write writes the image, and returns where its sections are.
func (t *Tree) Write(to io.Writer) ([]Section, error) {
	w := NewWriter(to, t.Codec)
	if t.Layout != 0 {
		w.Layout = t.Layout
	}
	w.start(cmp.Or(t.Namespace, 4711), cmp.Or(t.Transaction, uint64(len(t.Nodes))))
	w.inodes(t)
	w.folders(t)
	w.empty("FILES_UNDERCONSTRUCTION")
	w.snapshots(t)
	w.diffs(t)
	w.Begin("INODE_REFERENCE")
	for _, r := range t.Refs {
		w.Message(r.message())
	}
	w.End()
	w.finish(t.FlatTable)
	err := w.Close()
	return w.Sections, err
}

// start writes the sections before INODE.
func (w *Writer) start(namespace uint32, transaction uint64) {
	w.Begin("NS_INFO")
	info := number(nil, 1, uint64(namespace))
	for num, v := range map[protowire.Number]uint64{2: 1000, 3: 1001, 4: 0, 5: 1 << 30} {
		info = number(info, num, v)
	}
	w.Message(number(info, 6, transaction))
	w.End()
	w.empty("ERASURE_CODING", nil)
}

// empty writes a section with the messages.
func (w *Writer) empty(name string, messages ...[]byte) {
	w.Begin(name)
	for _, m := range messages {
		w.Message(m)
	}
	w.End()
}

// finish writes the sections after the tree.
func (w *Writer) finish(flat bool) {
	w.empty("SECRET_MANAGER", number(number(number(number(nil, 1, 1), 2, 1), 3, 0), 4, 0))
	w.empty("CACHE_MANAGER", number(number(number(nil, 1, 1), 2, 0), 3, 0))
	w.Begin("STRING_TABLE")
	names := []struct {
		part, id uint64
		name     string
	}{{1, 1, "hdfs"}, {2, 1, "supergroup"}, {3, fileAttrID, "hdfs.crypto.file.encryption.info"},
		{3, zoneAttrID, "hdfs.crypto.encryption.zone"}, {3, deletedAttrID, "hdfs.snapshot.deleted"}}
	if !flat { // a user whose name is that of an attribute
		names = append(names, struct {
			part, id uint64
			name     string
		}{1, 2, "hdfs.crypto.file.encryption.info"})
	}
	header := number(nil, 1, uint64(len(names)))
	if !flat {
		header = number(header, 2, 3)
	}
	w.Message(header)
	for _, n := range names {
		id := n.part<<29 | n.id
		if flat {
			id = n.id
			if n.part != 3 {
				id += 10 * n.part
			}
		}
		w.Message(text(number(nil, 1, id), 2, n.name))
	}
	w.End()
}

func (w *Writer) inodes(t *Tree) {
	w.Begin("INODE")
	last := uint64(0)
	for _, n := range t.Nodes {
		last = max(last, n.ID)
	}
	count := t.Count
	if count == 0 {
		count = uint64(len(t.Nodes))
	}
	w.Message(number(number(nil, 1, last), 2, count))
	for i := range t.Nodes {
		if t.SubEvery > 0 && i%t.SubEvery == 0 && i > 0 {
			w.Sub()
		}
		w.Message(t.Nodes[i].message(t.Nodes[i].Name))
	}
	w.End()
}

func (w *Writer) folders(t *Tree) {
	w.Begin("INODE_DIR")
	for i := range t.Nodes {
		if t.SubEvery > 0 && i%t.SubEvery == 0 {
			w.Sub()
		}
		n := &t.Nodes[i]
		if len(n.Children)+len(n.Refs) == 0 {
			continue
		}
		m := number(nil, 1, n.ID)
		if t.Unpacked {
			for _, c := range n.Children {
				m = number(m, 2, c)
			}
		} else {
			m = packed(m, 2, n.Children)
		}
		w.Message(packed(m, 3, n.Refs))
	}
	w.End()
}

func (w *Writer) snapshots(t *Tree) {
	w.Begin("SNAPSHOT")
	var roots []uint64
	for _, s := range t.Snapshots {
		if !slices.Contains(roots, s.Root) {
			roots = append(roots, s.Root)
		}
	}
	w.Message(number(packed(number(nil, 1, 99), 2, roots), 3, uint64(len(t.Snapshots))))
	for _, s := range t.Snapshots {
		root := Node{ID: s.Root, Folder: true}
		m := root.message(s.Name)
		if s.Deleted {
			attrs := message(nil, 1, xattr(3, deletedAttrID, nil))
			m = message(number(number(nil, 1, 2), 2, s.Root), 5, message(root.directory(), 6, attrs))
			m = text(m, 3, s.Name)
		}
		w.Message(message(number(nil, 1, uint64(s.ID)), 2, m))
	}
	w.End()
}

func (w *Writer) diffs(t *Tree) {
	if len(t.Snapshots)+len(t.Diffs) == 0 {
		return
	}
	w.Begin("SNAPSHOT_DIFF")
	for i, d := range t.Diffs {
		if t.SubEvery > 0 && i > 0 {
			w.Sub()
		}
		kind := uint64(2)
		if d.File {
			kind = 1
		}
		w.Message(number(number(number(nil, 1, kind), 2, d.ID), 3, uint64(len(d.Diffs))))
		for _, x := range d.Diffs {
			w.diff(d.File, x)
		}
	}
	w.End()
}

func (w *Writer) diff(file bool, x Diff) {
	m := number(nil, 1, uint64(x.Snapshot))
	if file {
		m = text(number(m, 2, 10), 3, "")
		if x.Copy {
			c := Node{EDEK: x.CopyEDEK}
			m = message(m, 4, c.file())
		}
		w.Message(m)
		return
	}
	m = number(m, 2, uint64(len(x.Deleted)+1))
	m = number(number(m, 3, 0), 6, uint64(len(x.Created)))
	w.Message(packed(packed(m, 7, x.Deleted), 8, x.Refs))
	for _, name := range x.Created {
		w.Message(text(nil, 1, name))
	}
}

func (r Ref) message() []byte {
	m := number(nil, 1, r.ID)
	if r.Destination {
		return number(m, 3, 1<<31-2) // Snapshot.CURRENT_STATE_ID - 1
	}
	return number(text(m, 2, r.Name), 4, uint64(r.Last))
}

// message returns the INode.
func (n *Node) message(name string) []byte {
	kind := uint64(1)
	switch {
	case n.Folder:
		kind = 2
	case n.Symlink:
		kind = 3
	}
	m := text(number(number(nil, 1, kind), 2, n.ID), 3, name)
	switch kind {
	case 1:
		return message(m, 4, n.file())
	case 2:
		return message(m, 5, n.directory())
	}
	return message(m, 6, text(fixed64(nil, 1, permission), 2, "/target"))
}

// permission is rwxr-xr-x of user 1 and group 1: 25 bits of user, 24 of group, 16 of mode, from the left.
const permission = 1<<40 | 1<<16 | 0o755

// modified is a time of modification: 2026-01-01.
const modified = 1767225600000

func (n *Node) modified() uint64 {
	if n.Modified.IsZero() {
		return modified
	}
	return uint64(n.Modified.UnixMilli()) //nolint:gosec // after 1970
}

func (n *Node) file() []byte {
	f := number(number(number(number(nil, 1, 1), 2, n.modified()), 3, n.modified()), 4, 128<<20)
	f = fixed64(f, 5, permission)
	if n.Open {
		f = message(f, 7, text(text(nil, 1, "client"), 2, "host"))
	}
	var attrs []byte
	if n.UserAttr {
		attrs = message(attrs, 1, xattr(0, fileAttrID, edek("forged@7")))
	}
	if n.EDEK != "" {
		attrs = message(attrs, 1, xattr(4, fileAttrID, edek(n.EDEK)))
	}
	if attrs != nil {
		f = message(f, 9, attrs)
	}
	return f
}

func (n *Node) directory() []byte {
	unset := ^uint64(0)
	d := fixed64(number(number(number(nil, 1, n.modified()), 2, unset), 3, unset), 4, permission)
	if n.Zone == "" {
		return d
	}
	z := text(number(number(nil, 1, 2), 2, 2), 3, n.Zone)
	if n.Reencrypted.Version != "" {
		r := number(text(nil, 1, n.Reencrypted.Version), 2, cmp.Or(n.Submitted, 1000))
		r = number(number(number(r, 3, 0), 4, n.Files), 5, n.Failures)
		z = message(z, 4, number(r, 6, n.Completed))
	}
	return message(d, 6, message(nil, 1, xattr(4, zoneAttrID, z)))
}

// edek returns a PerFileEncryptionInfoProto.
func edek(name string) []byte {
	version, _, _ := bytes.Cut([]byte(name), []byte("#"))
	m := message(nil, 1, EDEKBytes(name))
	return message(message(m, 2, EDEKBytes("iv"+name)), 3, version)
}

// xattr returns an XAttrCompactProto.
func xattr(space, id uint32, value []byte) []byte {
	name := (space&3)<<30 | id<<6 | (space>>2)<<5
	m := protowire.AppendFixed32(protowire.AppendTag(nil, 1, protowire.Fixed32Type), name)
	return message(m, 2, value)
}

// String helps to read a failure.
func (n *Node) String() string { return fmt.Sprintf("%d %q", n.ID, n.Name) }
