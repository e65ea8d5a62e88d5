package fsimage_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"claviger/internal/imagetest"
)

// manyDiffs returns a tree with differences that fill several batches, and the lines that readAll makes of them. Some
// folders have more new entries than a batch can hold.
func manyDiffs() (tree *imagetest.Tree, lines []string) {
	random := rand.New(rand.NewPCG(1, 2))
	tree = &imagetest.Tree{Nodes: []imagetest.Node{{ID: imagetest.Root, Folder: true}}}
	for id := uint64(20_000); id < 40_000; id++ {
		var diffs []imagetest.Diff
		isFile := id%5 > 0
		for snapshot := uint32(1); snapshot <= uint32(random.IntN(4)); snapshot++ {
			d := imagetest.Diff{Snapshot: snapshot}
			if isFile {
				d.Copy, d.CopyEDEK = true, "k@1"
				lines = append(lines, fmt.Sprintf("copy of %d at %d: 50 bytes of attributes", id, snapshot))
				diffs = append(diffs, d)
				continue
			}
			d.Deleted = []uint64{id + 1, id + 2}
			lost := fmt.Sprintf("folder %d lost since %d %d, references []", id, snapshot, d.Deleted)
			lines = append(lines, lost)
			names := random.IntN(4)
			if id%5000 == 0 {
				names = 30_000
			}
			for i := range names {
				d.Created = append(d.Created, fmt.Sprintf("the name of the new entry %d", i))
			}
			diffs = append(diffs, d)
		}
		tree.AddDiffs(id, isFile, diffs...)
	}
	slices.Sort(lines)
	return tree, lines
}

// TestManyDiffs: the messages of SNAPSHOT_DIFF depend on those before them. Several goroutines read them as one does,
// also if the section has no sub-sections.
func TestManyDiffs(t *testing.T) {
	tree, want := manyDiffs()
	for _, codec := range []string{imagetest.None, imagetest.LZ4} {
		for _, every := range []int{0, 7000} {
			tree.Codec, tree.SubEvery = codec, every
			image, _ := tree.Bytes()
			for _, workers := range []int{1, 2, 5} {
				lines, err := readAll(image, workers)
				if err != nil {
					t.Fatal(err)
				}
				got := slices.DeleteFunc(lines, func(line string) bool {
					return !strings.HasPrefix(line, "copy of") && !strings.Contains(line, "lost since")
				})
				if !slices.Equal(got, want) {
					t.Errorf("codec %q, %d workers: %d differences, want %d", codec, workers, len(got), len(want))
				}
			}
		}
	}
}
