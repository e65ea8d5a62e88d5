package hadoop

import (
	"bytes"
	"crypto/md5" //nolint:gosec // Hadoop's digest of images
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger/census"
	"claviger/internal/imagetest"
)

// countEDEKs counts by version, which is the word before the last. The result has the live ones and those only in old.
func countEDEKs(live, old map[string]bool) map[string][2]uint64 {
	counts := map[string][2]uint64{}
	add := func(edek string, i int) {
		words := strings.Fields(edek)
		version := words[len(words)-2]
		c := counts[version]
		c[i]++
		counts[version] = c
	}
	for e := range live {
		add(e, 0)
	}
	for e := range old {
		if !live[e] {
			add(e, 1)
		}
	}
	return counts
}

// site makes files in an HDFS: what a naive count of EDEKs gets wrong.
type site struct {
	*Client
	cluster *Cluster
}

// touch makes empty files: a file has its EDEK from its creation.
func (s *site) touch(folder string, names ...string) {
	s.t.Helper()
	args := []string{"-touchz"}
	for _, n := range names {
		args = append(args, folder+"/"+n)
	}
	s.FsShell(args...)
}

// putSize is the length of the files of put. All other files are empty.
const putSize = 6000

// put makes files that are not empty, for truncation.
func (s *site) put(folder string, names ...string) {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "content")
	if err := os.WriteFile(file, make([]byte, putSize), 0o600); err != nil {
		s.t.Fatal(err)
	}
	for _, n := range names {
		s.FsShell("-put", file, folder+"/"+n)
	}
}

func numbered(prefix string, n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("%s%02d", prefix, i))
	}
	return names
}

// fill makes files, snapshots, and what happens between them.
func (s *site) fill() {
	s.t.Helper()
	s.KeyShell("create", "orders", "-size", "128")
	s.KeyShell("create", "pay@roll", "-size", "256")
	s.FsShell("-mkdir", "-p", "/orders", "/pay", "/arch/retired", "/plain", "/order")
	for zone, key := range map[string]string{"/orders": "orders", "/pay": "pay@roll", "/arch/retired": "orders",
		"/order": "pay@roll"} {
		s.CryptoAdmin("-createZone", "-keyName", key, "-path", zone)
	}
	s.FsShell("-mkdir", "-p", "/orders/a/deep", "/orders/b", "/orders/c", "/orders/t", "/arch/retired/x")
	for _, zone := range []string{"/orders", "/arch", "/order", "/pay"} {
		s.DFSAdmin("-allowSnapshot", zone)
	}
	s.touch("/orders/a", numbered("f", 20)...)
	s.touch("/orders/a/deep", numbered("g", 12)...)
	s.touch("/orders/c", numbered("h", 6)...)
	s.touch("/arch/retired/x", numbered("r", 8)...)
	s.touch("/pay", numbered("p", 8)...)
	s.touch("/plain", "n1", "n2")
	s.touch("/order", "o1", "o2")
	s.put("/orders/t", "cut", "gone")
	s.FsShell("-createSnapshot", "/orders", "s1")
	s.FsShell("-createSnapshot", "/arch", "s1")
	s.FsShell("-createSnapshot", "/order", "s1")
	s.FsShell("-truncate", "-w", "100", "/orders/t/cut", "/orders/t/gone")
	s.touch("/orders/t", "after")
	s.FsShell("-mv", "/orders/a/f00", "/orders/b/renamed")
	s.FsShell("-mv", "/orders/a/deep", "/orders/b/moved")
	s.FsShell("-mv", "/orders/a/f01", "/orders/b/gone")
	s.FsShell("-rm", "-skipTrash", "/orders/b/gone", "/orders/a/f02", "/orders/a/f03", "/orders/b/moved/g01")
	s.FsShell("-rm", "-r", "-skipTrash", "/orders/c", "/arch/retired")
	s.FsShell("-chmod", "600", "/orders/a/f04", "/orders/a/f05", "/orders/b/renamed")
	s.KeyShell("roll", "orders")
	s.touch("/orders/a", numbered("new", 10)...)
	s.FsShell("-createSnapshot", "/orders", "s2")
	s.FsShell("-chmod", "640", "/orders/a/f06", "/orders/a/new00")
	s.ReencryptZone("/orders")
	s.FsShell("-rm", "-skipTrash", "/orders/a/f05", "/orders/a/f07", "/orders/a/new01", "/orders/t/gone")
	s.FsShell("-rm", "/orders/a/f08", "/orders/b/moved/g02", "/pay/p00")
	s.touch("/order", "o3")
	s.FsShell("-createSnapshot", "/order", "s2")
	s.FsShell("-rm", "-skipTrash", "/order/o3", "/order/o2")
	s.Must("images", "open", "/pay/open")
	s.FsShell("-createSnapshot", "/orders", "s3")
	s.FsShell("-mv", "/orders/b/moved", "/orders/a/again")
	s.FsShell("-mv", "/orders/a", "/orders/z")
	s.FsShell("-deleteSnapshot", "/orders", "s2")
}

// image returns the fsimage of the cluster, fetched by our program.
func (s *site) image() string {
	s.t.Helper()
	s.DFSAdmin("-safemode", "enter")
	s.DFSAdmin("-saveNamespace")
	s.DFSAdmin("-safemode", "leave")
	file := filepath.Join(s.t.TempDir(), "fsimage")
	url := "http://" + s.cluster.conf["dfs.namenode.http-address"]
	Claviger(s.t, nil, "edek", "census", "--namenode", url+",http://127.0.0.1:1", "--fetch", file)
	counted := Claviger(s.t, nil, "edek", "census", "--namenode", url, "-o", "json")
	if again := Claviger(s.t, nil, "edek", "census", file, "-o", "json"); counted != again {
		s.t.Errorf("counted as it was fetched:\n%s\ncounted from the file:\n%s", counted, again)
	}
	return file
}

// censusOf counts an image by our program.
func censusOf(t testing.TB, file string, args ...string) *census.Report {
	t.Helper()
	out := Claviger(t, nil, append([]string{"edek", "census", file, "-o", "json"}, args...)...)
	var r census.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !r.Complete {
		t.Errorf("%s: problems: %q", file, r.Problems)
	}
	return &r
}

// countsOf returns a report's counts of EDEKs, without the versions that no EDEK needs.
func countsOf(r *census.Report) map[string][2]uint64 {
	counts := map[string][2]uint64{}
	for _, v := range r.Versions {
		if v.Live+v.SnapshotOnly > 0 {
			counts[v.Version] = [2]uint64{v.Live, v.SnapshotOnly}
		}
	}
	return counts
}

// TestCensus counts images of a real NameNode, with each compression, and compares the counts with those of two
// independent counts: of oiv's XML, and of all paths that a client sees.
func TestCensus(t *testing.T) {
	Require(t)
	kms := StartJavaKMS(t, KMSOptions{ACLs: OpenACLs()})
	cluster := NewCluster(t, kms.ProviderURI(), Conf{
		"hadoop.security.kms.client.encrypted.key.cache.size":          "4",
		"hadoop.security.kms.client.encrypted.key.cache.low-watermark": "0.5",
		"dfs.namenode.acls.enabled":                                    "true",
		"fs.trash.interval":                                            "60",
	})
	cluster.Start()
	s := &site{NewClient(t, HDFSUser, cluster.Conf()), cluster}
	s.fill()
	walked := s.walked()
	s.Must("images", "raw", "/pay/p01", "/plain/copy") // a client sees no EDEK there
	file := s.image()

	r := censusOf(t, file, "--paths", "8")
	counts := countsOf(r)
	xmlFile := file + ".xml"
	s.Must("images", "oiv", file, xmlFile)
	image := readXMLImage(t, xmlFile)
	if want := image.counts(); !maps.Equal(counts, want) {
		t.Errorf("the census counts %v, the walk through oiv's XML %v", counts, want)
	}
	// Without these, the snapshot would not have copies of truncated files.
	if n := image.copies(putSize); n != 2 {
		t.Errorf("the image has %d copies of truncated files in differences of snapshots, want 2", n)
	}
	copied := counts["pay@roll@0"]
	copied[0]--
	counts["pay@roll@0"] = copied
	if !maps.Equal(counts, walked) {
		t.Errorf("the census counts %v, a client sees %v", counts, walked)
	}
	s.compare(r)
	s.codecs(r)
	s.large()
}

// walked counts what a client sees.
func (s *site) walked() map[string][2]uint64 {
	s.t.Helper()
	return countWalk(s.Must("images", "walk"))
}

// countWalk counts the lines that the walk of Images.java prints.
func countWalk(text string) map[string][2]uint64 {
	live, old := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(text) {
		where, edek, _ := strings.Cut(strings.TrimSpace(line), " ")
		if where == "live" {
			live[edek] = true
		} else {
			old[edek] = true
		}
	}
	return countEDEKs(live, old)
}

// compare checks what the report says besides counts.
func (s *site) compare(r *census.Report) {
	t := s.t
	t.Helper()
	zones := map[string]string{}
	for _, z := range r.Zones {
		zones[z.Path] = z.Key + " " + z.State
		if z.Path == "/orders" && (z.Reencryption == nil || z.Reencryption.State != "completed" ||
			z.Reencryption.Version != "orders@1" || z.Reencryption.Files == 0) {
			t.Errorf("the re-encryption of /orders: %+v", z.Reencryption)
		}
	}
	want := map[string]string{"/orders": "orders live", "/pay": "pay@roll live", "/order": "pay@roll live",
		"/arch/.snapshot/s1/retired": "orders snapshot"}
	if !maps.Equal(zones, want) {
		t.Errorf("zones %v, want %v", zones, want)
	}
	for _, v := range r.Versions {
		if len(v.Paths) == 0 && v.Live+v.SnapshotOnly > 0 {
			t.Errorf("%s has no evidence", v.Version)
		}
		for _, path := range v.Paths {
			if path == "/plain/copy" {
				continue
			}
			if _, version := s.FileKey(path); version != v.Version {
				t.Errorf("%s is evidence for %s, and needs %s", path, v.Version, version)
			}
		}
	}
	open, trash := uint64(0), uint64(0)
	for _, v := range r.Versions {
		open, trash = open+v.OpenForWrite, trash+v.InTrash
	}
	if open != 1 || trash != 3 || r.OutsideZones != 1 || r.UnencryptedLive != 2 {
		t.Errorf("%d open, %d in the trash, %d outside of zones, %d not encrypted: want 1, 3, 1, 2", open, trash,
			r.OutsideZones, r.UnencryptedLive)
	}
}

// codecs writes the namespace with each compression that Hadoop has without libhadoop, and compares the censuses.
func (s *site) codecs(want *census.Report) {
	t := s.t
	t.Helper()
	name, to := filepath.Join(t.TempDir(), "name"), t.TempDir()
	s.cluster.nameNode.Kill()
	if err := os.CopyFS(name, os.DirFS(filepath.Join(s.cluster.dir, "name"))); err != nil {
		t.Fatal(err)
	}
	codecs := []string{"none", "parallel", "DefaultCodec", "GzipCodec", "BZip2Codec", "SnappyCodec"}
	s.Must("images", append([]string{"resave", name, to}, codecs...)...)
	sizes := map[int64]bool{}
	for _, codec := range codecs {
		file := filepath.Join(to, "image-"+codec)
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		sizes[info.Size()] = true
		r := censusOf(t, file, "--paths", "8")
		r.Image.Transaction, r.Image.Time = want.Image.Transaction, want.Image.Time
		if got, want := asJSON(t, r), asJSON(t, want); got != want {
			t.Errorf("%q:\n%s\nwant\n%s", codec, got, want)
		}
	}
	if len(sizes) != len(codecs) {
		t.Errorf("%d compressions gave %d sizes: %v", len(codecs), len(sizes), slices.Sorted(maps.Keys(sizes)))
	}
}

// large lets Hadoop's classes read an image of the generator with which speed and memory are measured: oiv prints it,
// and a NameNode loads it and saves it again.
func (s *site) large() {
	t := s.t
	t.Helper()
	name, to := filepath.Join(t.TempDir(), "name"), t.TempDir()
	if err := os.CopyFS(name, os.DirFS(filepath.Join(s.cluster.dir, "name"))); err != nil {
		t.Fatal(err)
	}
	current := filepath.Join(name, "current")
	for _, pattern := range []string{"fsimage_*", "edits_*"} {
		old, err := filepath.Glob(filepath.Join(current, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range old {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	var b bytes.Buffer
	truth, err := imagetest.Large{INodes: 5000}.Write(&b)
	if err != nil {
		t.Fatal(err)
	}
	const base = "fsimage_0000000000000005000"
	image := filepath.Join(current, base)
	//nolint:gosec // Hadoop's digest of images
	digest := fmt.Sprintf("%x *%s\n", md5.Sum(b.Bytes()), base)
	for file, content := range map[string]string{
		image:                               b.String(),
		image + ".md5":                      digest,
		filepath.Join(current, "seen_txid"): "5000\n",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string][2]uint64{}
	for version, n := range truth {
		want[version] = [2]uint64{n.Live, n.SnapshotOnly}
	}
	s.Must("images", "oiv", image, image+".xml")
	s.Must("images", "resave", name, to, "SnappyCodec")
	for what, got := range map[string]map[string][2]uint64{
		"the walk through oiv's XML":          readXMLImage(t, image+".xml").counts(),
		"our census":                          countsOf(censusOf(t, image)),
		"our census of what a NameNode saved": countsOf(censusOf(t, filepath.Join(to, "image-SnappyCodec"))),
	} {
		if !maps.Equal(got, want) {
			t.Errorf("a generated image: %s counts\n%v, want\n%v", what, got, want)
		}
	}
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
