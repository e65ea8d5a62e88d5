package census

import (
	"slices"
	"strings"

	"claviger/fsimage"
)

// maxDepth ends the way up from a folder in a damaged image.
const maxDepth = 10_000

// path returns the path of an entry of a folder, as it is in the state far. The path of an entry in a snapshot names
// the snapshot. name is "" for the folder itself.
func (c *counter) path(folder uint32, name string, far reach) string {
	var names []string
	if name != "" {
		names = append(names, name)
	}
	snapshot, old := c.snapshots[uint32(far-1)] //nolint:gosec // far is not 0
	old = old && far != current
	for range maxDepth {
		if folder >= noFolder {
			names = append(names, "?")
			break
		}
		if old && c.folders[folder] == snapshot.Root {
			names = append(names, snapshot.Name, ".snapshot")
			old = false
		}
		if c.folders[folder] == fsimage.RootID {
			break
		}
		p := c.placeAt(c.folders[folder], c.tree.parents[folder]&^trashFlag, far)
		names = append(names, c.placeName(p.ref, c.tree.name(folder)))
		folder = p.folder
	}
	slices.Reverse(names)
	return "/" + strings.Join(names, "/")
}

// placeName returns the name of an inode in a place: an old place has the name that the inode had then.
func (c *counter) placeName(ref uint32, name string) string {
	if ref > 0 && c.refs[ref-1].Name != "" {
		return c.refs[ref-1].Name
	}
	return name
}

// snapshotPath returns the path of a snapshot: /folder/.snapshot/name.
func (c *counter) snapshotPath(far reach) string {
	s := c.snapshots[uint32(far-1)] //nolint:gosec // far is not 0
	folder, ok := c.folderOf(s.Root)
	if !ok { // a folder that has and had no children, with an empty snapshot
		return "?/.snapshot/" + s.Name
	}
	return c.path(folder, "", far)
}

// pathIn returns the path of an inode as it is in the state far. parent is the number + 1 of the folder in the index,
// or 0.
func (c *counter) pathIn(id uint64, parent uint32, name string, far reach) string {
	p := c.placeAt(id, parent, far)
	return c.path(p.folder, c.placeName(p.ref, name), far)
}

// placeAt returns the place of an inode in the state far. Of several places, placeAt returns the place that ended
// first after far: the inode left that place first.
func (c *counter) placeAt(id uint64, parent uint32, far reach) place {
	best := place{folder: noFolder}
	consider := func(p place) {
		if p.until >= far && c.tree.reach(p.folder) >= far && (best.folder == noFolder || p.until < best.until) {
			best = p
		}
	}
	if parent > 0 {
		consider(place{folder: parent - 1, until: current})
	}
	for _, p := range c.placesOf(id) {
		consider(p)
	}
	return best
}
