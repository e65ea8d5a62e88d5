package census

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"

	"claviger/fsimage"
)

// reader reads records of INODE, in one goroutine.
type reader struct {
	collector
	nameWriter

	inode    fsimage.INode
	zones    []zoneRecord
	overflow map[uint64]uint32 // number of files, by folder << 32 | code, that tree.add did not count
	evidence map[uint32]*candidates
	last     struct { // the version of the last candidate
		*candidates
		version uint32
		limit   uint64 // plain candidates have smaller ids
	}
	modified uint64

	records, files, special, twice, lost uint64            // special: with placesFlag
	lostFiles                            map[uint32]uint64 // files that no folder has, by version

	folder, code, n uint32 // n files of one folder and code, which are not yet counted

	_ padding
}

// padding is at the end of a reader. Without it, the goroutines of two readers write into the same cache line for
// each record, which takes a fifth of their time.
type padding [128]byte

// zoneRecord is the record of a folder that is an encryption zone.
type zoneRecord struct {
	id     uint64
	name   string
	parent uint32 // number + 1 of the folder in the index; 0 for none
	fsimage.Zone
}

// readINodes reads INODE.
func (c *counter) readINodes(ctx context.Context) error {
	for range c.workers {
		c.readers = append(c.readers, &reader{
			collector: collector{c: c, version: c.versions.local()}, nameWriter: nameWriter{t: c.tree},
			overflow: map[uint64]uint32{}, evidence: map[uint32]*candidates{}, lostFiles: map[uint32]uint64{},
			folder: noFolder,
		})
	}
	err := c.image.Read(ctx, fsimage.INodes, c.workers, func(worker int, b *fsimage.Batch) error {
		return c.readers[worker].batch(b)
	})
	if err != nil {
		return err
	}
	for _, r := range c.readers {
		r.flushFiles()
	}
	if n := c.done.Load(); n != c.header.Count {
		return c.damaged(fsimage.INodes, fmt.Errorf("its header says %d inodes, and it has %d", c.header.Count, n))
	}
	return nil
}

func (r *reader) batch(b *fsimage.Batch) error {
	b.Header()
	before := r.records
	n := &r.inode
	for msg, ok := b.Next(); ok; msg, ok = b.Next() {
		err := n.Decode(msg)
		if err == nil {
			err = r.record(n)
		}
		if err != nil {
			return b.Damaged(err)
		}
	}
	done := r.c.done.Add(r.records - before)
	if done > r.c.header.Count {
		return b.Damaged(fmt.Errorf("the header says %d inodes, and there are more", r.c.header.Count))
	}
	if r.c.config.Progress != nil {
		r.c.mu.Lock()
		defer r.c.mu.Unlock()
		r.c.config.Progress(done, r.c.header.Count)
	}
	return nil
}

// record counts an inode.
func (r *reader) record(n *fsimage.INode) error {
	r.records++
	folder := uint32(noFolder)
	var flags uint32
	if e := r.c.index.find(n.ID); e != nil {
		v := atomic.OrUint32(e, seenFlag)
		if v&seenFlag != 0 {
			r.twice++
			return nil
		}
		folder, flags = v&folderMask, v&(placesFlag|copiesFlag)
	} else {
		flags = r.flagsOf(n.ID)
	}
	if flags&placesFlag != 0 {
		r.special++
	}
	r.modified = max(r.modified, n.Modified)
	if n.Type == fsimage.File {
		return r.file(n, folder, flags)
	}
	if folder == noFolder && flags&placesFlag == 0 && n.ID != fsimage.RootID {
		r.lost++
	}
	if n.Type == fsimage.Directory {
		return r.directory(n, folder)
	}
	return nil
}

// flagsOf returns the flags of an inode that the index does not have.
func (r *reader) flagsOf(id uint64) (flags uint32) {
	if len(r.c.placesOf(id)) > 0 {
		flags = placesFlag
	}
	if len(r.c.copiesOf(id)) > 0 || r.c.isChanged(id) {
		flags |= copiesFlag
	}
	return flags
}

// isChanged reports whether SNAPSHOT_DIFF has differences of a folder with that id.
func (c *counter) isChanged(id uint64) bool {
	_, found := slices.BinarySearch(c.changed, id)
	return found
}

func (r *reader) file(n *fsimage.INode, folder, flags uint32) error {
	r.files++
	if flags&copiesFlag != 0 && r.c.isChanged(n.ID) { // copies of its record would be read as changes of a folder
		return fmt.Errorf("inode %d is a file, and section %s has it as a folder", n.ID, fsimage.SnapshotDiffs)
	}
	version, attr, err := r.edekOf(n)
	if err != nil {
		return err
	}
	code := version << 1
	if n.Open {
		code |= openFlag
	}
	switch {
	case flags != 0:
		if at := r.c.owned.Add(1) - 1; at < uint64(len(r.c.own)) {
			r.c.own[at] = copied{pack(n.ID), current, code, r.c.hash(attr)}
		} else { // there are more records than inodes
			r.twice++
		}
		r.candidate(version, n, folder, true)
		for _, copied := range r.c.copiesOf(n.ID) {
			r.candidate(copied.code>>1, n, folder, true)
		}
		return nil
	case folder == noFolder:
		r.lost++
		r.lostFiles[version]++
		return nil
	case folder != r.folder || code != r.code:
		r.flushFiles()
		r.folder, r.code = folder, code
	}
	r.n++
	if version != 0 {
		r.candidate(version, n, folder, false)
	}
	return nil
}

// flushFiles counts the files of a run.
func (r *reader) flushFiles() {
	if r.n > 0 && !r.t.add(r.folder, r.code, r.n) {
		r.overflow[uint64(r.folder)<<32|uint64(r.code)] += r.n
	}
	r.n = 0
}

var trashName = []byte(".Trash")

func (r *reader) directory(n *fsimage.INode, folder uint32) error {
	parent := uint32(0)
	if folder != noFolder {
		parent = folder + 1
	}
	if own, ok := r.c.folderOf(n.ID); ok {
		if folder == noFolder { // a damaged image may have its record twice
			r.c.mu.Lock()
			defer r.c.mu.Unlock()
		}
		r.t.parents[own] = parent
		if bytes.Equal(n.Name, trashName) {
			r.t.parents[own] |= trashFlag
		}
		r.set(own, n.Name)
	}
	if len(n.XAttrs) == 0 {
		return nil
	}
	v, ok, err := n.Attr(r.c.names, r.c.zoneAttr)
	if !ok {
		return err
	}
	z := zoneRecord{id: n.ID, name: string(n.Name), parent: parent}
	if err := z.Decode(v); err != nil {
		return fmt.Errorf("the zone of inode %d: %w", n.ID, err)
	}
	r.zones = append(r.zones, z)
	return nil
}

// copiesOf returns a snapshot's copies of a file's record.
func (c *counter) copiesOf(id uint64) []copied {
	return recordsOf(c.copies, id)
}

// ownOf returns the own record of a file with copies or several places. It returns several if the image is damaged.
func (c *counter) ownOf(id uint64) []copied {
	return recordsOf(c.own, id)
}

// recordsOf returns the records of an inode in a list that is in the order of ids.
func recordsOf(list []copied, id uint64) []copied {
	from, to := 0, len(list)
	for from < to { // as in placesOf
		if m := (from + to) / 2; list[m].inode.id() < id {
			from = m + 1
		} else {
			to = m
		}
	}
	return list[from : from+countID(list[from:], id)]
}

// sortOwn cuts off the unused end of own, and sorts the rest.
func (c *counter) sortOwn() {
	c.own = c.own[:min(c.owned.Load(), uint64(len(c.own)))]
	sortBy(c.own, c.workers, compareCopied)
}

// candidate is a file that may become evidence for a version.
type candidate struct {
	id     uint64
	folder uint32 // in the index; noFolder for none
	name   string
}

// candidates are the files with the smallest ids, which are the oldest. There are more than needed, because some may
// turn out to be out of reach.
type candidates struct{ plain, special []candidate }

const spareCandidates = 32

func (r *reader) candidate(version uint32, n *fsimage.INode, folder uint32, special bool) {
	if version == 0 || r.c.config.Paths == 0 {
		return
	}
	if version == r.last.version && !special && n.ID >= r.last.limit { // nearly all files
		return
	}
	if version != r.last.version {
		of := r.evidence[version]
		if of == nil {
			of = new(candidates)
			r.evidence[version] = of
		}
		r.last.version, r.last.candidates, r.last.limit = version, of, math.MaxUint64
	}
	of := r.last.candidates
	list := &of.plain
	if special {
		list = &of.special
	}
	limit := r.c.config.Paths + spareCandidates
	if len(*list) == limit && n.ID >= (*list)[limit-1].id {
		if !special {
			r.last.limit = (*list)[limit-1].id
		}
		return
	}
	at, found := slices.BinarySearchFunc(*list, n.ID, func(c candidate, id uint64) int {
		return int(min(max(int64(c.id)-int64(id), -1), 1)) //nolint:gosec // ids have at most 62 bits
	})
	if found {
		return
	}
	*list = slices.Insert(*list, at, candidate{n.ID, folder, string(n.Name)})
	if len(*list) > limit {
		*list = (*list)[:limit]
	}
}
