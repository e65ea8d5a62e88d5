package census

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"claviger/fsimage"
)

// Config says how an image is counted.
type Config struct {
	Workers int // goroutines; at least 1
	Paths   int // how many example paths are kept for each version
	// Progress is called often, by one goroutine at a time, with the number of inodes read and that of all.
	Progress func(done, total uint64)
}

// counter is the state of a census.
type counter struct {
	image    *fsimage.Image
	config   Config
	workers  int
	seed     maphash.Seed
	versions *versions

	names              *fsimage.Names
	fileAttr, zoneAttr fsimage.Name
	snapshots          map[uint32]fsimage.Snapshot
	refs               []reference
	header             fsimage.INodeHeader

	mu         sync.Mutex
	collectors []*collector  // nil after mergeCollectors
	folders    []uint64      // ids, ascending
	places     []place       // sorted by inode
	copies     []copied      // records of snapshots, sorted by inode
	changed    []uint64      // ids of the folders with differences from snapshots, ascending
	own        []copied      // records of the files with copies or several places; sorted by inode after sortOwn
	owned      atomic.Uint64 // number of records for own; more than len(own) in a damaged image
	index      *index
	tree       *tree
	readers    []*reader
	done       atomic.Uint64
}

// reference is a record of INODE_REFERENCE.
type reference struct {
	ID   uint64
	Name string // if the reference is a place before a rename: the name there
}

// maxINodes bounds the inodes of an image: the index has 32 bits for them. It is four times what a NameNode can hold.
const maxINodes = math.MaxUint32 - 1

// maxINodesPerByte bounds the inodes that an image may state, and so the memory that it can demand, by the length of
// its file. No compression gets near this number.
const maxINodesPerByte = 4

// With more than manyINodes inodes, unused memory is returned to the system before the index is made.
const manyINodes = 500_000

// Count counts the EDEKs of an image.
func Count(ctx context.Context, image *fsimage.Image, config Config) (*Census, error) {
	c, err := count(ctx, image, config)
	if err != nil {
		return nil, err
	}
	s := &Census{c: c}
	return s, s.makeReport(ctx)
}

// count reads the image.
func count(ctx context.Context, image *fsimage.Image, config Config) (*counter, error) {
	c := &counter{image: image, config: config, workers: max(1, config.Workers), seed: maphash.MakeSeed(),
		versions: newVersions(), snapshots: map[uint32]fsimage.Snapshot{}}
	if err := c.readSmall(ctx); err != nil {
		return nil, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.readDiffs(groupCtx) })
	group.Go(func() error { return c.countChildren(groupCtx) })
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := c.mergeCollectors(); err != nil {
		return nil, c.damaged(fsimage.Directories, err)
	}
	if c.header.Count > manyINodes {
		debug.FreeOSMemory() // the collectors' memory, because the index needs much
	}
	if err := c.indexChildren(ctx); err != nil {
		return nil, c.damaged(fsimage.Directories, err)
	}
	if err := c.readINodes(ctx); err != nil {
		return nil, err
	}
	c.resolve()
	return c, nil
}

// damaged adds the section and its start to err. It returns err as it is if err is an fsimage.Error, which has the
// place already, or if the census was cancelled.
func (c *counter) damaged(section string, err error) error {
	if e := new(fsimage.Error); errors.As(err, &e) || errors.Is(err, context.Canceled) {
		return err
	}
	return &fsimage.Error{Section: section, Offset: c.image.Start(section), Err: err}
}

// readSmall reads the small sections, and the header of INODE.
func (c *counter) readSmall(ctx context.Context) error {
	for _, name := range []string{fsimage.INodes, fsimage.Directories, fsimage.Snapshots, fsimage.INodeReference,
		fsimage.StringTable} {
		if !c.image.Has(name) && (name != fsimage.INodeReference && name != fsimage.Snapshots) {
			return &fsimage.Error{Section: name, Err: errors.New("the image has no such section")}
		}
	}
	names, err := c.image.ReadNames(ctx)
	if err != nil {
		return err
	}
	c.names = names
	c.fileAttr, _ = names.Attr(fsimage.RawSpace, fsimage.FileAttr)
	c.zoneAttr, _ = names.Attr(fsimage.RawSpace, fsimage.ZoneAttr)
	list, err := c.image.ReadSnapshots(ctx, names)
	if err != nil {
		return err
	}
	for _, s := range list {
		c.snapshots[s.ID] = s
	}
	if err := c.readReferences(ctx); err != nil {
		return err
	}
	if c.header, err = c.image.ReadINodeHeader(ctx); err != nil {
		return err
	}
	size := c.image.Bytes(fsimage.INodes)
	if n := c.header.Count; n > maxINodes || n > uint64(size)*maxINodesPerByte { //nolint:gosec // not negative
		return c.damaged(fsimage.INodes, fmt.Errorf("its header says %d inodes, and it has %d bytes", n, size))
	}
	if c.index, err = newIndex(c.header.LastID, c.header.Count); err != nil {
		return c.damaged(fsimage.INodes, err)
	}
	return nil
}

func (c *counter) readReferences(ctx context.Context) error {
	return c.image.Read(ctx, fsimage.INodeReference, 1, func(_ int, b *fsimage.Batch) error {
		var r fsimage.Reference
		for msg, ok := b.Next(); ok; msg, ok = b.Next() {
			if err := r.Decode(msg); err != nil {
				return b.Damaged(err)
			}
			if r.ID == 0 {
				return b.Damaged(errors.New("a reference to no inode"))
			}
			c.refs = append(c.refs, reference{r.ID, string(r.Name)})
		}
		return nil
	})
}

// resolve finds the reach and the zone of each folder.
func (c *counter) resolve() {
	c.sortOwn()
	root, _ := c.folderOf(fsimage.RootID)
	c.tree.anchors = append(c.tree.anchors, anchor{folder: root, reach: current})
	moved := c.movedFolders(root)
	for _, m := range moved {
		c.tree.anchors = append(c.tree.anchors, anchor{folder: m.folder})
	}
	c.tree.setAnchors()
	for changed := true; changed; {
		changed = false
		for i, m := range moved {
			a := &c.tree.anchors[noAnchor+2+i] // the first anchor after noAnchor is the root's
			if p, r := c.bestPlace(m.places, c.tree.parents[m.folder]&^trashFlag); r > a.reach {
				a.reach, a.best, a.moved = r, p, true
				changed = true
			}
		}
	}
	zones := map[uint32]uint32{}
	n := uint32(0)
	for _, r := range c.readers {
		for _, z := range r.zones {
			if f, ok := c.folderOf(z.id); ok {
				zones[f] = n
			}
			n++
		}
	}
	c.tree.setZones(zones)
}

// movedFolder is a folder that has more places than its place in the index.
type movedFolder struct {
	folder uint32 // number
	places []place
}

// movedFolders returns the folders that have entries in c.places, except the root. Folders and places are both in the
// order of ids.
func (c *counter) movedFolders(root uint32) (moved []movedFolder) {
	folder := 0
	for places := c.places; len(places) > 0; {
		id, n := places[0].inode.id(), countPlaces(places)
		for folder < len(c.folders) && c.folders[folder] < id {
			folder++
		}
		//nolint:gosec // < maxFolders
		if f := uint32(folder); folder < len(c.folders) && c.folders[folder] == id && f != root {
			moved = append(moved, movedFolder{f, places[:n]})
		}
		places = places[n:]
	}
	return moved
}

// countPlaces returns how many places at the beginning of a list are those of its first inode.
func countPlaces(list []place) int {
	n := 1
	for n < len(list) && list[n].inode == list[0].inode {
		n++
	}
	return n
}

// bestPlace returns the place with the farthest reach. parent is the number + 1 of the folder in the index, or 0.
func (c *counter) bestPlace(places []place, parent uint32) (best place, far reach) {
	best = place{folder: noFolder}
	if parent > 0 {
		best.folder, best.until = parent-1, current
		far = c.tree.reach(best.folder)
	}
	for _, p := range places {
		if r := min(p.until, c.tree.reach(p.folder)); r > far {
			best, far = p, r
		}
	}
	return best, far
}
