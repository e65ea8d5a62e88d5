package census

import (
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"claviger/fsimage"
)

// reach is the newest state of the file system in which an inode can be seen: current, or S+1 for snapshot S, or 0 for
// none.
type reach uint32

const current = ^reach(0)

// id64 is an inode's id in a struct without padding.
type id64 struct{ low, high uint32 }

func pack(id uint64) id64 { return id64{uint32(id), uint32(id >> 32)} } //nolint:gosec // both halves
func (i id64) id() uint64 { return uint64(i.high)<<32 | uint64(i.low) }

// place is a place of an inode that is not just a child of one folder: a reference, or an entry in the list of what a
// folder lost since a snapshot.
type place struct {
	inode  id64
	folder uint32 // number of the folder
	until  reach  // the place's own limit
	ref    uint32 // the reference + 1; 0 for none
}

func comparePlaces(a, b place) int { return cmp.Compare(a.inode.id(), b.inode.id()) }

// copied is a record of a file: a snapshot's copy, or the file's own record, whose until is current.
type copied struct {
	inode id64
	until reach  // the newest snapshot for which the copy is used
	code  uint32 // version and openFlag
	hash  uint32 // of the EDEK: two records of a file may have the same EDEK
}

func compareCopied(a, b copied) int { return cmp.Compare(a.inode.id(), b.inode.id()) }

// openFlag in a code says that the file is open for writing. The version follows from bit 1 on.
const openFlag = 1

// collector gathers places and copies in one goroutine. Its folders have local numbers.
type collector struct {
	c       *counter
	version local
	folders list[uint64]
	places  list[place]
	copies  list[copied]
	changed list[uint64]
	number  uint32 // of the next folder
	last    uint64 // id of the last folder
	counted uint64 // children
	run     uint32 // children in bucket that are not yet counted
	bucket  uint64
	edek    fsimage.EDEK

	snapshot reach // the last result of reachOf; 0 for none

	_ padding
}

// folder returns the local number of a folder.
func (g *collector) folder(id uint64) uint32 {
	if g.number == 0 || g.last != id {
		g.folders.add(id)
		g.last = id
		g.number++
	}
	return g.number - 1
}

// addPlaces adds the inodes of a list, or those of a list of references.
func (g *collector) addPlaces(folder uint64, until reach, list fsimage.List, refs bool) error {
	if len(list) == 0 {
		return nil
	}
	p := place{folder: g.folder(folder), until: until}
	for v, ok := list.Next(); ok; v, ok = list.Next() {
		if refs {
			if v >= uint64(len(g.c.refs)) {
				return fmt.Errorf("the reference %d: there are %d", v, len(g.c.refs))
			}
			p.ref = uint32(v) + 1 //nolint:gosec // checked
			v = g.c.refs[v].ID
		}
		if v > g.c.header.LastID {
			return fmt.Errorf("inode %d: the last one is %d", v, g.c.header.LastID)
		}
		p.inode = pack(v)
		g.places.add(p)
	}
	return list.Err()
}

// edekOf returns the version of a record's EDEK, and the attribute with the EDEK; 0 without one.
func (g *collector) edekOf(n *fsimage.INode) (version uint32, attr []byte, err error) {
	if len(n.XAttrs) == 0 {
		return 0, nil, nil
	}
	attr, ok, err := n.Attr(g.c.names, g.c.fileAttr)
	if !ok {
		return 0, nil, err
	}
	if err := g.edek.Decode(attr); err != nil {
		return 0, nil, fmt.Errorf("inode %d: %w", n.ID, err)
	}
	version, err = g.version.number(g.edek.Version)
	return version, attr, err
}

// hash returns a hash of an EDEK.
func (c *counter) hash(attr []byte) uint32 {
	return uint32(maphash.Bytes(c.seed, attr)) //nolint:gosec // half of the hash
}

// readDiffs reads SNAPSHOT_DIFF.
func (c *counter) readDiffs(ctx context.Context) error {
	return c.image.ReadDiffs(ctx, c.workers, func() fsimage.Diffs {
		g := c.newCollector()
		return fsimage.Diffs{
			Batch: func(at int64) {
				g.places.begin(at)
				g.copies.begin(at)
			},
			Changed: func(id uint64) { g.changed.add(id) },
			Folder: func(id uint64, snapshot uint32, deleted, refs fsimage.List) error {
				until, err := g.reachOf(snapshot)
				if err != nil {
					return err
				}
				if err := g.addPlaces(id, until, deleted, false); err != nil {
					return err
				}
				return g.addPlaces(id, until, refs, true)
			},
			File: func(id uint64, snapshot uint32, n *fsimage.INode) error {
				until, err := g.reachOf(snapshot)
				if err != nil {
					return err
				}
				version, attr, err := g.edekOf(n)
				g.copies.add(copied{pack(id), until, version << 1, c.hash(attr)})
				return err
			},
		}
	})
}

// reachOf returns the reach of a snapshot.
func (g *collector) reachOf(snapshot uint32) (reach, error) {
	if r := reach(snapshot) + 1; r != 0 && r == g.snapshot { // neighbours often have the same
		return r, nil
	}
	if _, ok := g.c.snapshots[snapshot]; !ok {
		return 0, fmt.Errorf("the differences from snapshot %d, which does not exist", snapshot)
	}
	g.snapshot = reach(snapshot) + 1
	return g.snapshot, nil
}

// countChildren reads INODE_DIR for the first time.
func (c *counter) countChildren(ctx context.Context) error {
	gather := make([]*collector, c.workers)
	for i := range gather {
		gather[i] = c.newCollector()
	}
	err := c.image.Read(ctx, fsimage.Directories, c.workers, func(worker int, b *fsimage.Batch) error {
		g := gather[worker]
		var d fsimage.DirEntry
		for msg, ok := b.Next(); ok; msg, ok = b.Next() {
			err := d.Decode(msg)
			if err == nil {
				err = g.countFolder(&d)
			}
			if err != nil {
				return b.Damaged(err)
			}
		}
		return nil
	})
	for _, g := range gather {
		g.flush()
	}
	return err
}

func (g *collector) countFolder(d *fsimage.DirEntry) error {
	if d.Parent == 0 || d.Parent > g.c.header.LastID {
		return fmt.Errorf("the folder %d: the last inode is %d", d.Parent, g.c.header.LastID)
	}
	g.folder(d.Parent)
	last, index, run := g.c.header.LastID, g.c.index, uint32(0) // the fields of g may share a cache line with another's
	for v, ok := d.Children.Next(); ok; v, ok = d.Children.Next() {
		if v > last {
			return fmt.Errorf("the child %d of folder %d: the last inode is %d", v, d.Parent, last)
		}
		if b := index.bucket(v); b != g.bucket {
			g.run += run
			run = 0
			g.flush()
			g.bucket = b
		}
		run++
	}
	g.run += run
	if err := d.Children.Err(); err != nil {
		return err
	}
	if g.counted > g.c.header.Count {
		return fmt.Errorf("folders have more children than there are inodes (%d)", g.c.header.Count)
	}
	return g.addPlaces(d.Parent, current, d.RefIdx, true)
}

// flush counts the children of a run of ids.
func (g *collector) flush() {
	if g.run > 0 {
		g.c.index.count(g.bucket, g.run)
		g.counted += uint64(g.run)
		g.run = 0
	}
}

func (c *counter) newCollector() *collector {
	g := &collector{c: c, version: c.versions.local()}
	c.mu.Lock()
	c.collectors = append(c.collectors, g)
	c.mu.Unlock()
	return g
}

// mergeCollectors numbers all folders, and merges the places and copies of all goroutines.
func (c *counter) mergeCollectors() error {
	folders := make([][]uint64, len(c.collectors))
	sorted := [][]uint64{{fsimage.RootID}}
	places, copies, changed := []*list[place]{}, []*list[copied]{}, []*list[uint64]{}
	sum := 0
	for i, g := range c.collectors {
		folders[i] = join(&g.folders)
		sorted = append(sorted, slices.Clone(folders[i]))
		places, copies, changed = append(places, &g.places), append(copies, &g.copies), append(changed, &g.changed)
		sum += len(folders[i])
	}
	if sum >= maxFolders {
		return fmt.Errorf("there are more than %d folders", maxFolders)
	}
	c.folders = mergeIDs(sorted, c.workers)
	var parts []func()
	for i, l := range places {
		for _, p := range l.parts() {
			parts = append(parts, func() { c.numberFolders(p.entries, folders[i]) })
		}
	}
	each(c.workers, len(parts), func(i int) { parts[i]() })
	together(func() { c.places = join(places...) }, func() { c.copies, c.changed = join(copies...), join(changed...) })
	c.collectors = nil
	slices.Sort(c.changed)
	sortBy(c.places, c.workers, comparePlaces)
	sortBy(c.copies, c.workers, compareCopied)
	c.own = make([]copied, c.countSpecial())
	return nil
}

// numberFolders replaces the local numbers of folders by those of the counter. Neighbours often have the same folder.
func (c *counter) numberFolders(places []place, local []uint64) {
	last, number := uint32(noFolder), uint32(0)
	for i := range places {
		if p := &places[i]; p.folder != last {
			last = p.folder
			number, _ = c.folderOf(local[last])
		}
		places[i].folder = number
	}
}

// countSpecial returns how many inodes have copies or several places.
func (c *counter) countSpecial() (n int) {
	for i, k := 0, 0; i < len(c.places) || k < len(c.copies); n++ {
		id := ^uint64(0)
		if i < len(c.places) {
			id = c.places[i].inode.id()
		}
		if k < len(c.copies) {
			id = min(id, c.copies[k].inode.id())
		}
		for i < len(c.places) && c.places[i].inode.id() == id {
			i++
		}
		for k < len(c.copies) && c.copies[k].inode.id() == id {
			k++
		}
	}
	return n
}

// folderOf returns the number of a folder that has or had children.
func (c *counter) folderOf(id uint64) (uint32, bool) {
	n, ok := slices.BinarySearch(c.folders, id)
	return uint32(n), ok //nolint:gosec // < maxFolders
}

// placesOf returns the places of an inode besides that of the index.
func (c *counter) placesOf(id uint64) []place {
	from, to := 0, len(c.places)
	for from < to { // slices.BinarySearchFunc takes twice the time, because it calls a function
		if m := (from + to) / 2; c.places[m].inode.id() < id {
			from = m + 1
		} else {
			to = m
		}
	}
	if from == len(c.places) || c.places[from].inode.id() != id {
		return nil
	}
	return c.places[from : from+countPlaces(c.places[from:])]
}

// indexChildren reads INODE_DIR for the second time.
func (c *counter) indexChildren(ctx context.Context) error {
	if n := c.index.allocate(); n > c.header.Count {
		return fmt.Errorf("folders have %d children: there are %d inodes", n, c.header.Count)
	}
	c.tree = newTree(len(c.folders))
	err := c.image.Read(ctx, fsimage.Directories, c.workers, func(_ int, b *fsimage.Batch) error {
		var d fsimage.DirEntry
		for msg, ok := b.Next(); ok; msg, ok = b.Next() {
			err := d.Decode(msg)
			if err == nil {
				err = c.indexFolder(&d)
			}
			if err != nil {
				return b.Damaged(err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.index.finish()
	if err := c.sortIndex(); err != nil {
		return err
	}
	c.flagChildren()
	return nil
}

func (c *counter) indexFolder(d *fsimage.DirEntry) error {
	folder, ok := c.folderOf(d.Parent)
	if !ok {
		return fmt.Errorf("the folder %d was not there before: the file changed", d.Parent)
	}
	n := uint32(0)
	for list := d.Children; ; {
		id, ok := list.Next()
		if !ok {
			break
		}
		b, run, rest := c.index.bucket(id), uint32(1), list
		for next, ok := rest.Next(); ok && c.index.bucket(next) == b; next, ok = rest.Next() {
			run++
		}
		entry := c.index.reserve(b, run)
		if uint64(entry)+uint64(run) > uint64(len(c.index.payloads)) {
			return fmt.Errorf("the children of folder %d changed: the file changed", d.Parent)
		}
		for i := range run {
			if i > 0 {
				id, _ = list.Next()
			}
			c.index.put(entry+i, id, folder)
		}
		n += run
	}
	if !c.tree.setChildren(folder, n) {
		return fmt.Errorf("there are two entries for the folder %d", d.Parent)
	}
	return nil
}

// sortIndex sorts all buckets.
func (c *counter) sortIndex() error {
	var group errgroup.Group
	var mu sync.Mutex
	next := 0
	for range c.workers {
		group.Go(func() error {
			var s sorter
			for {
				mu.Lock()
				b := next
				next += 64
				mu.Unlock()
				if b >= len(c.index.starts)-1 {
					return nil
				}
				for i := b; i < min(b+64, len(c.index.starts)-1); i++ {
					if id, twice := c.index.sort(i, &s); twice {
						return &fsimage.Error{Section: fsimage.Directories, Offset: c.image.Start(fsimage.Directories),
							Err: fmt.Errorf("inode %d is twice a child", id)}
					}
				}
			}
		})
	}
	return group.Wait()
}

// flagChildren marks the children that have other places, or differences from snapshots.
func (c *counter) flagChildren() {
	together(func() {
		for _, p := range c.places {
			if e := c.index.find(p.inode.id()); e != nil {
				atomic.OrUint32(e, placesFlag)
			}
		}
	}, func() {
		for _, r := range c.copies {
			if e := c.index.find(r.inode.id()); e != nil {
				atomic.OrUint32(e, copiesFlag)
			}
		}
		for _, id := range c.changed {
			if e := c.index.find(id); e != nil {
				atomic.OrUint32(e, copiesFlag)
			}
		}
	})
}
