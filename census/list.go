package census

import (
	"context"
	"fmt"

	"claviger/fsimage"
)

// List calls f with the path of each file that needs a version, and of each copy in a snapshot. It reads the section
// INODE again. The order is that of the image.
func (s *Census) List(ctx context.Context, version string, f func(path string) error) error {
	number, known := s.c.versions.numbers[version]
	if !known || number == 0 {
		return nil
	}
	return s.c.eachPath(ctx, number, func(_ uint32, path func() string) error { return f(path()) })
}

// eachPath reads the section INODE again. It calls f for each file that a path shows with an EDEK of a version, and for
// each such copy in a snapshot; version 0 is a record without an EDEK. folder is the number of the file's folder, and
// path makes the path.
func (c *counter) eachPath(ctx context.Context, version uint32, f func(folder uint32, path func() string) error) error {
	var n fsimage.INode
	var sp special
	g := &collector{c: c, version: c.versions.local()}
	return c.image.Read(ctx, fsimage.INodes, 1, func(_ int, b *fsimage.Batch) error {
		b.Header()
		for msg, ok := b.Next(); ok; msg, ok = b.Next() {
			err := n.Decode(msg)
			if err == nil && n.Type == fsimage.File {
				err = c.pathsOf(&n, version, g, &sp, f)
			}
			if err != nil {
				return b.Damaged(err)
			}
		}
		return nil
	})
}

// pathsOf calls f for each path of a file that shows the file with an EDEK of the version.
func (c *counter) pathsOf(n *fsimage.INode, version uint32, g *collector, sp *special,
	f func(folder uint32, path func() string) error) error {
	folder, flags := uint32(noFolder), uint32(0)
	if e := c.index.find(n.ID); e != nil {
		folder, flags = *e&folderMask, *e&(placesFlag|copiesFlag)
	}
	if folder == noFolder || flags != 0 {
		own := c.ownOf(n.ID)
		if len(own) == 0 {
			return nil
		}
		sp.fill(c, n.ID, c.placesOf(n.ID), c.copiesOf(n.ID), own)
		for _, e := range sp.edeks {
			if e.version == version {
				path := func() string { return c.pathIn(n.ID, sp.parent, string(n.Name), e.until) }
				if err := f(sp.place.folder, path); err != nil {
					return err
				}
			}
		}
		return nil
	}
	own, _, err := g.edekOf(n)
	if far := c.tree.reach(folder); err == nil && own == version && far != 0 {
		err = f(folder, func() string { return c.path(folder, string(n.Name), far) })
	}
	if err != nil {
		return fmt.Errorf("inode %d: %w", n.ID, err)
	}
	return nil
}
