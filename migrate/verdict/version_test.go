package verdict_test

import (
	"strings"
	"testing"
	"time"

	"claviger/census"
	"claviger/migrate"
	"claviger/migrate/verdict"
)

// rolled is an input in which k@2 was replaced by k@3, and the zone re-encrypted to k@3. No migration was made.
func rolled() (*verdict.Input, *migrate.OldVersion) {
	in := site()
	f := in.Facts
	f.Run, f.RunEnded, f.TakenOver, f.Versions, f.LastUse = nil, time.Time{}, nil, nil, nil
	f.EDEKs = map[string]migrate.Holder{"k@2": migrate.Here, "k@3": migrate.Here, "strange@0": migrate.Nobody}
	r := in.Images[0].Report
	r.Versions[1].Version, r.Zones[0].Versions[0].Version, r.Zones[0].Reencryption.Version = "k@3", "k@3", "k@3"
	return in, &migrate.OldVersion{Version: "k@2", Key: "k", Replaced: ended, LastUse: noon.Add(-2 * time.Hour)}
}

// TestVersionGranted: a version that no EDEK needs may be purged. Keys that are unknown here, and files without an EDEK
// in the zones of other keys, do not matter, and no migration is needed.
func TestVersionGranted(t *testing.T) {
	in, old := rolled()
	in.Images[0].Report.Zones = append(in.Images[0].Report.Zones,
		census.Zone{Path: "/theirs", Key: "strange", State: "live", Unencrypted: 1})
	v := verdict.JudgeVersion(in, old)
	if v.Outcome != migrate.Granted || len(v.Versions) != 1 || !v.Versions[0].Retirable ||
		v.Format != migrate.VersionVerdictFormat {
		t.Errorf("%+v", v)
	}
	in, old = rolled()
	in.Images[0].Report.Zones[0].Key, in.Facts.Keys["other"] = "other", migrate.Here
	old.LastUse = ended
	if v := verdict.JudgeVersion(in, old); v.Outcome != migrate.Granted {
		t.Errorf("no zone has the key: %s, %q", v.Outcome, v.Problems)
	}
}

// TestVersionNeeded: an EDEK of the version, also with another spelling of the key, needs it.
func TestVersionNeeded(t *testing.T) {
	for _, name := range []string{"k@2", "K@2"} {
		in, old := rolled()
		need(in.Images[0].Report, name, census.Counts{SnapshotOnly: 1},
			census.SnapshotUse{Snapshot: "/z/.snapshot/s1", EDEKs: 1})
		v := verdict.JudgeVersion(in, old)
		if v.Outcome != migrate.Needed || v.Versions[0].EDEKs != 1 || v.Versions[0].Retirable ||
			v.ToDo[0].Command != "hdfs dfs -deleteSnapshot /z s1" {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// TestVersionNoVerdict: each state that allows no verdict.
func TestVersionNoVerdict(t *testing.T) {
	for want, change := range map[string]func(in *verdict.Input, old *migrate.OldVersion){
		"version k@2 was requested at": func(_ *verdict.Input, old *migrate.OldVersion) {
			old.LastUse = noon.Add(-time.Minute)
		},
		"can be purged from 2026-11-24T10:00:00Z on": func(in *verdict.Input, _ *migrate.OldVersion) {
			in.MinUnused = 24 * time.Hour
		},
		"/z was not re-encrypted since the key was rolled": func(in *verdict.Input, _ *migrate.OldVersion) {
			in.Images[0].Report.Zones[0].Reencryption = nil
		},
		"does not show that the NameNode has no EDEKs of k@2": func(in *verdict.Input, _ *migrate.OldVersion) {
			in.Images[0].Report.Zones[0].Reencryption.Version = "k@2"
		},
		"k@2 in its queue: /z was not": func(_ *verdict.Input, old *migrate.OldVersion) {
			old.Replaced = noon.Add(-2 * time.Hour)
		},
		"a NameNode keeps ready EDEKs for 12h0m0s": func(in *verdict.Input, old *migrate.OldVersion) {
			in.Images[0].Report.Zones[0].Key, in.Facts.Keys["other"] = "other", migrate.Here
			old.Replaced = noon.Add(-2 * time.Hour)
		},
		"is in the future: a clock was ahead": func(_ *verdict.Input, old *migrate.OldVersion) {
			old.Replaced = noon.Add(time.Hour)
		},
		"version k@2: belongs to two keys": func(in *verdict.Input, _ *migrate.OldVersion) {
			in.Facts.Conflicts = []migrate.VersionConflict{{Version: "k@2", Why: "belongs to two keys"}}
		},
		"the census of fsimage_7 is not complete": func(in *verdict.Input, _ *migrate.OldVersion) {
			in.Images[0].Report.Complete = false
		},
		"2 nameservices": func(in *verdict.Input, _ *migrate.OldVersion) { in.Nameservices = []string{"a", "b"} },
		"is it an image of another cluster?": func(in *verdict.Input, _ *migrate.OldVersion) {
			in.Images[0].Report.Zones = []census.Zone{{Path: "/theirs", Key: "strange", State: "live"}}
			in.Images[0].Report.Versions = nil
		},
	} {
		in, old := rolled()
		change(in, old)
		if v := verdict.JudgeVersion(in, old); v.Outcome != migrate.NoVerdict || v.Versions[0].Retirable ||
			!strings.Contains(strings.Join(v.Problems, "\n"), want) {
			t.Errorf("%s: %s, %q", want, v.Outcome, v.Problems)
		}
	}
}
