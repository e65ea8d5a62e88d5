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

// Diffs gets the differences between a file or folder and its snapshots. Slices are valid during the call.
type Diffs struct {
	// Changed gets each folder with differences, which must be a folder in the section INODE too. It may be nil.
	Changed func(id uint64)
	// Folder gets what a folder has lost since a snapshot: inodes, and indexes into INODE_REFERENCE.
	Folder func(id uint64, snapshot uint32, deleted, deletedRefs List) error
	// File gets the copy that a snapshot holds of a file's record.
	File func(id uint64, snapshot uint32, copied *INode) error
}

// diffReader is the state between the messages of SNAPSHOT_DIFF.
type diffReader struct {
	to      Diffs
	id      uint64
	isFile  bool
	diffs   uint64 // that follow
	created uint64 // CreatedListEntry messages that follow
}

// ReadDiffs reads the section SNAPSHOT_DIFF. Several goroutines call the functions of to.
func (m *Image) ReadDiffs(ctx context.Context, workers int, newPart func() Diffs) error {
	return m.readParts(ctx, SnapshotDiffs, workers, func() part { return &diffReader{to: newPart()} })
}

func (r *diffReader) end() error {
	if r.diffs+r.created > 0 {
		return fmt.Errorf("the differences of inode %d are missing", r.id)
	}
	return nil
}

func (r *diffReader) batch(b *Batch) error {
	for msg, ok := b.Next(); ok; msg, ok = b.Next() {
		if err := r.message(msg); err != nil {
			return b.Damaged(err)
		}
	}
	return nil
}

func (r *diffReader) message(msg []byte) error {
	switch {
	case r.created > 0: // the name of an entry that the snapshot does not have
		r.created--
		return nil
	case r.diffs == 0:
		return r.entry(msg)
	}
	r.diffs--
	if r.isFile {
		return r.file(msg)
	}
	return r.folder(msg)
}

// entry reads a DiffEntry: how many diffs of an inode follow.
func (r *diffReader) entry(msg []byte) error {
	var kind uint64
	r.id = 0
	if err := fields(msg, shape{numbers: 1<<1 | 1<<2 | 1<<3}, func(f field) error {
		switch f.num {
		case 1:
			kind = f.value
		case 2:
			r.id = f.value
		case 3:
			r.diffs = f.value
		}
		return nil
	}); err != nil {
		return err
	}
	if kind != 1 && kind != 2 || r.id == 0 {
		return fmt.Errorf("the differences of inode %d are of type %d", r.id, kind)
	}
	r.isFile = kind == 1
	if !r.isFile && r.diffs > 0 && r.to.Changed != nil {
		r.to.Changed(r.id)
	}
	return nil
}

// folder reads a DirectoryDiff.
func (r *diffReader) folder(msg []byte) error {
	var snapshot uint32
	var deleted, refs numbers
	known := shape{numbers: 1<<1 | 1<<2 | 1<<3 | 1<<6, bytes: 1<<4 | 1<<5, lists: 1<<7 | 1<<8}
	if err := fields(msg, known, func(f field) error {
		switch f.num {
		case 1:
			snapshot = uint32(f.value) //nolint:gosec // a uint32 in the message
		case 6:
			r.created = f.value
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
	copied, has := INode{Type: File, ID: r.id}, false
	if err := fields(msg, shape{numbers: 1<<1 | 1<<2, bytes: 1<<3 | 1<<4, lists: 1 << 5}, func(f field) error {
		switch f.num {
		case 1:
			snapshot = uint32(f.value) //nolint:gosec // a uint32 in the message
		case 4:
			has = true
			return copied.DecodeFile(f.data)
		}
		return nil
	}); err != nil || !has {
		return err
	}
	return r.to.File(r.id, snapshot, &copied)
}
