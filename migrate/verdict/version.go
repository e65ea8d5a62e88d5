package verdict

import (
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/migrate"
)

// JudgeVersion makes a verdict on an old version of a key here: whether an EDEK needs it.
func JudgeVersion(in *Input, old *migrate.OldVersion) *migrate.Verdict {
	j := newJudge(in)
	j.v.Format, j.old = migrate.VersionVerdictFormat, old
	j.v.Versions = append(j.v.Versions, migrate.VersionVerdict{Version: old.Version, Key: old.Key,
		LastUse: &old.LastUse})
	if free := old.LastUse.Add(in.MinUnused); free.After(in.Facts.At) {
		j.problem("version %s may have been used until %s, which is less than %v ago (claviger.purge.min.unused), so "+
			"something may need it that no image shows: it can be purged from %s on", claviger.Printable(old.Version),
			stamp(old.LastUse), in.MinUnused, stamp(free))
	}
	if old.Replaced.After(in.Facts.At.Add(metastore.ClockMargin)) {
		j.problem("the version after %s was made at %s, which is in the future: a clock was ahead then, so it is not "+
			"certain which images are younger; wait until that time, or set the clock of this host",
			claviger.Printable(old.Version), stamp(old.Replaced))
	}
	for _, c := range in.Facts.Conflicts {
		if c.Version == old.Version {
			j.problem("version %s: %s", claviger.Printable(c.Version), c.Why)
		}
	}
	j.checkImages()
	j.checkUses(&metastore.Use{Version: old.Version, Last: old.LastUse})
	j.countVersions(func(string) *migrate.VersionVerdict { return &j.v.Versions[0] })
	return j.decide()
}

// checkRolled checks that no NameNode had EDEKs of the judged version in its queue at the time of the image. A
// re-encryption after the roll proves that. If the image has no zone of the key, the age of the image must prove it.
func (j *judge) checkRolled(m *Image, asOf time.Time) {
	zones := liveZones(m, func(key string) bool { return key == claviger.FoldName(j.old.Key) })
	name, free := claviger.Printable(m.Name), j.old.Replaced.Add(j.Queue)
	if missing := j.notDrained(zones); len(missing) > 0 {
		j.problem("%s does not show that the NameNode has no EDEKs of %s in its queue: %s was not re-encrypted since "+
			"the key was rolled (%s). Re-encrypt it (hdfs crypto -reencryptZone -start -path ZONE); then %s", name,
			claviger.Printable(j.old.Version), joinFirst(missing), stamp(j.old.Replaced), newImage)
	} else if len(zones) == 0 && !asOf.After(free) {
		j.problem("%s shows the state of %s, and the key was rolled at %s: a NameNode keeps ready EDEKs for %v; after "+
			"%s change any file (hdfs dfs -touch FILE), %s",
			name, stamp(asOf), stamp(j.old.Replaced), j.Queue, stamp(free), newImage)
	}
}
