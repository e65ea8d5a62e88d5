package census

import (
	"slices"
	"strings"

	"claviger/fsimage"
)

// maxDepth ends the way up from a folder in a damaged image.
const maxDepth = 10_000

// path returns the path of an entry of a folder, as it is seen at far. The path of an entry in a snapshot names the
// snapshot. name is "" for the folder itself.
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
		above, ref, _ := c.tree.parent(folder)
		names = append(names, c.placeName(ref, c.tree.name(folder)))
		folder = above
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

// where returns the path of a file in the best place of a file.
func (c *counter) where(p place, name string, far reach) string {
	return c.path(p.folder, c.placeName(p.ref, name), far)
}
