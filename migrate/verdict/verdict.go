// Package verdict decides, by a census of fsimages, whether the EDEKs of an HDFS still need a source of keys. It joins
// the counts of all namespaces with the journal of the migration, the versions here, and the uses of the source.
//
// It grants nothing by default. Each condition below that is not shown is a problem, and with a problem there is no
// verdict:
//
//   - one complete census of each namespace, all of the cluster of the configuration;
//   - the keys of all zones and EDEKs are known here;
//   - each image is younger than the last use of the source, and than the moment at which HDFS began to ask this KMS.
//
// An old image only overstates the EDEKs of old versions, because a NameNode makes EDEKs of the version that its KMS
// returns. EDEKs of a source's version can come later from two places: the source itself, until HDFS asks this KMS, and
// the NameNode's queue of EDEKs that are ready. The start of a zone's re-encryption drains that queue, and records the
// version that the KMS, this one or another, returned as the current one.
package verdict

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/census"
	"claviger/metastore"
	"claviger/migrate"
)

// Image is a counted image.
type Image struct {
	Name   string // file or URL
	Digest string // SHA-256, hexadecimal
	Bytes  int64
	// Written is when the image's file was written, or fetched. The image's state cannot be younger.
	Written time.Time
	// Nameservice is the nameservice of the NameNode that gave the image, by the configuration; "" if it is not known.
	Nameservice string
	// Cluster is the cluster's id in the file VERSION beside the image, and Namespace the id of the namespace; "" if
	// there is no such file.
	Cluster, Namespace string
	// Unchecked is true if nothing showed that the file is what the NameNode wrote: it has no MD5 digest.
	Unchecked bool
	Report    *census.Report
}

// Input has the facts from which a verdict is made.
type Input struct {
	Images []Image
	// Nameservices are those of the configuration; at least one. If they are not known, Unknown says why.
	Nameservices []string
	Unknown      string
	// Queue is how long a NameNode keeps EDEKs that are ready.
	Queue time.Duration
	// MinUnused is how long a version here must be unused before it may be destroyed.
	MinUnused time.Duration
	// AcceptUnchecked: the operator accepts images without a digest. AcceptUnencrypted has how many files without an
	// EDEK the operator accepts in each zone, by the zone's path.
	AcceptUnchecked   bool
	AcceptUnencrypted map[string]uint64
	// AcceptRollback: the operator says that HDFS was rolled back to an older transaction than one that was counted.
	AcceptRollback bool
	// AcceptGone are the ids of namespaces that are not a part of this HDFS, by the operator's word, although an image
	// of them was counted before.
	AcceptGone []uint32
	Facts      *migrate.EDEKFacts
}

// Names returns the keys and versions in the censuses, whose holders the facts must have.
func Names(images []Image) (keys, versions []string) {
	for _, m := range images {
		for _, z := range m.Report.Zones {
			keys = append(keys, z.Key)
			if z.Reencryption != nil && z.Reencryption.Version != "" {
				versions = append(versions, z.Reencryption.Version)
			}
		}
		for i := range m.Report.Versions {
			if v := &m.Report.Versions[i]; v.Sum() > 0 {
				versions = append(versions, v.Version)
			}
		}
	}
	slices.Sort(keys)
	slices.Sort(versions)
	return slices.Compact(keys), slices.Compact(versions)
}

// judge makes a verdict.
type judge struct {
	*Input
	v    *migrate.Verdict
	asOf []time.Time         // of each image; zero: not known
	old  *migrate.OldVersion // the version here that is judged; nil if the source is judged
}

// newImage is the cure of an image that is too old.
const newImage = "make a new image (hdfs dfsadmin -saveNamespace, in safe mode), and run the command again"

// Judge makes a verdict on the source.
func Judge(in *Input) *migrate.Verdict {
	j := newJudge(in)
	j.v.Format = migrate.VerdictFormat
	j.checkRun()
	j.checkImages()
	j.checkUses(in.Facts.LastUse)
	j.addVersions()
	j.addUnused()
	return j.decide()
}

func newJudge(in *Input) *judge {
	return &judge{Input: in, v: &migrate.Verdict{At: in.Facts.At, Outcome: migrate.NoVerdict,
		Images: []migrate.VerdictImage{}, Problems: []string{}, ToDo: []migrate.Step{},
		Versions: []migrate.VersionVerdict{}, UnusedKeys: []string{}, NotReached: migrate.NotReached,
		Journal: in.Facts.Journal}}
}

// checkImages checks the clocks and all images.
func (j *judge) checkImages() {
	if err := j.Facts.Clocks; err != nil {
		j.problem("the time of the last use is not certain: %v", err)
	}
	j.checkNamespaces()
	for i := range j.Images {
		j.checkImage(&j.Images[i])
	}
}

// decide sets the outcome, and what to do.
func (j *judge) decide() *migrate.Verdict {
	j.addToDo()
	switch needed := slices.ContainsFunc(j.v.Versions, func(v migrate.VersionVerdict) bool { return v.EDEKs > 0 }); {
	case len(j.v.Problems) > 0:
	case needed:
		j.v.Outcome = migrate.Needed
	default:
		j.v.Outcome = migrate.Granted
	}
	j.explain()
	return j.v
}

// problem adds a reason why there is no verdict.
func (j *judge) problem(format string, args ...any) {
	j.v.Problems = append(j.v.Problems, fmt.Sprintf(format, args...))
}

// checkRun checks the migration.
func (j *judge) checkRun() {
	f := j.Facts
	if f.Run == nil {
		j.problem("nothing was migrated: the journal of this metastore has no run, so no source is known; run " +
			"claviger migrate run first")
		return
	}
	j.v.Source, j.v.Run = f.Run.Source, f.Run.Name
	if f.RunEnded.IsZero() {
		j.problem("the last run (%s) has not taken over all keys: run the migration again", f.Run.Name)
	}
	if f.RunEnded.After(f.At.Add(metastore.ClockMargin)) {
		j.problem("the last run ended at %s, which is in the future: a clock was ahead then, so it is not certain "+
			"which images are younger; wait until that time, or set the clock of this host", stamp(f.RunEnded))
	}
	for _, c := range f.Conflicts {
		j.problem("version %s: %s", claviger.Printable(c.Version), c.Why)
	}
}

// checkNamespaces checks that there is one image of each namespace.
func (j *judge) checkNamespaces() {
	byID, byService := map[uint32]string{}, map[string]string{}
	for _, m := range j.Images {
		name := claviger.Printable(m.Name)
		id := m.Report.Image.Namespace
		if other, twice := byID[id]; twice {
			j.problem("%s and %s are images of the same namespace (id %d): give one image of each "+
				"namespace", other, name,
				id)
		} else if other, twice := byService[m.Nameservice]; twice && m.Nameservice != "" {
			j.problem("%s and %s come from NameNodes of the same nameservice, %s, and have different namespace ids: "+
				"one NameNode is not of that nameservice; correct hdfs-site.xml", other, name, m.Nameservice)
		}
		byID[id], byService[m.Nameservice] = name, name
	}
	switch n := len(j.Nameservices); {
	case j.Unknown != "":
		j.problem("it is not known how many namespaces the HDFS has: %s", j.Unknown)
	case len(byID) < n:
		j.problem("the configuration has %s, and the images show %d: give an image of each by --image or --namenode%s",
			j.nameservices(), len(byID), j.missing(byService))
	case len(byID) > n:
		j.problem("the configuration has %s, and the images are of %d namespaces: leave out images of other clusters",
			j.nameservices(), len(byID))
	}
	j.checkGone()
	j.checkClusters()
}

// nameservices describes the nameservices of the configuration.
func (j *judge) nameservices() string {
	if n := len(j.Nameservices); n > 1 {
		return fmt.Sprintf("%d nameservices (%s)", n, claviger.Printable(strings.Join(j.Nameservices, ", ")))
	}
	return "one nameservice"
}

// missing names the nameservices without an image, if each image has one.
func (j *judge) missing(have map[string]string) string {
	if _, unnamed := have[""]; unnamed {
		return ""
	}
	var names []string
	for _, n := range j.Nameservices {
		if have[n] == "" {
			names = append(names, n)
		}
	}
	return "; missing: " + claviger.Printable(strings.Join(names, ", "))
}

// checkClusters compares the files VERSION beside images.
func (j *judge) checkClusters() {
	first := ""
	var of string
	for _, m := range j.Images {
		name := claviger.Printable(m.Name)
		if m.Namespace != "" && m.Namespace != fmt.Sprint(m.Report.Image.Namespace) {
			j.problem("%s is an image of namespace %d, and the file VERSION beside it is of namespace %s: the image "+
				"was copied there from another cluster; give the right one", name, m.Report.Image.Namespace,
				claviger.Printable(m.Namespace))
		}
		switch {
		case m.Cluster == "":
		case first == "":
			first, of = m.Cluster, name
		case m.Cluster != first:
			j.problem("%s is an image of cluster %s, and %s of cluster %s: give images of one cluster", of,
				claviger.Printable(first), name, claviger.Printable(m.Cluster))
		}
	}
}

// checkImage checks one image, and adds it to the verdict.
func (j *judge) checkImage(m *Image) {
	r, name := m.Report, claviger.Printable(m.Name)
	asOf := j.asOfImage(m)
	j.asOf = append(j.asOf, asOf)
	image := migrate.VerdictImage{Image: m.Name, Digest: m.Digest, Bytes: m.Bytes, Nameservice: m.Nameservice,
		Namespace: r.Image.Namespace, Transaction: r.Image.Transaction}
	if !asOf.IsZero() {
		image.AsOf = &asOf
	}
	j.v.Images = append(j.v.Images, image)
	if !r.Complete {
		j.problem("the census of %s is not complete (%s): hdfs fsck / and an image of another NameNode show whether "+
			"the namespace or the image is at fault", name, strings.Join(r.Problems, "; "))
	}
	for _, w := range r.Warnings {
		j.problem("the census of %s warns: %s; take an image when that is over, or with a claviger that knows the "+
			"image's layout", name, w)
	}
	j.v.Images[len(j.v.Images)-1].RolledBack = j.checkOlder(m, asOf)
	j.checkWhole(m)
	j.addLost(m)
	j.checkKeys(m)
	switch {
	case asOf.IsZero():
	case j.old != nil:
		j.checkRolled(m, asOf)
	case !j.Facts.RunEnded.IsZero():
		j.checkAge(m, asOf)
	}
}

// checkKeys checks that the keys of the image are known.
func (j *judge) checkKeys(m *Image) {
	name := claviger.Printable(m.Name)
	known := false
	var unknown []string
	for _, z := range m.Report.Zones {
		if j.Facts.Keys[z.Key] != migrate.Nobody {
			known = true
			continue
		}
		unknown = append(unknown, fmt.Sprintf("zone %s has key "+
			"%s", claviger.Printable(z.Path), claviger.Printable(z.Key)))
	}
	for i := range m.Report.Versions {
		switch v := &m.Report.Versions[i]; {
		case v.Sum() == 0:
		case j.Facts.EDEKs[v.Version] != migrate.Nobody:
			known = true
		default:
			unknown = append(unknown, fmt.Sprintf("%d EDEKs have version %s", v.Sum(),
				claviger.Printable(v.Version)))
		}
	}
	switch {
	case !known && len(unknown) > 0:
		j.problem("%s names no key that is known here (%s): is it an image of another cluster?", name,
			joinFirst(unknown))
	case len(unknown) > 0 && j.old == nil:
		j.problem("%s: %s, which is neither here nor in the journal. If the source has got the key since the last "+
			"run, run the migration again. If the key is lost, delete its zones and files, and their snapshots: "+
			"nobody can read them", name, joinFirst(unknown))
	case !known && m.Nameservice == "":
		j.problem("%s has no encryption zone, so nothing shows that it is an image of this HDFS: fetch it by "+
			"--namenode from an address that hdfs-site.xml has in dfs.namenode.http-address or "+
			"dfs.namenode.https-address", name)
	}
}

// joinFirst joins the first texts of a list.
func joinFirst(list []string) string {
	const most = 3
	if n := len(list) - most; n > 0 {
		return strings.Join(list[:most], "; ") + fmt.Sprintf("; and %d more", n)
	}
	return strings.Join(list, "; ")
}

// checkUses checks that each image is younger than the last use; nil: none is known.
func (j *judge) checkUses(last *metastore.Use) {
	if last == nil {
		return
	}
	j.v.LastUse = &last.Last
	for i, asOf := range j.asOf {
		if !asOf.IsZero() && last.Last.After(asOf) {
			j.problem("version %s was requested at %s, and %s shows the state of %s, so files that were made since "+
				"are not in it: change any file (hdfs dfs -touch FILE), %s",
				claviger.Printable(last.Version), stamp(last.Last), claviger.Printable(j.Images[i].Name), stamp(asOf),
				newImage)
		}
	}
}

// addVersions adds the versions of the source with what needs them.
func (j *judge) addVersions() {
	index := map[string][]int{}
	for _, s := range j.Facts.Versions {
		v := migrate.VersionVerdict{Version: s.Source, Key: s.Key, ReplacedBy: s.Target, LastUse: s.LastUse}
		index[v.Version] = append(index[v.Version], len(j.v.Versions))
		j.v.Versions = append(j.v.Versions, v)
	}
	j.countVersions(func(version string) *migrate.VersionVerdict {
		at := index[version]
		if len(at) == 0 { // the facts are of another census
			j.problem("version %s is missing in the facts of the journal: run the command again", version)
			return new(migrate.VersionVerdict)
		}
		return &j.v.Versions[at[0]]
	})
}

// judged reports whether an EDEK of that version counts.
func (j *judge) judged(version string) bool {
	if j.old != nil { // a key may have another spelling in HDFS
		return claviger.FoldName(version) == claviger.FoldName(j.old.Version)
	}
	return j.Facts.EDEKs[version] == migrate.AtSource
}

// countVersions counts the EDEKs that count. of returns where those of a version are counted.
func (j *judge) countVersions(of func(version string) *migrate.VersionVerdict) {
	for i := range j.Images {
		for n := range j.Images[i].Report.Versions {
			c := &j.Images[i].Report.Versions[n]
			if c.Sum() == 0 || !j.judged(c.Version) {
				continue
			}
			j.count(of(c.Version), c, i)
		}
	}
}

// count adds the EDEKs of one image.
func (j *judge) count(v *migrate.VersionVerdict, c *census.Version, image int) {
	v.EDEKs += c.Sum()
	v.Live += c.Live
	v.InTrash += c.InTrash
	v.OpenForWrite += c.OpenForWrite
	v.SnapshotOnly += c.SnapshotOnly
	for _, s := range c.Snapshots {
		v.Snapshots = append(v.Snapshots, j.place(image, s.Snapshot))
	}
	for _, p := range c.Paths {
		v.Paths = append(v.Paths, j.place(image, p))
	}
}

// place returns a path, with its namespace if there are several.
func (j *judge) place(image int, path string) string { return j.placeOf(&j.Images[image], path) }

func (j *judge) placeOf(m *Image, path string) string {
	if len(j.Images) == 1 {
		return path
	}
	if m.Nameservice != "" {
		return "hdfs://" + m.Nameservice + path
	}
	return fmt.Sprintf("%s (namespace %d)", path, m.Report.Image.Namespace)
}

// argument returns a path as a command of hdfs takes it.
func (j *judge) argument(image int, path string) string {
	if len(j.Images) > 1 && j.Images[image].Nameservice != "" {
		path = j.place(image, path)
	}
	return path
}

// explain says of each version why it is retirable or not.
func (j *judge) explain() {
	for i := range j.v.Versions {
		v := &j.v.Versions[i]
		switch {
		case v.EDEKs > 0:
			v.Why = needs(v)
		case j.v.Outcome == migrate.NoVerdict:
			v.Why = "the images have no EDEK of it, and are no proof: see the problems"
		default:
			v.Why, v.Retirable = "no EDEK needs it", true
		}
	}
}

// needs describes what needs a version.
func needs(v *migrate.VersionVerdict) string {
	var parts []string
	add := func(n uint64, what string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	add(v.Live, "live")
	add(v.SnapshotOnly, "only in snapshots")
	text := fmt.Sprintf("needed by %d EDEKs: %s", v.EDEKs, strings.Join(parts, ", "))
	parts = nil
	add(v.InTrash, "in the trash")
	add(v.OpenForWrite, "open for writing")
	if len(parts) > 0 {
		text += "; of the live ones " + strings.Join(parts, ", ")
	}
	return text
}

// addUnused names the keys here that no image names.
func (j *judge) addUnused() {
	used := map[string]bool{}
	keys, versions := Names(j.Images)
	for _, k := range keys {
		used[k] = true
	}
	for _, v := range versions {
		used[claviger.ParseVersion(v).Key] = true
	}
	for _, k := range j.Facts.Names {
		if !used[k] {
			j.v.UnusedKeys = append(j.v.UnusedKeys, k)
		}
	}
}

// stamp formats a time.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
