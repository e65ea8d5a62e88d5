package census

import (
	"sync"
	"sync/atomic"
)

// tree has the facts about each folder that has or had children, by the folder's number.
type tree struct {
	parents  []uint32 // number of the folder above + 1, and trashFlag; 0 if the folder has no parent in the index
	children []uint32 // number of children in the index + 1; 0 if it is not known
	codes    []uint32 // the code of the first file + 1; see copied.code
	counts   []uint32 // number of files with the code of the first file
	names    []uint64 // position of the name in arena
	zones    []uint32 // number of the zone + 1, and trashFlag
	anchorOf []uint32 // index in anchors: the folder itself if it is an anchor, or else the nearest anchor above
	anchors  []anchor

	mu    sync.Mutex
	arena [][]byte
}

// anchor is the root, or a folder that has more places than its place in the index. The folders below an anchor have
// the reach of the anchor, down to the next anchors.
type anchor struct {
	folder uint32
	reach  reach
	moved  bool  // best is set
	best   place // the place with the farthest reach; its folder may be noFolder
}

// The first places in tree.anchors have no folder.
const (
	unknownAnchor = 0 // not yet found
	noAnchor      = 1
)

// trashFlag marks folders named .Trash, and in zones also the folders below them.
const trashFlag = 1 << 31

func newTree(n int) *tree {
	return &tree{
		parents: make([]uint32, n), children: make([]uint32, n), codes: make([]uint32, n), counts: make([]uint32, n),
		names: make([]uint64, n), anchors: []anchor{{folder: noFolder}, {folder: noFolder}},
	}
}

// setChildren sets the number of a folder's children. It returns false if the number was set before.
func (t *tree) setChildren(folder, n uint32) bool {
	return atomic.CompareAndSwapUint32(&t.children[folder], 0, n+1)
}

// add counts n files of a folder. It returns false, and counts nothing, if the folder's first file has another code.
func (t *tree) add(folder, code, n uint32) bool {
	at := &t.codes[folder]
	if atomic.LoadUint32(at) != code+1 && !atomic.CompareAndSwapUint32(at, 0, code+1) {
		return false
	}
	atomic.AddUint32(&t.counts[folder], n)
	return true
}

// The names of folders are in chunks. A position is the chunk, the offset in it, and the length.
const (
	chunkBits  = 20
	chunkSize  = 1 << chunkBits
	lengthBits = 16
	maxName    = 1<<lengthBits - 1
)

// nameWriter stores names in a chunk of one goroutine.
type nameWriter struct {
	t     *tree
	chunk []byte
	at    uint64
}

// set stores the name of a folder. Hadoop's longest names have 255 bytes. A name that is longer than maxName is cut
// off.
func (n *nameWriter) set(folder uint32, name []byte) {
	name = name[:min(len(name), maxName)]
	if len(n.chunk)+len(name) > cap(n.chunk) {
		n.chunk = make([]byte, 0, chunkSize)
		n.t.mu.Lock()
		n.at = uint64(len(n.t.arena)) << chunkBits
		n.t.arena = append(n.t.arena, n.chunk[:chunkSize])
		n.t.mu.Unlock()
	}
	n.t.names[folder] = (n.at|uint64(len(n.chunk)))<<lengthBits | uint64(len(name))
	n.chunk = append(n.chunk, name...)
}

// name returns the name of a folder.
func (t *tree) name(folder uint32) string {
	p := t.names[folder]
	if p == 0 {
		return ""
	}
	at, n := p>>lengthBits, p&maxName
	chunk := t.arena[at>>chunkBits]
	return string(chunk[at%chunkSize : at%chunkSize+n])
}

// parent returns the folder above in the best place of a folder.
func (t *tree) parent(folder uint32) (above uint32, ok bool) {
	if a := &t.anchors[t.anchorOf[folder]]; a.folder == folder && a.moved {
		return a.best.folder, a.best.folder != noFolder
	}
	if p := t.parents[folder] &^ trashFlag; p > 0 {
		return p - 1, true
	}
	return noFolder, false
}

// setAnchors finds the anchor of each folder. If the folders above a folder form a circle, which only damage does, the
// folder has no anchor.
func (t *tree) setAnchors() {
	t.anchorOf = make([]uint32, len(t.parents))
	for i, a := range t.anchors[noAnchor+1:] {
		t.anchorOf[a.folder] = uint32(i) + noAnchor + 1 //nolint:gosec // fewer than folders
	}
	const onPath = noFolder
	var path []uint32
	for f := range t.parents {
		path = path[:0]
		found := uint32(noAnchor)
		for f := uint32(f); ; { //nolint:gosec // < maxFolders
			a := t.anchorOf[f]
			if a == onPath {
				break
			}
			if a != unknownAnchor {
				found = a
				break
			}
			path = append(path, f)
			t.anchorOf[f] = onPath
			p := t.parents[f] &^ trashFlag
			if p == 0 {
				break
			}
			f = p - 1
		}
		for _, f := range path {
			t.anchorOf[f] = found
		}
	}
}

// reach returns the reach of a folder.
func (t *tree) reach(folder uint32) reach {
	if folder >= noFolder {
		return 0
	}
	return t.anchors[t.anchorOf[folder]].reach
}

// zone returns the number of the folder's zone + 1, or 0, and whether the folder is a .Trash folder or below one.
func (t *tree) zone(folder uint32) (zone uint32, trash bool) {
	if folder >= noFolder {
		return 0, false
	}
	z := t.zones[folder]
	return z &^ trashFlag, z&trashFlag != 0
}

// setZones gives each folder the nearest zone above. own has the zones of folders that are zones.
func (t *tree) setZones(own map[uint32]uint32) {
	t.zones = make([]uint32, len(t.parents))
	done := make([]bool, len(t.parents))
	var path []uint32
	for f := range t.parents {
		path = path[:0]
		above := uint32(0)
		for f := uint32(f); ; { //nolint:gosec // < maxFolders
			if done[f] {
				above = t.zones[f]
				break
			}
			done[f] = true // a circle ends here
			path = append(path, f)
			p, ok := t.parent(f)
			if !ok {
				break
			}
			f = p
		}
		for i := len(path) - 1; i >= 0; i-- {
			f := path[i]
			if z, ok := own[f]; ok {
				above = z + 1 | above&trashFlag
			}
			above |= t.parents[f] & trashFlag
			t.zones[f] = above
		}
	}
}
