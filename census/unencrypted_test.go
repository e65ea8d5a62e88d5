package census_test

import (
	"bytes"
	"testing"

	"claviger/internal/imagetest"
)

// TestUnencryptedInZones: files in zones without an EDEK are counted and named, also those that only snapshots show,
// and no version of the zone's key is retirable. Another key's versions are not concerned.
func TestUnencryptedInZones(t *testing.T) {
	tree := &imagetest.Tree{Nodes: []imagetest.Node{folder(root, "", 10, 20), zone(10, "z", "k", 11, 12, 13, 15),
		file(11, "a", "k@1"), file(12, "b", ""), file(13, "c", ""), file(15, "e", ""), file(14, "gone", ""),
		zone(20, "y", "l", 21), file(21, "f", "l@1")}}
	snapshots(tree, 10)
	tree.AddDiffs(10, false, imagetest.Diff{Snapshot: 1, Deleted: []uint64{14}})
	tree.AddDiffs(11, true, imagetest.Diff{Snapshot: 2, Copy: true})
	const want = `k@0 live 0 snapshot 0 
k@1 live 1 snapshot 0 /z/a
l@0 live 0 snapshot 0 retirable 
l@1 live 1 snapshot 0 /y/f
zone /y l live l@1:1+0
zone /z k live k@1:1+0 unencrypted 3+2 /z/.snapshot/s2/a /z/b
inodes 8 unencrypted 3 outside 0 complete true`
	if got := summary(count(t, tree)); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// TestLostName: if one byte of the name of the EDEKs' attribute is damaged, no file has an EDEK. The files of zones
// show it.
func TestLostName(t *testing.T) {
	tree := &imagetest.Tree{Nodes: []imagetest.Node{folder(root, "", 10), zone(10, "z", "k", 11),
		file(11, "a", "k@1")}}
	tree.Nodes[1].Reencrypted = imagetest.Reencrypted{Version: "k@2"}
	image, _ := tree.Bytes()
	image = bytes.ReplaceAll(image, []byte("file.encryption.info"), []byte("file.encryption.infx"))
	s, err := countBytes(image, 2)
	if err != nil {
		t.Fatal(err)
	}
	const want = `k@0 live 0 snapshot 0 
k@1 live 0 snapshot 0 
k@2 live 0 snapshot 0 
zone /z k live unencrypted 1+0 /z/a
inodes 3 unencrypted 1 outside 0 complete true`
	if got := summary(s.Report()); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}
