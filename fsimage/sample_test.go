package fsimage_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"claviger/fsimage"
	"claviger/internal/imagetest"
)

// sample is a namespace with a record of each kind.
func sample() *imagetest.Tree {
	t := &imagetest.Tree{Nodes: []imagetest.Node{
		{ID: imagetest.Root, Folder: true, Children: []uint64{16386, 16390, 16391}, Refs: []uint64{0}},
		{ID: 16386, Name: "zone", Folder: true, Zone: "orders", Children: []uint64{16387, 16388},
			Reencrypted: imagetest.Reencrypted{Version: "orders@1", Files: 5, Failures: 1, Completed: 2000}},
		{ID: 16387, Name: "a", EDEK: "orders@1", UserAttr: true},
		{ID: 16388, Name: "b\xff", EDEK: "orders@0", Open: true},
		{ID: 16389, Name: "moved", EDEK: "orders@0"},
		{ID: 16390, Name: "plain"},
		{ID: 16391, Name: "link", Symlink: true},
		{ID: 16400, Name: "gone", EDEK: "orders@0"},
	}}
	t.Refs = []imagetest.Ref{{ID: 16389, Destination: true}, {ID: 16389, Name: "old", Last: 2}}
	t.Snapshots = []imagetest.Snapshot{{ID: 1, Root: 16386, Name: "s1"},
		{ID: 2, Root: 16386, Name: "s2", Deleted: true}}
	t.AddDiffs(16386, false, imagetest.Diff{Snapshot: 2, Created: []string{"a", "b"}, Deleted: []uint64{16400},
		Refs: []uint64{1}}, imagetest.Diff{Snapshot: 1})
	t.AddDiffs(16387, true, imagetest.Diff{Snapshot: 2}, imagetest.Diff{Snapshot: 1, Copy: true, CopyEDEK: "orders@0"})
	t.AddDiffs(16400, true)
	return t
}

// content is what a test reads from an image, as sorted lines.
type content struct {
	mu    sync.Mutex
	lines []string
}

func (c *content) add(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, fmt.Sprintf(format, args...))
}

// readAll reads all records of an image.
func readAll(image []byte, workers int) ([]string, error) {
	ctx := context.Background()
	m, err := fsimage.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		return nil, err
	}
	var c content
	info, err := m.ReadInfo(ctx)
	if err != nil {
		return nil, err
	}
	c.add("info %+v", info)
	names, err := m.ReadNames(ctx)
	if err != nil {
		return nil, err
	}
	snapshots, err := m.ReadSnapshots(ctx, names)
	if err != nil {
		return nil, err
	}
	c.add("snapshots %+v", snapshots)
	for _, read := range []func() error{
		func() error { return m.Read(ctx, fsimage.INodes, workers, c.inodes(names)) },
		func() error { return m.Read(ctx, fsimage.Directories, workers, c.folders) },
		func() error { return m.Read(ctx, fsimage.INodeReference, 1, c.references) },
		func() error {
			diffs := fsimage.Diffs{Folder: c.folder, File: c.file}
			return m.ReadDiffs(ctx, workers, func() fsimage.Diffs { return diffs })
		},
	} {
		if err := read(); err != nil {
			return nil, err
		}
	}
	slices.Sort(c.lines)
	return c.lines, nil
}

func (c *content) inodes(names *fsimage.Names) func(int, *fsimage.Batch) error {
	fileAttr, _ := names.Attr(fsimage.RawSpace, fsimage.FileAttr)
	zoneAttr, _ := names.Attr(fsimage.RawSpace, fsimage.ZoneAttr)
	return func(_ int, b *fsimage.Batch) error {
		if h, ok := b.Header(); ok {
			var header fsimage.INodeHeader
			if err := header.Decode(h); err != nil {
				return b.Damaged(err)
			}
			c.add("header %+v", header)
		}
		var n fsimage.INode
		for msg, ok := b.Next(); ok; msg, ok = b.Next() {
			if err := n.Decode(msg); err != nil {
				return b.Damaged(err)
			}
			line := fmt.Sprintf("inode %d type %d %q open %v", n.ID, n.Type, n.Name, n.Open)
			if v, ok, err := n.Attr(names, fileAttr); err != nil {
				return b.Damaged(err)
			} else if ok {
				var e fsimage.EDEK
				if err := e.Decode(v); err != nil {
					return b.Damaged(err)
				}
				line += fmt.Sprintf(" edek %s %x", e.Version, e.Key[:2])
			}
			if v, ok, err := n.Attr(names, zoneAttr); err != nil {
				return b.Damaged(err)
			} else if ok {
				var z fsimage.Zone
				if err := z.Decode(v); err != nil {
					return b.Damaged(err)
				}
				line += fmt.Sprintf(" zone %s %+v", z.Key, z.Reencrypted)
			}
			c.add("%s", line)
		}
		return nil
	}
}

func (c *content) folders(_ int, b *fsimage.Batch) error {
	var d fsimage.DirEntry
	for msg, ok := b.Next(); ok; msg, ok = b.Next() {
		if err := d.Decode(msg); err != nil {
			return b.Damaged(err)
		}
		children, err := all(d.Children)
		if err != nil {
			return b.Damaged(err)
		}
		refs, err := all(d.RefIdx)
		if err != nil {
			return b.Damaged(err)
		}
		c.add("folder %d has %d, references %d", d.Parent, children, refs)
	}
	return nil
}

func all(l fsimage.List) (numbers []uint64, err error) {
	for v, ok := l.Next(); ok; v, ok = l.Next() {
		numbers = append(numbers, v)
	}
	return numbers, l.Err()
}

func (c *content) references(_ int, b *fsimage.Batch) error {
	var r fsimage.Reference
	for msg, ok := b.Next(); ok; msg, ok = b.Next() {
		if err := r.Decode(msg); err != nil {
			return b.Damaged(err)
		}
		c.add("reference %d %q %v", r.ID, r.Name, r.Destination)
	}
	return nil
}

func (c *content) folder(id uint64, snapshot uint32, deleted, refs fsimage.List) error {
	d, err := all(deleted)
	if err != nil {
		return err
	}
	r, err := all(refs)
	c.add("folder %d lost since %d %d, references %d", id, snapshot, d, r)
	return err
}

func (c *content) file(id uint64, snapshot uint32, copied *fsimage.INode) error {
	c.add("copy of %d at %d: %d bytes of attributes", id, snapshot, len(copied.XAttrs))
	return nil
}

// want is the content of sample.
var want = strings.Split(strings.TrimSpace(`
copy of 16387 at 1: 55 bytes of attributes
folder 16385 has [16386 16390 16391], references [0]
folder 16386 has [16387 16388], references []
folder 16386 lost since 2 [16400], references [1]
header {LastID:16400 Count:8}
info {NamespaceID:4711 Transaction:8 RollingUpgrade:0}
inode 16385 type 2 "" open false
inode 16386 type 2 "zone" open false zone orders &{Version:orders@1 Submitted:1000 Completed:2000 Canceled:false `+
	`Files:5 Failures:1 LastFile:}
inode 16387 type 1 "a" open false edek orders@1 ef86
inode 16388 type 1 "b\xff" open true edek orders@0 c3c4
inode 16389 type 1 "moved" open false edek orders@0 c3c4
inode 16390 type 1 "plain" open false
inode 16391 type 3 "link" open false
inode 16400 type 1 "gone" open false edek orders@0 c3c4
reference 16389 "" true
reference 16389 "old" false
snapshots [{ID:1 Root:16386 Name:s1 Deleted:false} {ID:2 Root:16386 Name:s2 Deleted:true}]
`), "\n")

// TestRecords: each record is read, with each compression, with and without sub-sections, with both forms of string
// tables and of lists.
func TestRecords(t *testing.T) {
	for _, codec := range imagetest.Codecs {
		for _, workers := range []int{1, 3} {
			for _, sub := range []int{0, 1, 3} {
				tree := sample()
				tree.Codec, tree.SubEvery, tree.FlatTable, tree.Unpacked = codec, sub, sub == 1, sub == 3
				image, _ := tree.Bytes()
				got, err := readAll(image, workers)
				if err != nil {
					t.Errorf("%s, %d workers, sub-sections of %d: %v", codec, workers, sub, err)
				} else if !slices.Equal(got, want) {
					t.Errorf("%s, %d workers, sub-sections of %d:\n%s\nwant\n%s", codec, workers, sub,
						strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			}
		}
	}
}
