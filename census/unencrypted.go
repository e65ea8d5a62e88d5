package census

import (
	"context"
	"errors"

	"claviger/fsimage"
)

// errEnough ends the reading of INODE when each zone has enough paths.
var errEnough = errors.New("each zone has enough paths")

// addUnencryptedPaths names files of zones that have no EDEK. The zone of a file is known only after the reading of all
// folders, so the section INODE is read again, until each zone with such files has enough paths. s.report.Zones must be
// in the order of the zones' numbers.
func (s *Census) addUnencryptedPaths(ctx context.Context) error {
	missing := 0 // zones that need more paths
	zones := s.report.Zones
	for i := range zones {
		if zones[i].WithoutEDEK() > 0 {
			missing++
		}
	}
	if missing == 0 || s.c.config.Paths == 0 {
		return nil
	}
	u := &unencrypted{c: s.c, edek: &collector{c: s.c, version: s.c.versions.local()}}
	u.add = func(zone uint32, path func() string) error {
		if zone == 0 {
			return nil
		}
		z := &zones[zone-1]
		n := min(uint64(s.c.config.Paths), z.WithoutEDEK()) //nolint:gosec // not negative
		if uint64(len(z.UnencryptedPaths)) >= n {
			return nil
		}
		if z.UnencryptedPaths = append(z.UnencryptedPaths, path()); uint64(len(z.UnencryptedPaths)) == n {
			missing--
		}
		if missing == 0 {
			return errEnough
		}
		return nil
	}
	if err := s.c.image.Read(ctx, fsimage.INodes, 1, u.batch); !errors.Is(err, errEnough) {
		return err
	}
	return nil
}

// unencrypted reads the records of INODE, and calls add for each file without an EDEK that a path reaches.
type unencrypted struct {
	c    *counter
	edek *collector
	sp   special
	add  func(zone uint32, path func() string) error // zone is the number + 1; 0 for none
}

func (u *unencrypted) batch(_ int, b *fsimage.Batch) error {
	b.Header()
	var n fsimage.INode
	for msg, ok := b.Next(); ok; msg, ok = b.Next() {
		err := n.Decode(msg)
		if err == nil && n.Type == fsimage.File {
			err = u.file(&n)
		}
		if errors.Is(err, errEnough) {
			return err
		}
		if err != nil {
			return b.Damaged(err)
		}
	}
	return nil
}

func (u *unencrypted) file(n *fsimage.INode) error {
	c, folder, flags := u.c, uint32(noFolder), uint32(0)
	if e := c.index.find(n.ID); e != nil {
		folder, flags = *e&folderMask, *e&(placesFlag|copiesFlag)
	}
	if folder != noFolder && flags == 0 {
		version, _, err := u.edek.edekOf(n)
		far := c.tree.reach(folder)
		if err != nil || version != 0 || far == 0 {
			return err
		}
		zone, _ := c.tree.zone(folder)
		return u.add(zone, func() string { return c.path(folder, string(n.Name), far) })
	}
	own := c.ownOf(n.ID)
	if len(own) == 0 {
		return nil
	}
	u.sp.fill(c, n.ID, c.placesOf(n.ID), c.copiesOf(n.ID), own)
	zone, _ := c.tree.zone(u.sp.place.folder)
	for _, e := range u.sp.edeks {
		if e.version == 0 {
			path := func() string { return c.where(n.ID, u.sp.parent, string(n.Name), e.until) }
			if err := u.add(zone, path); err != nil {
				return err
			}
		}
	}
	return nil
}
