package census

import (
	"context"
	"errors"
)

// errEnough ends the reading of INODE when each zone has enough paths.
var errEnough = errors.New("each zone has enough paths")

// addUnencryptedPaths adds to each zone the paths of some files without an EDEK. The zone of a file is known only after
// the reading of all folders, so the section INODE is read again, until each zone with such files has enough paths.
// s.report.Zones must be in the order of the zones' numbers.
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
	add := func(folder uint32, path func() string) error {
		zone, _ := s.c.tree.zone(folder) // the number + 1; 0 for none
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
	if err := s.c.eachPath(ctx, 0, add); !errors.Is(err, errEnough) {
		return err
	}
	return nil
}
