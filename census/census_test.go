package census_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"claviger/census"
	"claviger/fsimage"
	"claviger/internal/imagetest"
)

// folder returns a folder. file returns a file with an EDEK. zone returns an encryption zone.
func folder(id uint64, name string, children ...uint64) imagetest.Node {
	return imagetest.Node{ID: id, Name: name, Folder: true, Children: children}
}

func file(id uint64, name, edek string) imagetest.Node {
	return imagetest.Node{ID: id, Name: name, EDEK: edek}
}

func zone(id uint64, name, key string, children ...uint64) imagetest.Node {
	return imagetest.Node{ID: id, Name: name, Folder: true, Zone: key, Children: children}
}

// count counts a tree.
func count(t *testing.T, tree *imagetest.Tree) *census.Report {
	t.Helper()
	image, _ := tree.Bytes()
	s, err := countBytes(image, 3)
	if err != nil {
		t.Fatal(err)
	}
	return s.Report()
}

func countBytes(image []byte, workers int) (*census.Census, error) {
	m, err := fsimage.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		return nil, err
	}
	return census.Count(context.Background(), m, census.Config{Workers: workers, Paths: 2})
}

// summary returns the counts and paths of a report, a line for each version and zone.
func summary(r *census.Report) string {
	var b strings.Builder
	for _, v := range r.Versions {
		fmt.Fprintf(&b, "%s live %d snapshot %d", v.Version, v.Live, v.SnapshotOnly)
		for _, x := range []struct {
			name string
			n    uint64
		}{{"copies", v.SnapshotCopies}, {"trash", v.InTrash}, {"open", v.OpenForWrite},
			{"unreachable", v.Unreachable}} {
			if x.n > 0 {
				fmt.Fprintf(&b, " %s %d", x.name, x.n)
			}
		}
		for _, s := range v.Snapshots {
			fmt.Fprintf(&b, " %s:%d", s.Snapshot, s.EDEKs)
		}
		if v.Retirable {
			b.WriteString(" retirable")
		}
		fmt.Fprintf(&b, " %s\n", strings.Join(v.Paths, " "))
	}
	for _, z := range r.Zones {
		fmt.Fprintf(&b, "zone %s %s %s", z.Path, z.Key, z.State)
		for _, v := range z.Versions {
			fmt.Fprintf(&b, " %s:%d+%d", v.Version, v.Live, v.SnapshotOnly)
		}
		if z.WithoutEDEK() > 0 {
			fmt.Fprintf(&b, " unencrypted %d+%d %s", z.Unencrypted, z.UnencryptedSnapshots,
				strings.Join(z.UnencryptedPaths, " "))
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "inodes %d unencrypted %d outside %d complete %v", r.LiveINodes, r.UnencryptedLive, r.OutsideZones,
		r.Complete)
	for _, p := range r.Problems {
		b.WriteString("; " + p)
	}
	return b.String()
}

const root = imagetest.Root

// trap is an image that a naive reader counts wrongly.
type trap struct {
	name string
	make func(t *imagetest.Tree)
	want string
}

// snapshots gives the tree the snapshots s1 and s2 of a folder.
func snapshots(t *imagetest.Tree, of uint64) {
	t.Snapshots = append(t.Snapshots, imagetest.Snapshot{ID: 1, Root: of, Name: "s1"},
		imagetest.Snapshot{ID: 2, Root: of, Name: "s2"})
}

var traps = []trap{
	{"live files, an open one, one in the trash, an attribute of a user, and versions without an EDEK",
		func(t *imagetest.Tree) {
			t.Nodes = []imagetest.Node{folder(root, "", 10, 20), zone(10, "z", "k", 11, 12, 13, 15),
				file(11, "a", "k@3"), {ID: 12, Name: "b", EDEK: "k@3", Open: true}, folder(13, ".Trash", 14),
				file(14, "c", "k@1"), {ID: 15, Name: "plain", UserAttr: true}, {ID: 20, Name: "p"}}
		},
		`k@0 live 0 snapshot 0 
k@1 live 1 snapshot 0 trash 1 /z/.Trash/c
k@2 live 0 snapshot 0 
k@3 live 2 snapshot 0 open 1 /z/a /z/b
zone /z k live k@1:1+0 k@3:2+0 unencrypted 1+0 /z/plain
inodes 8 unencrypted 2 outside 0 complete true`},
	{"a deleted file whose copy has its own EDEK", func(t *imagetest.Tree) {
		t.Nodes = []imagetest.Node{folder(root, "", 10), zone(10, "z", "k"), file(11, "a", "k@1")}
		snapshots(t, 10)
		t.AddDiffs(10, false, imagetest.Diff{Snapshot: 2, Deleted: []uint64{11}}, imagetest.Diff{Snapshot: 1})
		t.AddDiffs(11, true, imagetest.Diff{Snapshot: 2, Copy: true, CopyEDEK: "k@1"})
	}, `k@0 live 0 snapshot 0 retirable 
k@1 live 0 snapshot 1 /z/.snapshot/s2:1 /z/.snapshot/s2/a
zone /z k live k@1:0+1
inodes 2 unencrypted 0 outside 0 complete true`},
	{"a deleted file whose own EDEK no path shows", func(t *imagetest.Tree) {
		t.Nodes = []imagetest.Node{folder(root, "", 10), zone(10, "z", "k"), file(11, "a", "k@1")}
		snapshots(t, 10)
		t.AddDiffs(10, false, imagetest.Diff{Snapshot: 2, Deleted: []uint64{11}})
		t.AddDiffs(11, true, imagetest.Diff{Snapshot: 2, Copy: true, CopyEDEK: "k@0"})
	}, `k@0 live 0 snapshot 1 copies 1 /z/.snapshot/s2:1 /z/.snapshot/s2/a
k@1 live 0 snapshot 0 
zone /z k live k@0:0+1
inodes 2 unencrypted 0 outside 0 complete true`},
	{"a deleted file whose own EDEK a newer snapshot shows", func(t *imagetest.Tree) {
		t.Nodes = []imagetest.Node{folder(root, "", 10), zone(10, "z", "k"), file(11, "a", "k@1")}
		snapshots(t, 10)
		t.AddDiffs(10, false, imagetest.Diff{Snapshot: 2, Deleted: []uint64{11}})
		t.AddDiffs(11, true, imagetest.Diff{Snapshot: 2}, imagetest.Diff{Snapshot: 1, Copy: true, CopyEDEK: "k@0"})
	}, `k@0 live 0 snapshot 1 copies 1 /z/.snapshot/s1:1 /z/.snapshot/s1/a
k@1 live 0 snapshot 1 /z/.snapshot/s2:1 /z/.snapshot/s2/a
zone /z k live k@0:0+1 k@1:0+1
inodes 2 unencrypted 0 outside 0 complete true`},
	{"a live file with an older copy, one with the same EDEK, and one that was not encrypted", func(t *imagetest.Tree) {
		t.Nodes = []imagetest.Node{folder(root, "", 10), zone(10, "z", "k", 11, 12, 13), file(11, "a", "k@1"),
			file(12, "b", "k@1"), file(13, "c", "k@1")}
		snapshots(t, 10)
		t.AddDiffs(11, true, imagetest.Diff{Snapshot: 2, Copy: true, CopyEDEK: "k@1#other"},
			imagetest.Diff{Snapshot: 1, Copy: true, CopyEDEK: "k@0"})
		t.AddDiffs(12, true, imagetest.Diff{Snapshot: 2, Copy: true, CopyEDEK: "k@1"})
		t.AddDiffs(13, true, imagetest.Diff{Snapshot: 2, Copy: true})
	}, `k@0 live 0 snapshot 1 copies 1 /z/.snapshot/s1:1 /z/.snapshot/s1/a
k@1 live 3 snapshot 1 copies 1 /z/.snapshot/s2:1 /z/a /z/b
zone /z k live k@0:0+1 k@1:3+1 unencrypted 0+1 /z/.snapshot/s2/c
inodes 5 unencrypted 0 outside 0 complete true`},
	{"files of a deleted folder, and a zone that lives only in a snapshot", func(t *imagetest.Tree) {
		t.Nodes = []imagetest.Node{folder(root, "", 9), folder(9, "d"), zone(10, "z", "k", 11, 12),
			file(11, "a", "k@1"), folder(12, "deep", 13), file(13, "b", "k@0")}
		snapshots(t, 9)
		t.AddDiffs(9, false, imagetest.Diff{Snapshot: 1, Deleted: []uint64{10}})
	}, `k@0 live 0 snapshot 1 /d/.snapshot/s1:1 /d/.snapshot/s1/z/deep/b
k@1 live 0 snapshot 1 /d/.snapshot/s1:1 /d/.snapshot/s1/z/a
zone /d/.snapshot/s1/z k snapshot k@0:0+1 k@1:0+1
inodes 2 unencrypted 0 outside 0 complete true`},
	{"a file and a folder that were renamed under a snapshot", func(t *imagetest.Tree) {
		t.Nodes = []imagetest.Node{folder(root, "", 10), zone(10, "z", "k", 20), folder(20, "to"),
			file(11, "new", "k@1"), folder(12, "moved", 13), file(13, "b", "k@1")}
		t.Nodes[2].Refs = []uint64{0, 1}
		t.Refs = []imagetest.Ref{{ID: 11, Destination: true}, {ID: 12, Destination: true},
			{ID: 11, Name: "old", Last: 2}, {ID: 12, Name: "was", Last: 2}}
		snapshots(t, 10)
		t.AddDiffs(10, false, imagetest.Diff{Snapshot: 2, Created: []string{"x"}, Refs: []uint64{2, 3}})
		t.AddDiffs(11, true, imagetest.Diff{Snapshot: 2, Copy: true, CopyEDEK: "k@1"})
	}, `k@0 live 0 snapshot 0 retirable 
k@1 live 2 snapshot 0 /z/to/new /z/to/moved/b
zone /z k live k@1:2+0
inodes 6 unencrypted 0 outside 0 complete true`},
	{"a copy of a file whose folder was renamed since", func(t *imagetest.Tree) {
		t.Nodes = []imagetest.Node{folder(root, "", 10), zone(10, "z", "k"), folder(12, "new", 13),
			file(13, "b", "k@1")}
		t.Nodes[1].Refs = []uint64{0}
		t.Refs = []imagetest.Ref{{ID: 12, Destination: true}, {ID: 12, Name: "old", Last: 1}}
		snapshots(t, 10)
		t.AddDiffs(10, false, imagetest.Diff{Snapshot: 1, Created: []string{"new"}, Refs: []uint64{1}})
		t.AddDiffs(13, true, imagetest.Diff{Snapshot: 2, Copy: true, CopyEDEK: "k@1#x"},
			imagetest.Diff{Snapshot: 1, Copy: true, CopyEDEK: "k@0"})
	}, `k@0 live 0 snapshot 1 copies 1 /z/.snapshot/s1:1 /z/.snapshot/s1/old/b
k@1 live 1 snapshot 1 copies 1 /z/.snapshot/s2:1 /z/new/b
zone /z k live k@0:0+1 k@1:1+1
inodes 4 unencrypted 0 outside 0 complete true`},
	{"a file that was renamed and then deleted", func(t *imagetest.Tree) {
		t.Nodes = []imagetest.Node{folder(root, "", 10), zone(10, "z", "k"), file(11, "new", "k@1")}
		t.Refs = []imagetest.Ref{{ID: 11, Name: "old", Last: 2}}
		snapshots(t, 10)
		t.AddDiffs(10, false, imagetest.Diff{Snapshot: 2, Refs: []uint64{0}})
	}, `k@0 live 0 snapshot 0 retirable 
k@1 live 0 snapshot 1 /z/.snapshot/s2:1 /z/.snapshot/s2/old
zone /z k live k@1:0+1
inodes 2 unencrypted 0 outside 0 complete true`},
	{"two folders that changed places, so that each is below the other", func(t *imagetest.Tree) {
		t.Nodes = []imagetest.Node{folder(root, ""), zone(10, "z", "k", 30), folder(30, "b", 31),
			folder(20, "a", 21), file(31, "f", "k@1"), file(21, "g", "k@1")}
		t.Nodes[0].Children = []uint64{10}
		t.Nodes[2].Refs = []uint64{0}
		t.Refs = []imagetest.Ref{{ID: 20, Destination: true}, {ID: 20, Name: "a", Last: 1},
			{ID: 30, Name: "b", Last: 1}}
		snapshots(t, 10)
		t.AddDiffs(10, false, imagetest.Diff{Snapshot: 1, Refs: []uint64{1}})
		t.AddDiffs(20, false, imagetest.Diff{Snapshot: 1, Refs: []uint64{2}})
	}, `k@0 live 0 snapshot 0 retirable 
k@1 live 2 snapshot 0 /z/b/a/g /z/b/f
zone /z k live k@1:2+0
inodes 6 unencrypted 0 outside 0 complete true`},
	{"a raw copy outside of zones, of a key whose name has an @", func(t *imagetest.Tree) {
		t.Nodes = []imagetest.Node{folder(root, "", 11), file(11, "a\xff", "k@x@0")}
	}, `k@x@0 live 1 snapshot 0 ` + "/a\xff" + `
inodes 2 unencrypted 0 outside 1 complete true`},
}

// TestTraps: the census counts each case right that a naive reader counts wrongly.
func TestTraps(t *testing.T) {
	for _, c := range traps {
		tree := new(imagetest.Tree)
		c.make(tree)
		if got := summary(count(t, tree)); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

// TestOldest: the paths are those of the oldest files, in any order of many records, and with versions in turns.
func TestOldest(t *testing.T) {
	for _, step := range []uint64{1, 7, 77, 199} { // 200 and step have no common divisor: all files occur
		for _, versions := range []uint64{1, 2} {
			tree := &imagetest.Tree{Nodes: []imagetest.Node{folder(root, "")}}
			for i := range uint64(200) {
				id := (i + 1) * step % 200
				tree.Nodes[0].Children = append(tree.Nodes[0].Children, 20000+i)
				tree.Nodes = append(tree.Nodes, file(20000+id, fmt.Sprint(id), fmt.Sprintf("k@%d", id/50%versions)))
			}
			for i, v := range count(t, tree).Versions {
				want := []string{fmt.Sprintf("/%d", 50*i), fmt.Sprintf("/%d", 50*i+1)}
				if !slices.Equal(v.Paths, want) {
					t.Errorf("step %d: %s has %q, want %q", step, v.Version, v.Paths, want)
				}
			}
		}
	}
}

// TestIncomplete: an image whose counts do not add up gets no complete census, and no version is retirable.
func TestIncomplete(t *testing.T) {
	for want, nodes := range map[string][]imagetest.Node{
		"1 inodes are reached by no path": {folder(root, "", 10), file(10, "a", "k@1"), file(11, "b", "k@0")},
		"2 inodes are reached by no path": {folder(root, "", 10), file(10, "a", "k@1"), folder(11, "b", 12),
			file(12, "c", "k@0")},
		"1 children of folders are not":   {folder(root, "", 10, 12), file(10, "a", "k@1")},
		"1 inodes are in the image twice": {folder(root, "", 10), file(10, "a", "k@1"), file(10, "a", "k@0")},
		"2 inodes are reached by no path, ": {folder(root, "", 10), file(10, "a", "k@1"),
			folder(12, "c", 13), folder(13, "d", 12)},
		"1 inodes that a snapshot or referen": {folder(root, "", 10), file(10, "a", "k@1"), folder(30, "gone")},
	} {
		tree := &imagetest.Tree{Nodes: nodes}
		if nodes[len(nodes)-1].ID == 30 {
			tree.Nodes = nodes[:2]
			snapshots(tree, root)
			tree.AddDiffs(root, false, imagetest.Diff{Snapshot: 1, Deleted: []uint64{30}})
		}
		r := count(t, tree)
		if r.Complete || !strings.Contains(strings.Join(r.Problems, "\n"), want) {
			t.Errorf("complete %v, problems %q, want %q", r.Complete, r.Problems, want)
		}
		for _, v := range r.Versions {
			if v.Retirable {
				t.Errorf("%q, and %s is retirable", r.Problems, v.Version)
			}
		}
	}
	tree := &imagetest.Tree{Nodes: []imagetest.Node{folder(root, "", 10), file(10, "a", "k@1"), file(11, "b", "k@0")}}
	if v := count(t, tree).Versions; v[0].Unreachable != 1 {
		t.Errorf("an EDEK in no place: %+v", v[0])
	}
}

// TestIncompleteSnapshots: also files that a snapshot holds must be in the image, once.
func TestIncompleteSnapshots(t *testing.T) {
	for want, nodes := range map[string][]imagetest.Node{
		"1 files that a snapshot holds are not in the image": {file(12, "b", "k@1")},
		"1 inodes are in the image twice":                    {file(11, "a", "k@1"), file(11, "a", "k@0")},
	} {
		tree := &imagetest.Tree{Nodes: append([]imagetest.Node{folder(root, "", 10), folder(10, "d", nodes[0].ID)},
			nodes...)}
		snapshots(tree, 10)
		tree.AddDiffs(11, true, imagetest.Diff{Snapshot: 2, Copy: true, CopyEDEK: "k@0"})
		if r := count(t, tree); r.Complete || !strings.Contains(strings.Join(r.Problems, "\n"), want) {
			t.Errorf("complete %v, problems %q, want %q", r.Complete, r.Problems, want)
		}
	}
	// A second record in the place of a missing one: their number is right.
	tree := &imagetest.Tree{Nodes: []imagetest.Node{folder(root, "", 10), folder(10, "d"), file(11, "a", "k@1"),
		file(11, "a", "k@1")}}
	snapshots(tree, 10)
	tree.AddDiffs(10, false, imagetest.Diff{Snapshot: 2, Deleted: []uint64{11, 12}})
	if r := count(t, tree); r.Complete || !slices.Equal(r.Problems, []string{"1 inodes are in the image twice"}) {
		t.Errorf("complete %v, problems %q", r.Complete, r.Problems)
	}
}

// TestDamage: damage that makes counting impossible is an error with the section.
func TestDamage(t *testing.T) {
	for want, change := range map[string]func(*imagetest.Tree){
		"section INODE, at byte": func(t *imagetest.Tree) { t.Count = 9 },
		"there are more":         func(t *imagetest.Tree) { t.Count = 3 },
		" bytes":                 func(t *imagetest.Tree) { t.Count = 1e6 },
		"inode 7777777: the last one is": func(t *imagetest.Tree) {
			snapshots(t, 10)
			t.AddDiffs(10, false, imagetest.Diff{Snapshot: 2, Deleted: []uint64{7777777}})
		},
		"inode 10 is twice a child": func(t *imagetest.Tree) { t.Nodes[1].Children = []uint64{10} },
		"the child 103809024 of folder": func(t *imagetest.Tree) {
			t.Nodes[0].Children = []uint64{10, 99 << 20}
		},
		"section INODE_DIR, at byte": func(t *imagetest.Tree) { t.Nodes[0].Refs = []uint64{7} },
		"inode 11 is a file, and section SNAPSHOT_DIFF has it as a folder": func(t *imagetest.Tree) {
			snapshots(t, 10)
			t.AddDiffs(11, false, imagetest.Diff{Snapshot: 2})
		},
		"section SNAPSHOT_DIFF, at byte": func(t *imagetest.Tree) {
			t.AddDiffs(10, false, imagetest.Diff{Snapshot: 77, Deleted: []uint64{11}})
		},
		"the differences from snapshot 77, which does not exist": func(t *imagetest.Tree) { // after one that does
			snapshots(t, 10)
			t.AddDiffs(10, false, imagetest.Diff{Snapshot: 2, Deleted: []uint64{11}},
				imagetest.Diff{Snapshot: 77, Deleted: []uint64{12}})
		},
		"the last inode id is 2305843009213693952, which": func(t *imagetest.Tree) { t.Nodes[3].ID = 1 << 61 },
	} {
		tree := &imagetest.Tree{Nodes: []imagetest.Node{folder(root, "", 10), zone(10, "z", "k", 11),
			file(11, "a", "k@1"), file(12, "b", "k@1")}}
		change(tree)
		image, _ := tree.Bytes()
		if _, err := countBytes(image, 2); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestLarge: with many inodes, batches, sub-sections, goroutines, and sparse ids, the counts are those of the
// generator.
func TestLarge(t *testing.T) {
	for _, c := range []struct {
		workers int
		large   imagetest.Large
	}{
		{1, imagetest.Large{INodes: 12_000}},
		{3, imagetest.Large{INodes: 12_000, SubSections: 12}},
		{3, imagetest.Large{INodes: 12_000, Codec: imagetest.Gzip, IDStep: 100}},
		{2, imagetest.Large{INodes: 12_000, IDStep: 1 << 24}},
		{2, imagetest.Large{INodes: 12_000, Codec: imagetest.LZ4, IDStep: 7}},
	} {
		var b bytes.Buffer
		truth, err := c.large.Write(&b)
		if err != nil {
			t.Fatal(err)
		}
		s, err := countBytes(b.Bytes(), c.workers)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		r := s.Report()
		if !r.Complete || len(r.Zones) != 50 {
			t.Errorf("%+v: %d zones, problems %q", c, len(r.Zones), r.Problems)
		}
		for _, v := range r.Versions {
			w := truth[v.Version]
			if w == nil { // a version between others
				w = new(imagetest.LargeCount)
			}
			if w.Live != v.Live || w.SnapshotOnly != v.SnapshotOnly {
				t.Errorf("%+v: %s: %+v, want %+v", c, v.Version, v.Counts, w)
			}
			delete(truth, v.Version)
		}
		if len(truth) > 0 {
			t.Errorf("%+v: %d versions are missing", c, len(truth))
		}
	}
}

// TestReportJSON: the fields that programs read.
func TestReportJSON(t *testing.T) {
	tree := &imagetest.Tree{Nodes: []imagetest.Node{folder(root, "", 10), zone(10, "z", "k", 11),
		file(11, "a", "k@1")}}
	tree.Nodes[1].Reencrypted = imagetest.Reencrypted{Version: "k@2", Files: 7, Failures: 2, Completed: 1767225600000}
	b, err := json.Marshal(count(t, tree))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"image":{"namespaceId":4711,"txid":3,"time":"2026-01-01T00:00:00Z","layoutVersion":-67,"inodes":3}`,
		`{"version":"k@1","key":"k","live":1,"snapshotOnly":0,"snapshotCopies":0,"inTrash":0,"openForWrite":0,` +
			`"unreachable":0,"retirable":false`,
		`"reencryption":{"version":"k@2","state":"completed","submitted":"1970-01-01T00:00:01Z",` +
			`"completed":"2026-01-01T00:00:00Z","files":7,"failures":2,"lastFile":""}`,
		`"unencryptedLive":0`, `"complete":true`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s\ndoes not contain\n%s", b, want)
		}
	}
	newest := slices.IndexFunc(count(t, tree).Versions, func(v census.Version) bool { return v.Version == "k@2" })
	if newest < 0 || count(t, tree).Versions[newest].Retirable {
		t.Errorf("k@2, the newest version, has no EDEK: %s", b)
	}
}
