package census

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"claviger/fsimage"
)

// Counts are numbers of EDEKs.
type Counts struct {
	// Live EDEKs are those of files that a path without a snapshot reaches. InTrash counts the live EDEKs of files
	// below a folder named .Trash, and OpenForWrite those of files that are open for writing.
	Live uint64 `json:"live"`
	// SnapshotOnly EDEKs are those that only a snapshot shows: those of deleted files, and those of copies of a file's
	// record that differ from the record. SnapshotCopies counts the latter.
	SnapshotOnly   uint64 `json:"snapshotOnly"`
	SnapshotCopies uint64 `json:"snapshotCopies"`
	InTrash        uint64 `json:"inTrash"`
	OpenForWrite   uint64 `json:"openForWrite"`
	// Unreachable EDEKs are those of inodes that no path reaches. A sound image has none.
	Unreachable uint64 `json:"unreachable"`
}

// Sum returns how many EDEKs have a version.
func (c *Counts) Sum() uint64 { return c.Live + c.SnapshotOnly + c.Unreachable }

func (c *Counts) add(o *Counts) {
	c.Live += o.Live
	c.SnapshotOnly += o.SnapshotOnly
	c.SnapshotCopies += o.SnapshotCopies
	c.InTrash += o.InTrash
	c.OpenForWrite += o.OpenForWrite
	c.Unreachable += o.Unreachable
}

// Image identifies the state of the namespace that was counted.
type Image struct {
	Namespace     uint32 `json:"namespaceId"`
	Transaction   uint64 `json:"txid"`
	Time          string `json:"time"` // the newest modification of a file or folder, RFC 3339 to the millisecond
	LayoutVersion int32  `json:"layoutVersion"`
	INodes        uint64 `json:"inodes"`
}

// Version has the counts of the EDEKs that need a key version.
type Version struct {
	Version string `json:"version"`
	Key     string `json:"key"`
	Counts
	// Retirable: no EDEK of the image needs the version, the census is complete, a newer version of the key is known,
	// and no zone of the key has a file without an EDEK.
	Retirable bool `json:"retirable"`
	// Snapshots has the newest snapshot of each EDEK that only snapshots show.
	Snapshots []SnapshotUse `json:"snapshots"`
	Paths     []string      `json:"paths"` // of the oldest files
}

// SnapshotUse is the number of EDEKs that a snapshot shows, and that no newer state shows.
type SnapshotUse struct {
	Snapshot string `json:"snapshot"` // path
	EDEKs    uint64 `json:"edeks"`
	Deleted  bool   `json:"deleted"` // by its owner; the NameNode keeps it until older ones are deleted
}

// Zone is an encryption zone.
type Zone struct {
	Path string `json:"path"`
	Key  string `json:"key"`
	// State is live, snapshot (the zone was deleted, and a snapshot shows it) or unreachable.
	State    string        `json:"state"`
	Versions []ZoneVersion `json:"versions"`
	// Unencrypted live files have no EDEK. UnencryptedSnapshots is the same for records that only a snapshot shows.
	// HDFS gives each file of a zone an EDEK, so the file was copied there raw, or its EDEK was lost.
	Unencrypted          uint64        `json:"unencrypted"`
	UnencryptedSnapshots uint64        `json:"unencryptedSnapshots,omitempty"`
	UnencryptedPaths     []string      `json:"unencryptedPaths,omitempty"` // of some of these files
	Reencryption         *Reencryption `json:"reencryption"`
}

// WithoutEDEK returns how many files of the zone have no EDEK.
func (z *Zone) WithoutEDEK() uint64 { return z.Unencrypted + z.UnencryptedSnapshots }

// ZoneVersion has the counts of a zone's EDEKs that need a key version.
type ZoneVersion struct {
	Version string `json:"version"`
	Counts
}

// Reencryption is a zone's record of its last re-encryption.
type Reencryption struct {
	Version   string `json:"version"`
	State     string `json:"state"` // running, completed or canceled
	Submitted string `json:"submitted"`
	Completed string `json:"completed"`
	Files     uint64 `json:"files"`
	Failures  uint64 `json:"failures"`
	LastFile  string `json:"lastFile"`
}

// Report is the result of a census.
type Report struct {
	Image    Image     `json:"image"`
	Versions []Version `json:"versions"`
	Zones    []Zone    `json:"zones"`
	// KeysWithoutZone are keys of EDEKs for which there is no zone, live or in a snapshot.
	KeysWithoutZone []string `json:"keysWithoutZone"`
	UnencryptedLive uint64   `json:"unencryptedLive"`
	OutsideZones    uint64   `json:"outsideZones"` // live EDEKs of files in no zone: raw copies
	LiveINodes      uint64   `json:"liveInodes"`
	// Complete is false if the counts do not add up, as Problems say. Then no version is retirable.
	Complete bool     `json:"complete"`
	Problems []string `json:"problems"`
	Warnings []string `json:"warnings"`
}

// Census is a counted image.
type Census struct {
	c      *counter
	report Report
}

// Report returns the result.
func (s *Census) Report() *Report { return &s.report }

func (s *Census) makeReport(ctx context.Context) error {
	c, r := s.c, &s.report
	info, err := c.image.ReadInfo(ctx)
	if err != nil {
		return err
	}
	modified := uint64(0)
	for _, x := range c.readers {
		modified = max(modified, x.modified)
	}
	r.Image = Image{info.NamespaceID, info.Transaction, timeText(modified), c.image.LayoutVersion(), c.header.Count}
	r.Warnings = c.image.Warnings()
	if info.RollingUpgrade > 0 {
		r.Warnings = append(r.Warnings, "a rolling upgrade is running since "+timeText(info.RollingUpgrade)+
			": a rollback brings back an older state, which this image does not show")
	}
	t, counted := c.tallyAll()
	r.LiveINodes, r.Problems = counted.live, counted.problems(t)
	r.Complete = len(r.Problems) == 0
	if err := s.addZones(ctx, t); err != nil {
		return err
	}
	s.addVersions(t)
	for k, n := range t.counts {
		switch {
		case k.version == 0:
			r.UnencryptedLive += n.Live
		case k.zone == 0:
			r.OutsideZones += n.Live
		}
	}
	for key := range s.keysOf() {
		if !slices.ContainsFunc(r.Zones, func(z Zone) bool { return z.Key == key }) {
			r.KeysWithoutZone = append(r.KeysWithoutZone, key)
		}
	}
	slices.Sort(r.KeysWithoutZone)
	return nil
}

// timeText returns a time in milliseconds since 1970; "" for 0.
func timeText(ms uint64) string {
	if ms == 0 || ms > 1<<48 {
		return ""
	}
	return time.UnixMilli(int64(ms)).UTC().Format(time.RFC3339Nano) //nolint:gosec // checked
}

// keysOf returns the keys of all versions with EDEKs.
func (s *Census) keysOf() map[string]bool {
	keys := map[string]bool{}
	for i := range s.report.Versions {
		if v := &s.report.Versions[i]; v.Sum() > 0 {
			keys[v.Key] = true
		}
	}
	return keys
}

// keyOf returns the key of a version: what is before the last @, as KeyProvider.getBaseName has it.
func keyOf(version string) string {
	if i := strings.LastIndexByte(version, '@'); i >= 0 {
		return version[:i]
	}
	return version
}

// numberOf returns the number of a version, if it has one.
func numberOf(version string) (int, bool) {
	n, err := strconv.Atoi(version[strings.LastIndexByte(version, '@')+1:])
	return n, err == nil && n >= 0 && version == keyOf(version)+"@"+strconv.Itoa(n)
}

// maxGaps bounds how many versions without EDEKs are listed for a key.
const maxGaps = 1000

// addVersions makes the list of versions: those with EDEKs, those that a zone's record names, and for keys whose
// versions are numbers, those below the newest.
func (s *Census) addVersions(t *tally) {
	c, all := s.c, map[string]*Version{}
	get := func(name string) *Version {
		if all[name] == nil {
			all[name] = &Version{Version: name, Key: keyOf(name)}
		}
		return all[name]
	}
	for k, n := range t.counts {
		if k.version != 0 {
			v := get(c.versions.names[k.version])
			v.add(n)
		}
	}
	for _, name := range c.versions.names[1:] { // also of records that no path shows
		get(name)
	}
	for _, r := range c.readers {
		for _, z := range r.zones {
			if z.Reencrypted != nil && z.Reencrypted.Version != "" {
				get(z.Reencrypted.Version)
			}
		}
	}
	newest := map[string]int{}
	for name, v := range all {
		if n, ok := numberOf(name); ok {
			newest[v.Key] = max(newest[v.Key], n)
		}
	}
	for key, n := range newest {
		for i := max(0, n-maxGaps); i < n; i++ {
			get(key + "@" + strconv.Itoa(i))
		}
	}
	unclear := map[string]bool{} // keys with a zone in which EDEKs may be missing
	for i := range s.report.Zones {
		if z := &s.report.Zones[i]; z.WithoutEDEK() > 0 {
			unclear[z.Key] = true
		}
	}
	evidence := s.evidence()
	for version, name := range c.versions.names {
		if v := all[name]; v != nil {
			v.Snapshots = s.snapshotUses(t.snapshots[uint32(version)]) //nolint:gosec // <= maxVersions
			v.Paths = evidence[uint32(version)]                        //nolint:gosec // <= maxVersions
		}
	}
	for _, v := range all {
		n, numbered := numberOf(v.Version)
		v.Retirable = s.report.Complete && v.Sum() == 0 && numbered && n < newest[v.Key] && !unclear[v.Key]
		s.report.Versions = append(s.report.Versions, *v)
	}
	slices.SortFunc(s.report.Versions, func(a, b Version) int { return compareVersions(a.Version, b.Version) })
}

// compareVersions orders versions by key and number.
func compareVersions(a, b string) int {
	if c := strings.Compare(keyOf(a), keyOf(b)); c != 0 {
		return c
	}
	x, ok := numberOf(a)
	y, ok2 := numberOf(b)
	if ok && ok2 {
		return x - y
	}
	return strings.Compare(a, b)
}

// snapshotUses lists snapshots by the number of EDEKs.
func (s *Census) snapshotUses(counts map[reach]uint64) (uses []SnapshotUse) {
	for far, n := range counts {
		uses = append(uses, SnapshotUse{s.c.snapshotPath(far), n, s.c.snapshots[uint32(far-1)].Deleted})
	}
	slices.SortFunc(uses, func(a, b SnapshotUse) int {
		if a.EDEKs != b.EDEKs {
			return int(min(max(int64(b.EDEKs)-int64(a.EDEKs), -1), 1)) //nolint:gosec // fewer than inodes
		}
		return strings.Compare(a.Snapshot, b.Snapshot)
	})
	return uses
}

// addZones makes the list of zones.
func (s *Census) addZones(ctx context.Context, t *tally) error {
	n := uint32(0)
	for _, r := range s.c.readers {
		for i := range r.zones {
			n++
			s.report.Zones = append(s.report.Zones, s.zone(t, &r.zones[i], n))
		}
	}
	err := s.addUnencryptedPaths(ctx)
	slices.SortFunc(s.report.Zones, func(a, b Zone) int { return strings.Compare(a.Path, b.Path) })
	return err
}

func (s *Census) zone(t *tally, z *zoneRecord, number uint32) Zone {
	c := s.c
	_, far := c.bestPlace(c.placesOf(z.id), z.parent)
	zone := Zone{Key: z.Key, State: "live", Path: "/"}
	switch {
	case z.id == fsimage.RootID:
	case far == 0:
		zone.State, zone.Path = "unreachable", "?/"+z.name
	default:
		zone.Path = c.pathIn(z.id, z.parent, z.name, far)
		if far != current {
			zone.State = "snapshot"
		}
	}
	for k, n := range t.counts {
		switch {
		case k.zone != number:
		case k.version == 0:
			zone.Unencrypted, zone.UnencryptedSnapshots = n.Live, n.SnapshotOnly
		default:
			zone.Versions = append(zone.Versions, ZoneVersion{c.versions.names[k.version], *n})
		}
	}
	slices.SortFunc(zone.Versions, func(a, b ZoneVersion) int { return compareVersions(a.Version, b.Version) })
	if e := z.Reencrypted; e != nil {
		zone.Reencryption = &Reencryption{Version: e.Version, State: "running", Submitted: timeText(e.Submitted),
			Completed: timeText(e.Completed), Files: e.Files, Failures: e.Failures, LastFile: e.LastFile}
		switch {
		case e.Canceled:
			zone.Reencryption.State = "canceled"
		case e.Completed > 0:
			zone.Reencryption.State = "completed"
		}
	}
	return zone
}
