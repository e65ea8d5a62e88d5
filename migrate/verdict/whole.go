package verdict

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"claviger"
	"claviger/census"
	"claviger/migrate"
	"claviger/shellword"
)

// checkWhole checks what would be seen if EDEKs were missing in the image: the digest of its file, and files without an
// EDEK in zones. The operator may accept both, and the verdict says so.
func (j *judge) checkWhole(m *Image) {
	name := claviger.Printable(m.Name)
	switch {
	case m.Unchecked && j.AcceptUnchecked:
		j.accept("the image %s was not compared with an MD5 digest of the NameNode (--accept-unchecked)", name)
	case m.Unchecked:
		j.problem("%s was not compared with an MD5 digest, so a damaged byte may hide EDEKs: there is no file %s.md5. "+
			"The NameNode writes that file beside each image: copy it too, or fetch the image by --namenode. If the "+
			"file is lost, --accept-unchecked accepts the image, and the verdict says so", name, name)
	}
	for i := range m.Report.Zones {
		z := &m.Report.Zones[i]
		n := z.WithoutEDEK()
		if n == 0 || j.old != nil && claviger.FoldName(z.Key) != claviger.FoldName(j.old.Key) {
			continue
		}
		path := j.placeOf(m, z.Path)
		what := fmt.Sprintf("zone %s has %d files without an EDEK: %d live, %d only in snapshots%s",
			claviger.Printable(path), n, z.Unencrypted, z.UnencryptedSnapshots, examples(z))
		if accepted, ok := j.AcceptUnencrypted[path]; ok && n <= accepted {
			j.accept("%s (--accept-unencrypted)", what)
			continue
		}
		j.problem("%s. HDFS gives each file of a zone an EDEK, so the image may have lost EDEKs of versions that are "+
			"needed, or the files were copied there raw, without encryption. Take an image of another NameNode, and "+
			"compare; encrypt such files by copying them within the zone (hdfs dfs -cp) and deleting the old ones, "+
			"and their snapshots. Or accept these files: --accept-unencrypted %s", what,
			shellword.Quote(fmt.Sprintf("%s=%d", path, n)))
	}
}

// addLost names EDEKs of versions that were destroyed here.
func (j *judge) addLost(m *Image) {
	for i := range m.Report.Versions {
		v := &m.Report.Versions[i]
		if n := v.Sum(); n > 0 && j.Facts.EDEKs[v.Version] == migrate.Destroyed {
			j.v.Lost = append(j.v.Lost, fmt.Sprintf("%d EDEKs of %s have version %s, which was here and has been "+
				"destroyed: nobody can read their files", n, claviger.Printable(m.Name), claviger.Printable(v.Version)))
		}
	}
}

// examples names some of a zone's files without an EDEK.
func examples(z *census.Zone) string {
	if len(z.UnencryptedPaths) == 0 {
		return ""
	}
	paths := make([]string, 0, len(z.UnencryptedPaths))
	for _, p := range z.UnencryptedPaths {
		paths = append(paths, claviger.Printable(p))
	}
	return ", for example " + joinFirst(paths)
}

// accept adds what the operator has accepted.
func (j *judge) accept(format string, args ...any) {
	j.v.Accepted = append(j.v.Accepted, fmt.Sprintf(format, args...))
}

// checkOlder checks that no verdict has counted a newer image of the namespace. The operator may say that HDFS was
// rolled back since. Then the image must show a change that was made after the state of the newer image, so that an old
// file is not taken for the state after a rollback. rolledBack is true if that was accepted.
func (j *judge) checkOlder(m *Image, asOf time.Time) (rolledBack bool) {
	seen := j.Facts.Images[m.Report.Image.Namespace]
	why := seen.Older(m.Name, m.Report.Image.Transaction)
	switch {
	case why == "":
	case !j.AcceptRollback:
		j.problem("%s: give that image, or a newer one. If HDFS was rolled back to an older transaction since, "+
			"--accept-rollback accepts images from after the rollback, and the verdict says so", why)
	case !asOf.After(seen.AsOf):
		j.problem("%s, which shows the state of %s. This one shows no later change, so it may be from before the "+
			"rollback: change any file (hdfs dfs -touch FILE), %s", why, stamp(seen.AsOf), newImage)
	default:
		j.accept("%s; by the operator's word, HDFS was rolled back since (--accept-rollback)", why)
		return true
	}
	return false
}

// checkGone checks that there is an image of each namespace that a verdict has counted before: an image of another
// HDFS, whose keys have the same names, shows nothing about this one.
func (j *judge) checkGone() {
	for _, id := range slices.Sorted(maps.Keys(j.Facts.Images)) {
		if slices.ContainsFunc(j.Images, func(m Image) bool { return m.Report.Image.Namespace == id }) {
			continue
		}
		why := j.Facts.Images[id].Missing(id)
		if slices.Contains(j.AcceptGone, id) {
			j.v.Gone = append(j.v.Gone, id)
			j.accept("%s; by the operator's word, the namespace is not a part of this HDFS (--accept-gone)", why)
			continue
		}
		j.problem("%s: give an image of each, and name all nameservices in hdfs-site.xml. If the namespace is not a "+
			"part of this HDFS, or not any more, --accept-gone %d accepts that, and the verdict says so", why, id)
	}
}
