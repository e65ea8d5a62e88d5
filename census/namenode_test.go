package census_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// namenodeWant is the summary of the images in testdata. TestCensus in test/hadoop made them with a NameNode 3.4.2, and
// found these counts by two other ways: a walk through oiv's XML, and one through all paths that a client sees. The
// image with LZ4 was saved once by Resave.java of test/hadoop from image-none, with lz4-java 1.7.1 on the class path.
const namenodeWant = `orders@0 live 0 snapshot 22 copies 4 /orders/.snapshot/s1:14 /arch/.snapshot/s1:8 ` +
	`/orders/.snapshot/s1/a/f00 /orders/.snapshot/s1/a/f01
orders@1 live 35 snapshot 1 trash 2 /orders/.snapshot/s1:1 /orders/b/renamed /orders/z/f04
pay@roll@0 live 11 snapshot 2 trash 1 open 1 /order/.snapshot/s2:2 /pay/.Trash/hdfs/Current/pay/p00 /pay/p01
zone /arch/.snapshot/s1/retired orders snapshot orders@0:0+8
zone /order pay@roll live pay@roll@0:1+2
zone /orders orders live orders@0:0+14 orders@1:35+1
zone /pay pay@roll live pay@roll@0:9+0
inodes 69 unencrypted 2 outside 1 complete true`

// TestNameNodeImages counts images of a NameNode: without compression, with sub-sections, and with each compression
// that Hadoop has without its native library, which only zstd needs.
func TestNameNodeImages(t *testing.T) {
	files, err := filepath.Glob("testdata/image-*")
	if err != nil || len(files) != 7 {
		t.Fatalf("%d images, %v", len(files), err)
	}
	for _, file := range files {
		image, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, workers := range []int{1, 3} {
			s, err := countBytes(image, workers)
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			if got := summary(s.Report()); got != namenodeWant {
				t.Errorf("%s:\n%s\nwant\n%s", file, got, namenodeWant)
			}
			var paths []string
			if err := s.List(t.Context(), "orders@0", func(path string) error {
				paths = append(paths, path)
				return nil
			}); err != nil || len(paths) != 22 || !slices.Contains(paths, "/orders/.snapshot/s1/a/f00") {
				t.Errorf("%s: orders@0 is needed by %d paths (%v): %q", file, len(paths), err, paths)
			}
		}
	}
}
