package verdict

import (
	"strings"
	"time"

	"claviger"
	"claviger/census"
	"claviger/metastore"
	"claviger/migrate"
)

// asOfImage returns a time that the state of an image is not older than; zero, and a problem, if none is known. The
// newest modification of a file shows it, unless it lies after the image was written: a user may have set it
// (hdfs dfs -touch -t), or a clock was ahead. A NameNode dates re-encryptions by its own clock.
func (j *judge) asOfImage(m *Image) time.Time {
	name := claviger.Printable(m.Name)
	latest := m.Written
	if j.Facts.At.Before(latest) {
		latest = j.Facts.At
	}
	latest = latest.Add(metastore.ClockMargin)
	modified := parse(m.Report.Image.Time)
	ahead := modified.After(latest)
	asOf := modified
	if ahead {
		asOf = time.Time{}
	}
	for _, z := range m.Report.Zones {
		if z.Reencryption == nil {
			continue
		}
		for _, t := range []time.Time{parse(z.Reencryption.Submitted), parse(z.Reencryption.Completed)} {
			if t.After(latest) {
				j.problem("%s: a re-encryption of zone %s is dated %s, after the image was written (%s): a clock is "+
					"wrong; set the clocks of the NameNodes and of this host by NTP, and take a new image when that "+
					"time has passed", name, claviger.Printable(z.Path), stamp(t), stamp(m.Written))
				return time.Time{}
			}
			if t.After(asOf) {
				asOf = t
			}
		}
	}
	switch {
	case asOf.IsZero() && ahead:
		j.problem("%s: the newest change in the image is dated %s, after the image was written (%s): the NameNode's "+
			"clock is ahead, or a user has set the time of a file, so the age of the image is not known. Re-encrypt a "+
			"zone: a NameNode dates that itself; then %s", name, stamp(modified), stamp(m.Written), newImage)
	case asOf.IsZero():
		j.problem("%s has no time at all, so its age is not known: %s", name, newImage)
	}
	return asOf
}

// parse reads a time of a census; zero: it has none.
func parse(text string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}
	}
	return t
}

// checkAge checks that the image is younger than the time since which HDFS asks this KMS, and that NameNodes have no
// EDEKs of the source in their queues since. Either all zones of migrated keys show it by their re-encryption, or the
// image is younger than the run and the life of such a queue, and has EDEKs of this KMS.
func (j *judge) checkAge(m *Image, asOf time.Time) {
	ended := j.Facts.RunEnded
	zones := j.migratedZones(m)
	missing := j.notDrained(zones)
	if len(zones) > 0 && len(missing) == 0 {
		return
	}
	young := asOf.After(ended.Add(j.Queue))
	if young && (len(zones) == 0 || j.needsVersionsHere(m)) {
		return
	}
	name := claviger.Printable(m.Name)
	if len(zones) == 0 {
		j.problem("%s shows the state of %s, and the keys were taken over until %s: a NameNode may have made EDEKs of "+
			"the source since, and keeps ready ones for %v; after %s change any file (hdfs dfs -touch FILE), %s", name,
			stamp(asOf), stamp(ended), j.Queue, stamp(ended.Add(j.Queue)), newImage)
		return
	}
	j.problem("%s does not show that HDFS asks this KMS for the EDEKs of %s: the zones were not re-encrypted since "+
		"the keys were taken over (%s). Re-encrypt them (hdfs crypto -reencryptZone -start -path ZONE), which also "+
		"empties the NameNode's queue of EDEKs; then %s", name, joinFirst(missing), stamp(ended), newImage)
}

// migratedZones returns the live zones whose keys a source had.
func (j *judge) migratedZones(m *Image) []*census.Zone {
	migrated := map[string]bool{}
	for _, v := range j.Facts.Versions {
		migrated[claviger.FoldName(v.Key)] = true
	}
	return liveZones(m, func(key string) bool { return migrated[key] })
}

// liveZones returns the live zones of the keys whose folded names are wanted.
func liveZones(m *Image, wanted func(key string) bool) (zones []*census.Zone) {
	for i := range m.Report.Zones {
		if z := &m.Report.Zones[i]; z.State == "live" && wanted(claviger.FoldName(z.Key)) {
			zones = append(zones, z)
		}
	}
	return zones
}

// notDrained returns the paths of zones of keys of which no zone is drained. A NameNode has one queue for each key.
func (j *judge) notDrained(zones []*census.Zone) (paths []string) {
	drained := map[string]bool{}
	for _, z := range zones {
		drained[z.Key] = drained[z.Key] || j.drained(z)
	}
	for _, z := range zones {
		if !drained[z.Key] {
			paths = append(paths, claviger.Printable(z.Path))
		}
	}
	return paths
}

// drained reports whether a zone's re-encryption began after its key was taken over, or the judged version was
// replaced, to a newer version of this KMS. At its start, the NameNode empties the queue of EDEKs of the zone's key.
func (j *judge) drained(z *census.Zone) bool {
	r := z.Reencryption
	if r == nil || j.Facts.EDEKs[r.Version] != migrate.Here {
		return false
	}
	since, ok := j.Facts.TakenOver[claviger.FoldName(z.Key)]
	switch {
	case j.old != nil && j.judged(r.Version):
		return false
	case j.old != nil:
		since = j.old.Replaced
	case !ok:
		since = j.Facts.RunEnded
	}
	return parse(r.Submitted).After(since)
}

// needsVersionsHere reports whether live files of the image have EDEKs of this KMS's versions.
func (j *judge) needsVersionsHere(m *Image) bool {
	for i := range m.Report.Versions {
		v := &m.Report.Versions[i]
		if v.Live > 0 && j.Facts.EDEKs[v.Version] == migrate.Here {
			return true
		}
	}
	return false
}

// running reports whether a re-encryption that may still free the source's versions is under way.
func (j *judge) running(z *census.Zone) bool {
	return j.drained(z) && strings.EqualFold(z.Reencryption.State, "running")
}
