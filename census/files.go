package census

import "slices"

// needed is an EDEK that some path can reach, of a file with copies or several places.
type needed struct {
	version uint32 // key version
	hash    uint32 // of the EDEK
	until   reach  // the newest state that needs it
	open    bool   // the file is open for writing
	copied  bool   // only a snapshot's copy of the record has this EDEK: the record itself has another
}

// special has the facts about a file with copies or several places.
type special struct {
	copies []copied // of snapshots
	own    []copied // its own record; several if the image is damaged
	place  place    // the place with the farthest reach
	far    reach    // the reach of place, and so of the file
	parent uint32   // the number + 1 of the folder in the index; 0 for none
	edeks  []needed
}

// fill finds which EDEKs of a file are needed. places are its places besides that of the index.
func (s *special) fill(c *counter, id uint64, places []place, copies, own []copied) {
	*s = special{copies: copies, own: own, edeks: s.edeks[:0]}
	if e := c.index.find(id); e != nil {
		s.parent = *e&folderMask + 1
	}
	s.place, s.far = c.bestPlace(places, s.parent)
	if s.far == 0 || len(own) == 0 {
		return
	}
	newest := reach(0) // of the copies
	for i := range copies {
		newest = max(newest, copies[i].until)
	}
	if s.far > newest { // the own record is shown
		s.addEDEK(needed{own[0].code >> 1, own[0].hash, s.far, own[0].code&openFlag != 0, false})
	}
	for i := range copies {
		r := &copies[i]
		differs := r.code>>1 != own[0].code>>1 || r.hash != own[0].hash
		s.addEDEK(needed{r.code >> 1, r.hash, min(r.until, s.far), false, differs})
	}
}

// addEDEK adds an EDEK, unless the file has it already: most copies have the EDEK of the file's own record. Version 0
// is a record without an EDEK.
func (s *special) addEDEK(n needed) {
	at := slices.IndexFunc(s.edeks, func(e needed) bool { return e.version == n.version && e.hash == n.hash })
	if at < 0 {
		s.edeks = append(s.edeks, n)
	} else {
		s.edeks[at].until = max(s.edeks[at].until, n.until)
	}
}

// eachSpecial calls f for each file with copies or several places.
func (c *counter) eachSpecial(f func(s *special)) {
	var s special
	places, copies, own := c.places, c.copies, c.own
	for len(copies)+len(own) > 0 {
		id := ^uint64(0)
		if len(copies) > 0 {
			id = copies[0].inode.id()
		}
		if len(own) > 0 {
			id = min(id, own[0].inode.id())
		}
		for len(places) > 0 && places[0].inode.id() < id {
			places = places[1:]
		}
		k := 0
		if len(places) > 0 && places[0].inode.id() == id {
			k = countPlaces(places)
		}
		n, m := countID(copies, id), countID(own, id)
		s.fill(c, id, places[:k], copies[:n], own[:m])
		f(&s)
		copies, own = copies[n:], own[m:]
	}
}

// countID returns how many records at the beginning of a list are those of an inode.
func countID(list []copied, id uint64) (n int) {
	for n < len(list) && list[n].inode.id() == id {
		n++
	}
	return n
}
