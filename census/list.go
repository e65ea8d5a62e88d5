package census

import (
	"context"
	"fmt"

	"claviger/fsimage"
)

// List calls f with the path of each file that needs a version, and of each copy in a snapshot. It reads the section
// INODE again. The order is that of the image.
func (s *Census) List(ctx context.Context, version string, f func(path string) error) error {
	c := s.c
	number, known := c.versions.numbers[version]
	if !known || number == 0 {
		return nil
	}
	var n fsimage.INode
	var sp special
	g := &collector{c: c, version: c.versions.local()}
	return c.image.Read(ctx, fsimage.INodes, 1, func(_ int, b *fsimage.Batch) error {
		b.Header()
		for msg, ok := b.Next(); ok; msg, ok = b.Next() {
			err := n.Decode(msg)
			if err == nil && n.Type == fsimage.File {
				err = c.listFile(&n, number, g, &sp, f)
			}
			if err != nil {
				return b.Damaged(err)
			}
		}
		return nil
	})
}

// listFile calls f for each path of a file that shows the file with an EDEK of the version.
func (c *counter) listFile(n *fsimage.INode, version uint32, g *collector, sp *special, f func(string) error) error {
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
				if err := f(c.where(n.ID, sp.parent, string(n.Name), e.until)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	own, _, err := g.edekOf(n)
	if far := c.tree.reach(folder); err == nil && own == version && far != 0 {
		err = f(c.path(folder, string(n.Name), far))
	}
	if err != nil {
		return fmt.Errorf("inode %d: %w", n.ID, err)
	}
	return nil
}
