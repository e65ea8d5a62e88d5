package fsimage

import (
	"context"
	"fmt"
)

// Snapshot is a snapshot of a folder.
type Snapshot struct {
	ID   uint32
	Root uint64 // inode of the folder
	Name string
	// Deleted is true if the snapshot's owner has deleted it, and the NameNode keeps it for an older one
	// (dfs.namenode.snapshot.deletion.ordered).
	Deleted bool
}

// ReadSnapshots reads the section SNAPSHOT.
func (m *Image) ReadSnapshots(ctx context.Context, names *Names) (all []Snapshot, err error) {
	deleted, _ := names.Attr(SystemSpace, SnapshotDeletedAttr)
	var root INode
	count := uint64(0)
	err = m.Read(ctx, Snapshots, 1, func(_ int, b *Batch) error {
		if h, ok := b.Header(); ok {
			if err := fields(h, shape{numbers: 1<<1 | 1<<3, lists: 1 << 2}, func(f field) error {
				if f.num == 3 {
					count = f.value
				}
				return nil
			}); err != nil {
				return b.Damaged(err)
			}
		}
		for msg, ok := b.Next(); ok; msg, ok = b.Next() {
			var s Snapshot
			if err := fields(msg, shape{numbers: 1 << 1, bytes: 1 << 2}, func(f field) error {
				switch f.num {
				case 1:
					s.ID = uint32(f.value) //nolint:gosec // a uint32 in the message
				case 2:
					return root.Decode(f.data)
				}
				return nil
			}); err != nil {
				return b.Damaged(err)
			}
			s.Root, s.Name = root.ID, string(root.Name)
			if _, s.Deleted, err = root.Attr(names, deleted); err != nil {
				return b.Damaged(err)
			}
			all = append(all, s)
		}
		return nil
	})
	if err == nil && count != uint64(len(all)) {
		err = &Error{Section: Snapshots, Offset: m.Start(Snapshots),
			Err: fmt.Errorf("its header says %d snapshots, and it has %d", count, len(all))}
	}
	return all, err
}

// Start returns the byte of the file at which a section begins.
func (m *Image) Start(section string) int64 {
	if spans := m.spans[section]; len(spans) > 0 {
		return spans[0].offset
	}
	return 0
}

// Diffs has the functions to which ReadDiffs passes the differences between files or folders and their snapshots.
// Slices are valid during the call.
type Diffs struct {
	// Batch gets the place at which the next batch begins. Places rise in the order of the section. It may be nil.
	Batch func(at int64)
	// Changed gets each folder with differences, which must be a folder in the section INODE too. It may be nil.
	Changed func(id uint64)
	// Folder gets what a folder has lost since a snapshot: inodes, and indexes into INODE_REFERENCE.
	Folder func(id uint64, snapshot uint32, deleted, deletedRefs List) error
	// File gets the copy that a snapshot holds of a file's record.
	File func(id uint64, snapshot uint32, copied *INode) error
}

// position says what the next message of SNAPSHOT_DIFF is. It follows from the messages before.
type position struct {
	id      uint64
	isFile  bool
	diffs   uint64 // that follow
	created uint64 // CreatedListEntry messages that follow
}

// diffReader decodes messages of SNAPSHOT_DIFF.
type diffReader struct {
	to     Diffs
	copied INode
	position

	_ padding
}

// ReadDiffs reads the section SNAPSHOT_DIFF. It calls newDiffs once for each worker. A worker passes one batch at a
// time to its Diffs. The order of the batches is undefined.
func (m *Image) ReadDiffs(ctx context.Context, workers int, newDiffs func() Diffs) error {
	return m.readBatches(ctx, SnapshotDiffs, workers, func() func(*Batch) error {
		return (&diffReader{to: newDiffs()}).batch
	})
}

// pass moves the position to the end of a batch.
func (p *position) pass(b Batch) error {
	for msg, ok := b.Next(); ok; msg, ok = b.Next() {
		if err := p.message(msg); err != nil {
			return b.Damaged(err)
		}
	}
	return nil
}

// message moves the position to the next message.
func (p *position) message(msg []byte) error {
	switch {
	case p.created > 0: // the name of an entry that the snapshot does not have
		p.created--
		return nil
	case p.diffs == 0:
		return p.entry(msg)
	}
	p.diffs--
	if p.isFile {
		return nil
	}
	seen := uint32(0)
	for len(msg) > 0 {
		tag, value, _, n := next(msg)
		if n == 0 {
			return errField
		}
		var err error
		if seen, err = folderDiff.check(tag, seen); err != nil {
			return err
		}
		if tag>>3 == 6 {
			p.created = value
		}
		msg = msg[n:]
	}
	return nil
}

// end returns an error if a part of the section must not end here.
func (p *position) end() error {
	if p.diffs+p.created > 0 {
		return fmt.Errorf("the differences of inode %d are missing", p.id)
	}
	return nil
}

func (r *diffReader) batch(b *Batch) error {
	r.position = b.position
	if r.to.Batch != nil {
		r.to.Batch(b.span.offset + b.offset)
	}
	for msg, ok := b.Next(); ok; msg, ok = b.Next() {
		before := r.position
		err := r.message(msg)
		switch {
		case err != nil || before.created > 0:
		case before.diffs == 0:
			if !r.isFile && r.diffs > 0 && r.to.Changed != nil {
				r.to.Changed(r.id)
			}
		case r.isFile:
			err = r.file(msg)
		default:
			err = r.folder(msg)
		}
		if err != nil {
			return b.Damaged(err)
		}
	}
	return nil
}

// entry reads a DiffEntry: how many diffs of an inode follow.
func (p *position) entry(msg []byte) error {
	var kind uint64
	p.id = 0
	seen := uint32(0)
	for len(msg) > 0 {
		tag, value, _, n := next(msg)
		if n == 0 {
			return errField
		}
		var err error
		if seen, err = diffEntry.check(tag, seen); err != nil {
			return err
		}
		switch tag >> 3 {
		case 1:
			kind = value
		case 2:
			p.id = value
		case 3:
			p.diffs = value
		}
		msg = msg[n:]
	}
	if kind != 1 && kind != 2 || p.id == 0 {
		return fmt.Errorf("the differences of inode %d are of type %d", p.id, kind)
	}
	p.isFile = kind == 1
	return nil
}

// The fields of DiffEntry, DirectoryDiff and FileDiff.
var (
	diffEntry  = shape{numbers: 1<<1 | 1<<2 | 1<<3}
	folderDiff = shape{numbers: 1<<1 | 1<<2 | 1<<3 | 1<<6, bytes: 1<<4 | 1<<5, lists: 1<<7 | 1<<8}
	fileDiff   = shape{numbers: 1<<1 | 1<<2, bytes: 1<<3 | 1<<4, lists: 1 << 5}
)

// folder reads a DirectoryDiff.
func (r *diffReader) folder(msg []byte) error {
	var snapshot uint32
	var deleted, refs numbers
	if err := fields(msg, folderDiff, func(f field) error {
		switch f.num {
		case 1:
			snapshot = uint32(f.value) //nolint:gosec // a uint32 in the message
		case 7:
			return deleted.add(&f)
		case 8:
			return refs.add(&f)
		}
		return nil
	}); err != nil {
		return err
	}
	if len(deleted.packed)+len(refs.packed) == 0 {
		return nil
	}
	return r.to.Folder(r.id, snapshot, deleted.packed, refs.packed)
}

// file reads a FileDiff.
func (r *diffReader) file(msg []byte) error {
	var snapshot uint32
	var record []byte
	seen := uint32(0)
	for len(msg) > 0 {
		tag, value, data, n := next(msg)
		if n == 0 {
			return errField
		}
		var err error
		if seen, err = fileDiff.check(tag, seen); err != nil {
			return err
		}
		switch tag >> 3 {
		case 1:
			snapshot = uint32(value) //nolint:gosec // a uint32 in the message
		case 4:
			record = data
		}
		msg = msg[n:]
	}
	if seen&(1<<4) == 0 {
		return nil
	}
	r.copied = INode{Type: File, ID: r.id}
	if err := r.copied.DecodeFile(record); err != nil {
		return err
	}
	return r.to.File(r.id, snapshot, &r.copied)
}
