package census

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// tallyKey names a zone and a version.
type tallyKey struct {
	zone    uint32 // the zone's number + 1; 0 for none
	version uint32
}

// tally has the counts while the report is made.
type tally struct {
	c         *counter
	counts    map[tallyKey]*Counts
	snapshots map[uint32]map[reach]uint64 // by version
	problems  struct{ noRecord, twice uint64 }
	last      struct { // the last result of countsOf: the next call often has the same key
		tallyKey
		*Counts
	}
}

// survey has numbers of inodes, which show whether the image contradicts itself.
type survey struct {
	live    uint64 // in the current file system
	twice   uint64 // in the image twice
	lost    uint64 // reached by no path, neither live nor in a snapshot
	special uint64 // in the image, with placesFlag
	missing uint64 // children of folders that are not in the image
	several uint64 // with entries in counter.places
}

// countsOf returns the counts of a zone and a version.
func (t *tally) countsOf(zone, version uint32) *Counts {
	k := tallyKey{zone, version}
	if t.last.Counts != nil && t.last.tallyKey == k {
		return t.last.Counts
	}
	n := t.counts[k]
	if n == nil {
		n = new(Counts)
		t.counts[k] = n
	}
	t.last.tallyKey, t.last.Counts = k, n
	return n
}

// add counts n EDEKs of a version, of files in a folder.
func (t *tally) add(folder uint32, e needed, n uint64) {
	zone, trash := t.c.tree.zone(folder)
	counts := t.countsOf(zone, e.version)
	switch e.until {
	case 0:
		counts.Unreachable += n
	case current:
		counts.Live += n
		if trash {
			counts.InTrash += n
		}
		if e.open {
			counts.OpenForWrite += n
		}
	default:
		counts.SnapshotOnly += n
		if e.copied {
			counts.SnapshotCopies += n
		}
		t.addSnapshot(e.version, e.until, n)
	}
}

// tallyAll counts everything.
func (c *counter) tallyAll() (*tally, *survey) {
	folders, specials := c.newTally(), c.newTally()
	var counted *survey
	together(folders.addFolders, specials.addSpecials, func() { counted = c.survey() })
	folders.merge(specials)
	return folders, counted
}

func (c *counter) newTally() *tally {
	return &tally{c: c, counts: map[tallyKey]*Counts{}, snapshots: map[uint32]map[reach]uint64{}}
}

// merge adds the counts of another tally.
func (t *tally) merge(o *tally) {
	for k, n := range o.counts {
		t.countsOf(k.zone, k.version).add(n)
	}
	for version, uses := range o.snapshots {
		for until, n := range uses {
			t.addSnapshot(version, until, n)
		}
	}
	t.problems.noRecord += o.problems.noRecord
	t.problems.twice += o.problems.twice
}

func (t *tally) addSnapshot(version uint32, until reach, n uint64) {
	if t.snapshots[version] == nil {
		t.snapshots[version] = map[reach]uint64{}
	}
	t.snapshots[version][until] += n
}

// addFolders adds the counts of the readers by folder.
func (t *tally) addFolders() {
	c := t.c
	add := func(folder, code uint32, n uint64) {
		t.add(folder, needed{version: code >> 1, until: c.tree.reach(folder), open: code&openFlag != 0}, n)
	}
	for f, n := range c.tree.counts {
		if n > 0 {
			add(uint32(f), c.tree.codes[f]-1, uint64(n)) //nolint:gosec // < maxFolders
		}
	}
	for _, r := range c.readers {
		for k, n := range r.overflow {
			add(uint32(k>>32), uint32(k), uint64(n)) //nolint:gosec // both halves
		}
		for version, n := range r.lostFiles {
			t.countsOf(0, version).Unreachable += n
		}
	}
}

// addSpecials counts the files with copies or several places.
func (t *tally) addSpecials() {
	t.c.eachSpecial(func(s *special) {
		switch {
		case len(s.own) == 0:
			t.problems.noRecord++
		case len(s.own) > 1:
			t.problems.twice++
		}
		if s.far == 0 || len(s.own) == 0 {
			for _, r := range slices.Concat(s.copies, s.own) {
				t.countsOf(0, r.code>>1).Unreachable++
			}
		}
		for _, e := range s.edeks {
			t.add(s.place.folder, e, 1)
		}
	})
}

// survey counts inodes.
func (c *counter) survey() *survey {
	s := &survey{live: 1} // the root folder, which no other folder has as a child
	for _, r := range c.readers {
		s.twice, s.lost, s.special = s.twice+r.twice, s.lost+r.lost, s.special+r.special
	}
	for f, n := range c.tree.children {
		switch {
		case n == 0:
		case c.tree.reach(uint32(f)) == 0: //nolint:gosec // < maxFolders
			s.lost += uint64(n - 1)
		case c.tree.reach(uint32(f)) == current: //nolint:gosec // < maxFolders
			s.live += uint64(n - 1)
		}
	}
	for _, p := range c.index.payloads {
		if p&seenFlag == 0 {
			s.missing++
		}
	}
	for places := c.places; len(places) > 0; {
		n := countPlaces(places)
		s.several++
		var parent uint32
		if e := c.index.find(places[0].inode.id()); e != nil {
			parent = *e&folderMask + 1
		}
		switch _, far := c.bestPlace(places[:n], parent); {
		case far == 0:
			s.lost++
		case far == current && parent == 0:
			s.live++
		}
		places = places[n:]
	}
	return s
}

// problems describes the contradictions.
func (s *survey) problems(t *tally) (problems []string) {
	for _, p := range []struct {
		n    uint64
		text string
	}{
		{s.twice + t.problems.twice, "inodes are in the image twice"},
		{s.lost, "inodes are reached by no path, neither live nor in a snapshot"},
		{s.missing, "children of folders are not in the image"},
		{max(s.several, s.special) - min(s.several, s.special),
			"inodes that a snapshot or reference names are not in the image"},
		{t.problems.noRecord, "files that a snapshot holds are not in the image"},
	} {
		if p.n > 0 {
			problems = append(problems, fmt.Sprintf("%d %s", p.n, p.text))
		}
	}
	return problems
}

// evidence returns the paths of the oldest files of each version.
func (s *Census) evidence() map[uint32][]string {
	c, merged := s.c, map[uint32][]candidate{}
	for _, r := range c.readers {
		for version, of := range r.evidence {
			merged[version] = append(merged[version], slices.Concat(of.plain, of.special)...)
		}
	}
	paths := map[uint32][]string{}
	var sp special
	for _, version := range slices.Sorted(maps.Keys(merged)) {
		list := merged[version]
		slices.SortFunc(list, func(a, b candidate) int { return cmp.Compare(a.id, b.id) })
		for _, x := range list {
			if len(paths[version]) == c.config.Paths {
				break
			}
			if path, ok := c.pathOf(&sp, version, x); ok {
				paths[version] = append(paths[version], path)
			}
		}
	}
	return paths
}

// pathOf returns a path, live or in a snapshot, at which a file has an EDEK of a version, if there is one.
func (c *counter) pathOf(s *special, version uint32, x candidate) (string, bool) {
	own := c.ownOf(x.id)
	if len(own) == 0 {
		far := c.tree.reach(x.folder)
		if far == 0 {
			return "", false
		}
		return c.path(x.folder, x.name, far), true
	}
	s.fill(c, x.id, c.placesOf(x.id), c.copiesOf(x.id), own)
	for _, e := range s.edeks {
		if e.version == version {
			return c.pathIn(x.id, s.parent, x.name, e.until), true
		}
	}
	return "", false
}
