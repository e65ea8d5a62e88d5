package hadoop

import (
	"bytes"
	"compress/gzip"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"claviger/census"
	"claviger/fsimage"
)

// unpacked returns the content of a file of testdata/hadoop-2.10.
func unpacked(t *testing.T, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "hadoop-2.10", name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestHadoop2Image counts the image that a NameNode 2.10.2 has saved. The counts are those of a walk through the XML
// that oiv 2.10.2 printed of it, and those of the paths that a client of that NameNode saw.
func TestHadoop2Image(t *testing.T) {
	b := unpacked(t, "fsimage")
	image, err := fsimage.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	counted, err := census.Count(t.Context(), image, census.Config{Workers: 2, Paths: 3})
	if err != nil {
		t.Fatal(err)
	}
	r := counted.Report()
	if r.Image.LayoutVersion != -63 || !r.Complete || len(r.Warnings) > 0 {
		t.Errorf("layout %d, problems %q, warnings %q", r.Image.LayoutVersion, r.Problems, r.Warnings)
	}
	xmlFile := filepath.Join(t.TempDir(), "oiv.xml")
	if err := os.WriteFile(xmlFile, unpacked(t, "oiv.xml"), 0o600); err != nil {
		t.Fatal(err)
	}
	counts := countsOf(r)
	for what, other := range map[string]map[string][2]uint64{
		"the walk through oiv's XML": readXMLImage(t, xmlFile).counts(),
		"a client":                   countWalk(string(unpacked(t, "walk"))),
	} {
		if !maps.Equal(counts, other) {
			t.Errorf("the census counts %v, %s %v", counts, what, other)
		}
	}
	var open, trash, snapshots uint64
	var zones []string
	for _, v := range r.Versions {
		open, trash, snapshots = open+v.OpenForWrite, trash+v.InTrash, snapshots+v.SnapshotOnly
	}
	for _, z := range r.Zones {
		zones = append(zones, z.Path+" "+z.Key+" "+z.State)
	}
	want := []string{"/arch/.snapshot/s1/retired orders snapshot", "/orders orders live", "/pay pay@roll live"}
	if open != 1 || trash != 1 || snapshots != 19 || len(counts) != 3 || !slices.Equal(zones, want) {
		t.Errorf("%d open, %d in the trash, %d only in snapshots, %d versions, zones %q", open, trash, snapshots,
			len(counts), zones)
	}
}
