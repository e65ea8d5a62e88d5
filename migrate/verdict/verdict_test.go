package verdict_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/census"
	"claviger/internal/golden"
	"claviger/metastore"
	"claviger/migrate"
	"claviger/migrate/report"
	"claviger/migrate/verdict"
)

// ended is when the keys were taken over, noon when the verdict is made.
var (
	ended = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	noon  = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
)

func rfc(t time.Time) string { return t.Format(time.RFC3339Nano) }

// site is an input that is granted: one namespace whose zone was re-encrypted from k@0 to k@2.
func site() *verdict.Input {
	return &verdict.Input{
		Images: []verdict.Image{{Name: "fsimage_7", Digest: "00ff", Bytes: 99, Written: noon, Report: namespace(4711)}},
		Queue:  12 * time.Hour, Nameservices: []string{""},
		Facts: &migrate.EDEKFacts{At: noon, Journal: "abcd", RunEnded: ended,
			Run:       &migrate.Run{Name: "migration-1", Source: "kms://http@old:9600/kms", State: migrate.Complete},
			TakenOver: map[string]time.Time{"k": ended},
			Versions: []migrate.SourceVersion{
				{Key: "k", VersionMapping: migrate.VersionMapping{Source: "k@0"}},
				{Key: "k", VersionMapping: migrate.VersionMapping{Source: "k@1", Target: "k@2"}}},
			Keys: map[string]migrate.Holder{"k": migrate.Here, "strange": migrate.Nobody},
			EDEKs: map[string]migrate.Holder{"k@0": migrate.AtSource, "k@1": migrate.AtSource, "k@2": migrate.Here,
				"strange@0": migrate.Nobody, "gone@0": migrate.Destroyed},
			Names:   []string{"idle", "k"},
			LastUse: &metastore.Use{Version: "k@1", Last: noon.Add(-2 * time.Hour)}}}
}

func namespace(id uint32) *census.Report {
	return &census.Report{Complete: true,
		Image: census.Image{Namespace: id, Transaction: 7, Time: rfc(noon.Add(-time.Hour))},
		Versions: []census.Version{{Version: "k@0", Key: "k"},
			{Version: "k@2", Key: "k", Counts: census.Counts{Live: 5}}},
		Zones: []census.Zone{{Path: "/z", Key: "k", State: "live",
			Versions: []census.ZoneVersion{{Version: "k@2", Counts: census.Counts{Live: 5}}},
			Reencryption: &census.Reencryption{Version: "k@2", State: "completed",
				Submitted: rfc(noon.Add(-3 * time.Hour)), Completed: rfc(noon.Add(-2 * time.Hour))}}}}
}

// need makes EDEKs of the zone need a version.
func need(r *census.Report, version string, c census.Counts, snapshots ...census.SnapshotUse) {
	r.Versions = append(r.Versions, census.Version{Version: version, Key: "k", Counts: c, Snapshots: snapshots})
	r.Zones[0].Versions = append(r.Zones[0].Versions, census.ZoneVersion{Version: version, Counts: c})
}

// TestGranted: with all conditions shown, the source and each version are retirable. Unused keys are named, and EDEKs
// of versions that were made and destroyed here need no source.
func TestGranted(t *testing.T) {
	in := site()
	in.Images[0].Report.Versions = append(in.Images[0].Report.Versions,
		census.Version{Version: "gone@0", Key: "gone", Counts: census.Counts{Live: 1}})
	v := verdict.Judge(in)
	if v.Outcome != migrate.Granted || len(v.Problems)+len(v.ToDo) > 0 || len(v.Versions) != 2 ||
		!slices.Equal(v.UnusedKeys, []string{"idle"}) || v.Journal != "abcd" || v.Images[0].AsOf == nil ||
		!v.Images[0].AsOf.Equal(noon.Add(-time.Hour)) {
		t.Errorf("%+v", v)
	}
	if len(v.Lost) != 1 || !strings.Contains(v.Lost[0], "1 EDEKs of fsimage_7 have version gone@0, which was here") {
		t.Errorf("EDEKs of a destroyed version: %q", v.Lost)
	}
	for _, of := range v.Versions {
		if !of.Retirable || of.EDEKs != 0 {
			t.Errorf("%+v", of)
		}
	}
}

// problems are the states that allow no verdict, with words of the problem.
var problems = map[string]struct {
	change func(*verdict.Input)
	want   string
}{
	"no run": {func(in *verdict.Input) { in.Facts.Run, in.Facts.RunEnded = nil, time.Time{} },
		"nothing was migrated"},
	"an incomplete run": {func(in *verdict.Input) { in.Facts.RunEnded = time.Time{} },
		"(migration-1) has not taken over all keys: run the migration again"},
	"a run in the future": {func(in *verdict.Input) { in.Facts.RunEnded = noon.Add(time.Hour) },
		"which is in the future: a clock was ahead"},
	"clocks that differ": {func(in *verdict.Input) { in.Facts.Clocks = errors.New("2h ahead of PostgreSQL's") },
		"last use is not certain: 2h ahead"},
	"a conflict": {func(in *verdict.Input) {
		in.Facts.Conflicts = []migrate.VersionConflict{{Version: "k@2", Why: "rolled at the source since"}}
	}, "version k@2: rolled at the source since"},
	"an incomplete census": {func(in *verdict.Input) {
		in.Images[0].Report.Complete, in.Images[0].Report.Problems = false, []string{"1 inodes are reached by no path"}
	}, "the census of fsimage_7 is not complete (1 inodes are reached by no path): hdfs fsck /"},
	"a version that the facts lack": {func(in *verdict.Input) {
		in.Facts.EDEKs["k@9"] = migrate.AtSource
		need(in.Images[0].Report, "k@9", census.Counts{Live: 1})
	}, "version k@9 is missing in the facts of the journal"},
	"a rolling upgrade": {func(in *verdict.Input) {
		in.Images[0].Report.Warnings = []string{"a rolling upgrade is running: a rollback brings back an older state"}
	}, "the census of fsimage_7 warns: a rolling upgrade is running"},
	"unknown nameservices": {func(in *verdict.Input) { in.Nameservices, in.Unknown = nil, "conf has no hdfs-site.xml" },
		"how many namespaces the HDFS has: conf has no hdfs-site.xml"},
	"a missing nameservice": {func(in *verdict.Input) {
		in.Nameservices, in.Images[0].Nameservice = []string{"ns1", "ns2"}, "ns1"
	}, "2 nameservices (ns1, ns2), and the images show 1: give an image of each by --image or --namenode; missing: " +
		"ns2"},
	"too many namespaces": {func(in *verdict.Input) { second(in, 4712) },
		"one nameservice, and the images are of 2 namespaces: leave out images of other clusters"},
	"the same namespace twice": {func(in *verdict.Input) {
		second(in, 4711)
		in.Nameservices = []string{"ns1", "ns2"}
	}, "fsimage_7 and second are images of the same namespace (id 4711)"},
	"a nameservice twice": {func(in *verdict.Input) {
		second(in, 4712)
		in.Nameservices = []string{"ns1", "ns2"}
		in.Images[0].Nameservice, in.Images[1].Nameservice = "ns1", "ns1"
	}, "come from NameNodes of the same nameservice, ns1"},
	"two clusters": {func(in *verdict.Input) {
		second(in, 4712)
		in.Nameservices = []string{"ns1", "ns2"}
		in.Images[0].Cluster, in.Images[1].Cluster = "CID-1", "CID-2"
	}, "fsimage_7 is an image of cluster CID-1, and second of cluster CID-2"},
	"another VERSION": {func(in *verdict.Input) { in.Images[0].Namespace = "815" },
		"an image of namespace 4711, and the file VERSION beside it is of namespace 815"},
	"another cluster": {func(in *verdict.Input) {
		r := in.Images[0].Report
		r.Zones[0].Key, r.Zones[0].Versions, r.Zones[0].Reencryption = "strange", nil, nil
		r.Versions = []census.Version{{Version: "strange@0", Key: "strange", Counts: census.Counts{Live: 3}}}
		r.Image.Time = rfc(noon.Add(-time.Hour))
	}, "names no key that is known here (zone /z has key strange; 3 EDEKs have version strange@0): is it an image of"},
	"an unknown key": {func(in *verdict.Input) {
		in.Images[0].Report.Zones = append(in.Images[0].Report.Zones,
			census.Zone{Path: "/lost", Key: "strange", State: "live"})
	}, "zone /lost has key strange, which is neither here nor in the journal"},
	"a cluster without zones": {func(in *verdict.Input) {
		in.Images[0].Report.Zones, in.Images[0].Report.Versions = nil, nil
	}, "has no encryption zone, so nothing shows that it is an image of this HDFS: fetch it by --namenode"},
	"a use after the image": {func(in *verdict.Input) { in.Facts.LastUse.Last = noon.Add(-time.Minute) },
		"version k@1 was requested at 2026-11-23T11:59:00Z, and fsimage_7 shows the state of " +
			"2026-11-23T11:00:00Z"},
	"an image older than the run": {func(in *verdict.Input) { in.Facts.LastUse = nil; old(in, ended.Add(-time.Hour)) },
		"does not show that HDFS asks this KMS for the EDEKs of /z"},
	"an image younger than the run and older than the queue": {func(in *verdict.Input) {
		in.Facts.LastUse = nil
		old(in, ended.Add(11*time.Hour))
	}, "does not show that HDFS asks this KMS for the EDEKs of /z"},
	"a re-encryption at the source": {func(in *verdict.Input) {
		in.Facts.LastUse = nil
		old(in, ended.Add(11*time.Hour))
		in.Images[0].Report.Zones[0].Reencryption = &census.Reencryption{Version: "k@1", State: "completed",
			Submitted: rfc(ended.Add(time.Hour)), Completed: rfc(ended.Add(2 * time.Hour))}
	}, "does not show that HDFS asks this KMS for the EDEKs of /z"},
	"no zone of the source, and an image older than the queue": {func(in *verdict.Input) {
		in.Facts.LastUse = nil
		in.Facts.Keys["idle"] = migrate.Here
		old(in, ended.Add(11*time.Hour))
		in.Images[0].Report.Zones[0].Key = "idle"
	}, "a NameNode may have made EDEKs of the source since, and keeps ready ones for 12h0m0s; after " +
		"2026-11-21T00:00:00Z"},
	"an old image without EDEKs of this KMS": {func(in *verdict.Input) {
		in.Facts.LastUse = nil
		old(in, noon.Add(-time.Hour))
		in.Images[0].Report.Versions[0].Live, in.Images[0].Report.Versions[1].Counts = 1, census.Counts{}
	}, "does not show that HDFS asks this KMS for the EDEKs of /z"},
	"a clock ahead": {func(in *verdict.Input) {
		in.Images[0].Report.Image.Time = rfc(noon.Add(time.Hour))
		in.Images[0].Report.Zones[0].Reencryption = nil
	}, "the NameNode's clock is ahead, or a user has set the time of a file, so the age of the image is not known"},
	"a change after the file was written": {func(in *verdict.Input) {
		in.Images[0].Written = noon.Add(-2 * time.Hour)
		in.Images[0].Report.Zones[0].Reencryption = nil
	}, "dated 2026-11-23T11:00:00Z, after the image was written (2026-11-23T10:00:00Z)"},
	"a re-encryption in the future": {func(in *verdict.Input) {
		in.Images[0].Report.Zones[0].Reencryption.Completed = rfc(noon.Add(time.Hour))
	}, "a re-encryption of zone /z is dated 2026-11-23T13:00:00Z, after the image was written"},
	"a clock behind": {func(in *verdict.Input) {
		in.Images[0].Report.Image.Time = rfc(noon.AddDate(0, 0, -30))
		in.Images[0].Report.Zones[0].Reencryption.Submitted = rfc(noon.AddDate(0, 0, -30))
		in.Images[0].Report.Zones[0].Reencryption.Completed = ""
	}, "shows the state of 2026-10-24T12:00:00Z"},
	"an image older than one that was counted": {func(in *verdict.Input) {
		in.Facts.Images = map[uint32]migrate.SeenImage{4711: {Transaction: 8, Image: "fsimage_8", Verdict: "verdict-1"}}
	}, "fsimage_7 shows transaction 7 of its namespace, and verdict-1 has counted a newer image (fsimage_8, " +
		"transaction 8): give that image, or a newer one"},
	"no digest": {func(in *verdict.Input) { in.Images[0].Unchecked = true },
		"there is no file fsimage_7.md5. The NameNode writes that file beside each image: copy it too"},
	"files in a zone without an EDEK": {func(in *verdict.Input) {
		plain(in, 2, 1)
		in.AcceptUnencrypted = map[string]uint64{"/z": 2}
	}, "zone /z has 3 files without an EDEK: 2 live, 1 only in snapshots, for example /z/a. HDFS gives each file of " +
		"a zone an EDEK"},
	"no time": {func(in *verdict.Input) {
		in.Images[0].Report.Image.Time, in.Images[0].Report.Zones[0].Reencryption = "", nil
	}, "has no time at all"},
}

// plain makes files of the zone have no EDEK.
func plain(in *verdict.Input, live, snapshots uint64) {
	z := &in.Images[0].Report.Zones[0]
	z.Unencrypted, z.UnencryptedSnapshots, z.UnencryptedPaths = live, snapshots, []string{"/z/a"}
}

// TestAccepted: what the operator accepts is no problem, and the verdict records it.
func TestAccepted(t *testing.T) {
	in := site()
	plain(in, 2, 1)
	in.Images[0].Unchecked, in.AcceptUnchecked = true, true
	in.AcceptUnencrypted = map[string]uint64{"/z": 3}
	v := verdict.Judge(in)
	var b strings.Builder
	report.Verdict(&b, v)
	for _, want := range []string{"ACCEPTED by the operator: the image fsimage_7 was not compared with an MD5 digest",
		"ACCEPTED by the operator: zone /z has 3 files without an EDEK"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s\ndoes not contain %q", b.String(), want)
		}
	}
	if v.Outcome != migrate.Granted || len(v.Accepted) != 2 {
		t.Errorf("%+v", v)
	}
}

// TestAcceptedPlace: with several namespaces, the accepted zone is named with its namespace.
func TestAcceptedPlace(t *testing.T) {
	for path, accepted := range map[string]bool{"hdfs://ns1/z": true, "/z": false} {
		in := federation()
		plain(in, 1, 0)
		in.AcceptUnencrypted = map[string]uint64{path: 1}
		v := verdict.Judge(in)
		const want = "zone hdfs://ns1/z has 1 files without an EDEK"
		if text := strings.Join(v.Accepted, "\n"); strings.Contains(text, want) != accepted {
			t.Errorf("%s: accepted %q", path, text)
		}
		if text := strings.Join(v.Problems, "\n"); strings.Contains(text, want) == accepted {
			t.Errorf("%s: problems %q", path, text)
		}
	}
}

// second adds an image.
func second(in *verdict.Input, id uint32) {
	in.Images = append(in.Images, verdict.Image{Name: "second", Digest: "0f0f", Bytes: 99, Written: noon,
		Report: namespace(id)})
}

// old makes the image's state that of a time, without a re-encryption.
func old(in *verdict.Input, at time.Time) {
	in.Images[0].Report.Image.Time, in.Images[0].Report.Zones[0].Reencryption = rfc(at), nil
}

// TestNoVerdict: in each of these states there is no verdict, no version is retirable, and the problem is named.
func TestNoVerdict(t *testing.T) {
	for name, c := range problems {
		in := site()
		c.change(in)
		v := verdict.Judge(in)
		if v.Outcome != migrate.NoVerdict || !strings.Contains(strings.Join(v.Problems, "\n"), c.want) {
			t.Errorf("%s: %s, %q, want %q", name, v.Outcome, v.Problems, c.want)
		}
		for _, of := range v.Versions {
			if of.Retirable {
				t.Errorf("%s: %+v", name, of)
			}
		}
	}
}

// TestOtherProofs: an image shows by other facts too that HDFS asks this KMS, and that the image is young.
func TestOtherProofs(t *testing.T) {
	for name, change := range map[string]func(*verdict.Input){
		"EDEKs of this KMS, longer after the run than a queue lives": func(in *verdict.Input) {
			old(in, noon.Add(-time.Hour))
		},
		"no zone of the source": func(in *verdict.Input) {
			in.Facts.Keys["idle"] = migrate.Here
			old(in, noon.Add(-time.Hour))
			in.Images[0].Report.Zones[0].Key = "idle"
		},
		"no zone at all, from a NameNode of the configuration": func(in *verdict.Input) {
			in.Images[0].Report.Zones, in.Images[0].Report.Versions = nil, nil
			in.Images[0].Nameservice = "ns1"
		},
		"a file dated in the future, and a re-encryption": func(in *verdict.Input) {
			in.Images[0].Report.Image.Time = rfc(noon.AddDate(9, 0, 0))
		},
		"a key that was taken over after the re-encryption of another": func(in *verdict.Input) {
			in.Facts.RunEnded = noon.Add(-2 * time.Hour)
		},
		"a zone that was made after the re-encryption of another one with its key": func(in *verdict.Input) {
			in.Images[0].Report.Zones = append(in.Images[0].Report.Zones,
				census.Zone{Path: "/new", Key: "k", State: "live"})
		},
		"a running re-encryption": func(in *verdict.Input) {
			in.Images[0].Report.Zones[0].Reencryption.State = "running"
		},
		"two namespaces": func(in *verdict.Input) {
			second(in, 4712)
			in.Nameservices = []string{"ns1", "ns2"}
		},
	} {
		in := site()
		change(in)
		if v := verdict.Judge(in); v.Outcome != migrate.Granted {
			t.Errorf("%s: %s, %q, %q", name, v.Outcome, v.Problems, v.ToDo)
		}
	}
}

// TestToDo: the list has one step for each zone, snapshot and raw copy that holds EDEKs of the source, and no other.
func TestToDo(t *testing.T) {
	snapshot := func(path string, n uint64) census.SnapshotUse { return census.SnapshotUse{Snapshot: path, EDEKs: n} }
	for _, c := range []struct {
		do, command string
		change      func(r *census.Report)
	}{
		{"re-encrypt zone /z: 4 EDEKs", "hdfs crypto -reencryptZone -start -path /z", func(r *census.Report) {
			need(r, "k@0", census.Counts{Live: 3, InTrash: 1, OpenForWrite: 1})
			need(r, "k@1", census.Counts{Live: 1})
		}},
		{"empty the trash of zone /z, as each user, or re-encrypt the zone: 2 EDEKs", "hdfs dfs -expunge -immediate",
			func(r *census.Report) { need(r, "k@0", census.Counts{Live: 2, InTrash: 2}) }},
		{"wait for the end of the re-encryption of zone /z: 2 EDEKs", "hdfs crypto -listReencryptionStatus",
			func(r *census.Report) {
				need(r, "k@0", census.Counts{Live: 2})
				r.Zones[0].Reencryption.State = "running"
			}},
		{"delete snapshot /z/.snapshot/s1, and older ones of the folder that show the same files: 3 EDEKs",
			"hdfs dfs -deleteSnapshot /z s1", func(r *census.Report) {
				need(r, "k@0", census.Counts{SnapshotOnly: 1}, snapshot("/z/.snapshot/s1", 1))
				need(r, "k@1", census.Counts{SnapshotOnly: 2}, snapshot("/z/.snapshot/s1", 2))
			}},
		{"delete snapshot /.snapshot/it's s, and older ones of the folder that show the same files: 1 EDEKs",
			`hdfs dfs -deleteSnapshot / 'it'\''s s'`, func(r *census.Report) {
				need(r, "k@0", census.Counts{SnapshotOnly: 1}, snapshot("/.snapshot/it's s", 1))
			}},
		{`re-encrypt zone "/pay\t$(touch x)": 1 EDEKs`, `hdfs crypto -reencryptZone -start -path $'/pay\x09$(touch x)'`,
			func(r *census.Report) {
				r.Zones[0].Path = "/pay\t$(touch x)"
				need(r, "k@0", census.Counts{Live: 1})
			}},
		{`delete snapshot "/.snapshot/s1 $(id);x\x1b", and older ones of the folder that show the same files: 1 EDEKs`,
			`hdfs dfs -deleteSnapshot / $'s1 $(id);x\x1b'`, func(r *census.Report) {
				need(r, "k@0", census.Counts{SnapshotOnly: 1}, snapshot("/.snapshot/s1 $(id);x\x1b", 1))
			}},
		{`re-encrypt zone "/a\x00b": 1 EDEKs`, "", func(r *census.Report) { // no command can be given the path
			r.Zones[0].Path = "/a\x00b"
			need(r, "k@0", census.Counts{Live: 1})
		}},
		{"delete the snapshots of /z that are older than s1#7: 1 EDEKs. Its owner has deleted it, and the NameNode " +
			"keeps it until the older ones are deleted", "", func(r *census.Report) {
			need(r, "k@0", census.Counts{SnapshotOnly: 1},
				census.SnapshotUse{Snapshot: "/z/.snapshot/s1#7", EDEKs: 1, Deleted: true})
		}},
		{"delete the raw copies outside of zones with EDEKs of k@0, or copy them again from re-encrypted files: 2 " +
			"files; wait until the 1 of them that are open are closed", "claviger edek census --list k@0 fsimage_7",
			func(r *census.Report) { r.Versions[0].Live, r.Versions[0].OpenForWrite = 2, 1 }},
	} {
		in := site()
		c.change(in.Images[0].Report)
		v := verdict.Judge(in)
		if v.Outcome != migrate.Needed || len(v.ToDo) != 2 || v.ToDo[0].Do != c.do || v.ToDo[0].Command != c.command ||
			!strings.HasPrefix(v.ToDo[1].Do, "then make a new image") {
			t.Errorf("%s, %q\n%q, want\n%q\n%q", v.Outcome, v.Problems, v.ToDo, c.do, c.command)
		}
	}
}

// TestNames: the keys and versions of a census that need a holder are those of zones, of their re-encryptions, and of
// EDEKs; each is named once.
func TestNames(t *testing.T) {
	a, b := namespace(1), namespace(2)
	need(b, "k@1", census.Counts{SnapshotOnly: 1})
	need(b, "k@0", census.Counts{Unreachable: 1})
	b.Zones = append(b.Zones, census.Zone{Key: "a"}, census.Zone{Key: "k", Reencryption: &census.Reencryption{}})
	keys, versions := verdict.Names([]verdict.Image{{Report: b}, {Report: a}})
	if !slices.Equal(keys, []string{"a", "k"}) || !slices.Equal(versions, []string{"k@0", "k@1", "k@2"}) {
		t.Errorf("keys %q, versions %q", keys, versions)
	}
	if _, versions := verdict.Names([]verdict.Image{{Report: a}}); !slices.Equal(versions, []string{"k@2"}) {
		t.Errorf("versions %q, and no EDEK has k@0", versions)
	}
}

// federation is an input of two namespaces, in which a snapshot and files need the source.
func federation() *verdict.Input {
	in := site()
	second(in, 4712)
	in.Nameservices, in.Images[0].Nameservice = []string{"ns1", "ns2"}, "ns1"
	need(in.Images[0].Report, "k@0", census.Counts{SnapshotOnly: 2},
		census.SnapshotUse{Snapshot: "/z/.snapshot/s1", EDEKs: 2})
	need(in.Images[1].Report, "k@0", census.Counts{Live: 3, InTrash: 2, OpenForWrite: 1})
	return in
}

// TestText: the text of a granted verdict, of one that is not granted, and of none.
func TestText(t *testing.T) {
	missing := federation()
	missing.Images = missing.Images[:1]
	for name, in := range map[string]*verdict.Input{"granted": site(), "needed": federation(), "none": missing} {
		v := verdict.Judge(in)
		v.Name = "verdict-1"
		var text strings.Builder
		report.Verdict(&text, v)
		golden.Compare(t, "testdata/"+name+".golden", text.String())
		shown, _, _ := strings.Cut(text.String(), "\nAn image does not show")
		page, err := os.ReadFile("../../docs/census/verdict.md")
		if name == "needed" && !strings.Contains(string(page), shown) {
			t.Errorf("docs/census/verdict.md does not show this (%v):\n%s", err, shown)
		}
	}
}

func Example() {
	v := verdict.Judge(federation())
	fmt.Println(v.Outcome)
	for _, of := range v.Versions {
		fmt.Printf("%s: %s\n", of.Version, of.Why)
	}
	for _, step := range v.ToDo[:2] {
		fmt.Println(step.Command)
	}
	// Output:
	// needed
	// k@0: needed by 5 EDEKs: 3 live, 2 only in snapshots; of the live ones 2 in the trash, 1 open for writing
	// k@1: no EDEK needs it
	// hdfs crypto -reencryptZone -start -path /z
	// hdfs dfs -deleteSnapshot hdfs://ns1/z s1
}
