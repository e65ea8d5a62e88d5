package census

import "slices"

// needed is an EDEK that some path can reach, of a file with copies or several places.
type needed struct {
	version uint32
	hash    uint32
	until   reach
	open    bool
	copied  bool // only a snapshot's copy of the record has it, and the record has another
}

// special is what is known of a file with copies or several places.
type special struct {
	records []copied // of snapshots, and its own
	place   place    // the best one
	far     reach
	parent  uint32 // the number + 1 of the folder in the index; 0 for none
	own     *copied
	edeks   []needed
	twice   bool // the image has two records of it
}

// fill finds which EDEKs of a file are needed. records are the file's.
func (s *special) fill(c *counter, records []copied) {
	id := records[0].inode.id()
	*s = special{records: records, edeks: s.edeks[:0]}
	if e := c.index.find(id); e != nil {
		s.parent = *e&folderMask + 1
	}
	s.place, s.far = c.bestPlace(c.placesOf(id), s.parent)
	newest := reach(0) // of the copies
	for i := range records {
		switch r := &records[i]; {
		case r.until != current:
			newest = max(newest, r.until)
		case s.own != nil:
			s.twice = true
		default:
			s.own = r
		}
	}
	if s.far == 0 || s.own == nil {
		return
	}
	if s.far > newest { // the own record is shown
		s.need(needed{s.own.code >> 1, s.own.hash, s.far, s.own.code&openFlag != 0, false})
	}
	for i := range records {
		if r := &records[i]; r.until != current {
			differs := r.code>>1 != s.own.code>>1 || r.hash != s.own.hash
			s.need(needed{r.code >> 1, r.hash, min(r.until, s.far), false, differs})
		}
	}
}

// need adds an EDEK, unless the file has it already: most copies have the EDEK of the file's own record.
func (s *special) need(n needed) {
	at := slices.IndexFunc(s.edeks, func(e needed) bool { return e.version == n.version && e.hash == n.hash })
	switch {
	case n.version == 0 && n.until != current: // a snapshot shows a file that is not encrypted
	case at < 0:
		s.edeks = append(s.edeks, n)
	default:
		s.edeks[at].until = max(s.edeks[at].until, n.until)
	}
}

// eachSpecial calls f for each file with copies or several places.
func (c *counter) eachSpecial(f func(s *special)) {
	var s special
	for rest := c.copies; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].inode == rest[0].inode {
			n++
		}
		s.fill(c, rest[:n])
		f(&s)
		rest = rest[n:]
	}
}
