package edeks

import (
	"crypto/md5" //nolint:gosec // Hadoop's digest of images
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger"
	"claviger/internal/imagetest"
	"claviger/metastore/sqlite"
	"claviger/migrate"
	"claviger/migrate/report"
	"claviger/provider/memory"
	"claviger/terminal"
)

// migrated returns the engine of a migration that has taken over key k, whose versions k@0 and k@1 became k@2.
func migrated(t *testing.T) *migrate.Engine {
	t.Helper()
	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "metastore.db"))
	if err != nil {
		t.Fatal(err)
	}
	source := memory.New(memory.Config{URI: "kms://http@old:16000/kms", SequentialIDs: true})
	target := memory.New(memory.Config{URI: "pkcs11:token=new", Sealed: true})
	t.Cleanup(func() {
		if err := errors.Join(source.Close(), target.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	if _, err := source.Import(t.Context(), claviger.Metadata{Name: "k", Cipher: "AES/CTR/NoPadding", BitLength: 128,
		Created: time.Now()}, 2, 0, nil); err != nil {
		t.Fatal(err)
	}
	e, err := migrate.New(migrate.Config{Source: source, Target: target, Store: store, Host: "host"})
	if err == nil {
		_, err = e.Run(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// zoneTree is a namespace with a zone of k that was re-encrypted to k@2 just now.
func zoneTree() *imagetest.Tree {
	now := uint64(time.Now().Add(time.Second).UnixMilli()) //nolint:gosec // after 1970
	return &imagetest.Tree{Nodes: []imagetest.Node{
		{ID: imagetest.Root, Folder: true, Children: []uint64{20000}},
		{ID: 20000, Name: "z", Folder: true, Zone: "k", Children: []uint64{20001},
			Reencrypted: imagetest.Reencrypted{Version: "k@2", Submitted: now, Completed: now + 1}},
		{ID: 20001, Name: "f", EDEK: "k@2"},
	}}
}

// write writes the image of a tree into a new file, with its digest beside it.
func write(t *testing.T, tree *imagetest.Tree) string {
	t.Helper()
	image, _ := tree.Bytes()
	file := filepath.Join(t.TempDir(), "fsimage")
	sum := md5.Sum(image) //nolint:gosec // Hadoop's digest of images
	if err := errors.Join(os.WriteFile(file, image, 0o600), os.WriteFile(file+".md5",
		[]byte(hex.EncodeToString(sum[:])+" *fsimage\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	return file
}

// hdfsConf makes a folder with hdfs-site.xml.
func hdfsConf(t *testing.T, pairs ...string) string {
	t.Helper()
	text := "<configuration>"
	for i := 0; i < len(pairs); i += 2 {
		text += fmt.Sprintf("<property><name>%s</name><value>%s</value></property>", pairs[i], pairs[i+1])
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hdfs-site.xml"), []byte(text+"</configuration>"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func judge(t *testing.T, e *migrate.Engine, conf string, o VerdictOptions) (*migrate.Verdict, error) {
	t.Helper()
	o.Workers, o.Paths = 2, 3
	return o.Verdict(t.Context(), "", conf, e, io.Discard)
}

// verdictText returns a verdict as an operator sees it.
func verdictText(v *migrate.Verdict) string {
	var b strings.Builder
	if v != nil {
		report.Verdict(&b, v)
	}
	return b.String()
}

// TestVerdict: a snapshot needs the source, and names itself; without the snapshot the source is retirable, and the
// journal has the verdict, so that finish needs no word of the operator.
func TestVerdict(t *testing.T) {
	e, conf := migrated(t), hdfsConf(t)
	before, tree := write(t, zoneTree()), zoneTree()
	tree.Nodes = append(tree.Nodes, imagetest.Node{ID: 20002, Name: "old", EDEK: "k@1"})
	tree.Snapshots = []imagetest.Snapshot{{ID: 1, Root: 20000, Name: "s1"}}
	tree.AddDiffs(20000, false, imagetest.Diff{Snapshot: 1, Deleted: []uint64{20002}})
	v, err := judge(t, e, conf, VerdictOptions{Images: []string{write(t, tree)}})
	if err != nil || v.Outcome != migrate.Needed || !strings.Contains(verdictText(v), "hdfs dfs -deleteSnapshot /z "+
		"s1") {
		t.Fatalf("%v\n%s", err, verdictText(v))
	}
	finish := func() *migrate.Ending {
		f, err := e.Finish(t.Context(), migrate.FinishOptions{Since: time.Now(), Verdict: true})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if f := finish(); len(f.Refusals) != 1 || !strings.Contains(f.Refusals[0], "delete snapshot /z/.snapshot/s1") {
		t.Errorf("%q", f.Refusals)
	}
	v, err = judge(t, e, conf, VerdictOptions{Images: []string{before}})
	if err != nil || v.Outcome != migrate.NoVerdict || !strings.Contains(verdictText(v), "has counted a newer image") {
		t.Fatalf("an older image: %v\n%s", err, verdictText(v))
	}
	v, err = judge(t, e, conf, VerdictOptions{Images: []string{before}, AcceptRollback: true})
	if err != nil || v.Outcome != migrate.NoVerdict || !strings.Contains(verdictText(v), "shows no later change") {
		t.Fatalf("the older image as one after a rollback: %v\n%s", err, verdictText(v))
	}
	later := zoneTree()
	later.Transaction = 99
	v, err = judge(t, e, conf, VerdictOptions{Images: []string{write(t, later)}})
	if err != nil || v.Outcome != migrate.Granted || v.Name == "" || len(v.Images[0].Digest) != 64 {
		t.Fatalf("%v\n%s", err, verdictText(v))
	}
	if f := finish(); len(f.Refusals) != 0 || f.EDEKs.Verdict != v.Name {
		t.Errorf("%+v", f)
	}
}

// TestAcceptGone: the operator's word that a namespace is gone reaches the verdict, and the journal.
func TestAcceptGone(t *testing.T) {
	e, conf := migrated(t), hdfsConf(t)
	other := zoneTree()
	other.Namespace = 815
	images := []string{write(t, other)}
	if v, err := judge(t, e, conf, VerdictOptions{Images: []string{write(t, zoneTree())}}); err != nil ||
		v.Outcome != migrate.Granted {
		t.Fatalf("%v\n%s", err, verdictText(v))
	}
	for _, c := range []struct {
		gone    []uint
		outcome migrate.Outcome
	}{{nil, migrate.NoVerdict}, {[]uint{815}, migrate.NoVerdict}, {[]uint{4711}, migrate.Granted},
		{nil, migrate.Granted}} { // the journal has it now
		v, err := judge(t, e, conf, VerdictOptions{Images: images, AcceptGone: c.gone})
		if err != nil || v.Outcome != c.outcome {
			t.Errorf("%d: %v\n%s", c.gone, err, verdictText(v))
		}
	}
}

// TestHostileImages: each of these inputs gets no verdict, or an error, and never a granted one.
func TestHostileImages(t *testing.T) {
	e, conf := migrated(t), hdfsConf(t)
	two := hdfsConf(t, "dfs.nameservices", "ns1, ns2,ns1")
	other := zoneTree()
	other.Nodes[1].Zone, other.Nodes[2].EDEK = "theirs", "theirs@4"
	leaked := zoneTree()
	leaked.Nodes = append(leaked.Nodes, imagetest.Node{ID: 20007, Name: "leak", EDEK: "k@2"})
	older := zoneTree()
	older.Nodes[1].Reencrypted = imagetest.Reencrypted{}
	ahead := zoneTree()
	ahead.Nodes[1].Submitted = uint64(time.Now().Add(time.Hour).UnixMilli()) //nolint:gosec // after 1970
	touched := zoneTree()
	touched.Nodes[1].Reencrypted, touched.Nodes[2].Modified = imagetest.Reencrypted{}, time.Now().AddDate(1, 0, 0)
	second := zoneTree()
	second.Namespace = 815
	beside := write(t, zoneTree())
	if err := os.WriteFile(filepath.Join(filepath.Dir(beside), "VERSION"),
		[]byte("#Mon Nov 30\nnamespaceID=99\nclusterID=CID-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := write(t, zoneTree())
	for _, c := range []struct {
		want, conf string
		images     []string
	}{
		{"names no key that is known here", conf, []string{write(t, other)}},
		{"the census of", conf, []string{write(t, leaked)}},
		{"does not show that HDFS asks this KMS", conf, []string{write(t, older)}},
		{"a clock is wrong", conf, []string{write(t, ahead)}},
		{"a user has set the time of a file", conf, []string{write(t, touched)}},
		{"2 nameservices (ns1, ns2), and the images show 1", two, []string{image}},
		{"images of the same namespace", two, []string{image, write(t, zoneTree())}},
		{"are of 2 namespaces", conf, []string{image, write(t, second)}},
		{"VERSION beside it is of namespace 99", conf, []string{beside}},
		{"there is no ", t.TempDir(), []string{image}},
	} {
		v, err := judge(t, e, c.conf, VerdictOptions{Images: c.images})
		if err != nil || v.Outcome != migrate.NoVerdict || !strings.Contains(strings.Join(v.Problems, "\n"), c.want) {
			t.Errorf("want %q: %v\n%s", c.want, err, verdictText(v))
		}
	}
	if v, err := judge(t, e, two, VerdictOptions{Images: []string{image, write(t, second)}}); err != nil ||
		v.Outcome != migrate.Granted {
		t.Errorf("both nameservices: %v\n%s", err, verdictText(v))
	}
}

// TestCutImage: an image that is cut off anywhere is an error, and leaves no verdict in the journal.
func TestCutImage(t *testing.T) {
	e, conf := migrated(t), hdfsConf(t)
	whole, err := os.ReadFile(write(t, zoneTree()))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cut")
	for cut := 0; cut < len(whole); cut += 41 {
		if err := os.WriteFile(file, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if v, err := judge(t, e, conf, VerdictOptions{Images: []string{file}}); err == nil {
			t.Errorf("cut after %d bytes: %s", cut, v.Outcome)
		}
	}
	f, err := e.Finish(t.Context(), migrate.FinishOptions{Since: time.Now(), Verdict: true})
	if err != nil || !strings.Contains(strings.Join(f.Refusals, "\n"), "there is no verdict") {
		t.Errorf("%v, %q", err, f.Refusals)
	}
}

// TestStoredDigest: an image with the MD5 digest that its NameNode has stored gets a verdict. With another one, which
// each flipped bit causes, there is an error.
func TestStoredDigest(t *testing.T) {
	e, conf := migrated(t), hdfsConf(t)
	file := write(t, zoneTree())
	image, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sum := md5.Sum(image) //nolint:gosec // Hadoop's digest of images
	digest := hex.EncodeToString(sum[:])
	for stored, want := range map[string]string{
		digest + " *fsimage_3\n":                "",
		strings.ToUpper(digest) + " *fsimage":   "",
		strings.Repeat("0", 32) + " *fsimage":   "its MD5 digest is " + digest + ", and the file .md5 beside it says",
		"":                                      "has no MD5 digest",
		strings.Repeat("0", 30) + " *fsimage\n": "has no MD5 digest",
	} {
		if err := os.WriteFile(file+".md5", []byte(stored), 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := judge(t, e, conf, VerdictOptions{Images: []string{file}})
		if want == "" {
			if err != nil || v.Outcome != migrate.Granted {
				t.Errorf("%q: %v\n%s", stored, err, verdictText(v))
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", stored, err, want)
		}
	}
}

// TestAcceptedImages: an image without its digest, and files of a zone without an EDEK, get no verdict, unless the
// operator accepts them. A damaged byte that hides all EDEKs is found by both.
func TestAcceptedImages(t *testing.T) {
	e, conf := migrated(t), hdfsConf(t)
	tree := zoneTree()
	tree.Nodes[2].EDEK = ""
	bare := write(t, tree)
	if err := os.Remove(bare + ".md5"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		options VerdictOptions
		want    string // a problem
	}{
		{VerdictOptions{}, "there is no file " + bare + ".md5"},
		{VerdictOptions{AcceptUnchecked: true}, "--accept-unencrypted /z=1"},
		{VerdictOptions{AcceptUnchecked: true, AcceptUnencrypted: []string{"/z=0"}}, "--accept-unencrypted /z=1"},
		{VerdictOptions{AcceptUnencrypted: []string{"/z=1"}}, "there is no file " + bare + ".md5"},
		{VerdictOptions{AcceptUnchecked: true, AcceptUnencrypted: []string{"/z=1"}}, ""},
	} {
		c.options.Images = []string{bare}
		v, err := judge(t, e, conf, c.options)
		if err != nil || !strings.Contains(strings.Join(v.Problems, "\n"), c.want) ||
			(v.Outcome == migrate.Granted) != (c.want == "") {
			t.Errorf("%+v: %v\n%s", c.options, err, verdictText(v))
		}
	}
	f, err := e.Finish(t.Context(), migrate.FinishOptions{Since: time.Now(), Verdict: true})
	if err != nil || f.EDEKs == nil || len(f.EDEKs.Accepted) != 2 {
		t.Errorf("%v, %+v", err, f)
	}
}

// TestFetchedImages: the images of a federation, each fetched from a NameNode of the configuration. One namespace
// without zones counts, because its NameNode is known.
func TestFetchedImages(t *testing.T) {
	first, _ := zoneTree().Bytes()
	plain := &imagetest.Tree{Namespace: 815, Nodes: []imagetest.Node{{ID: imagetest.Root, Folder: true}}}
	plain.Nodes[0].Modified = time.Now().Add(time.Second)
	second, _ := plain.Bytes()
	e := migrated(t)
	one, two := start(t, &server{image: first, txid: 7}), start(t, &server{image: second, txid: 8})
	host := func(base string) string {
		u, err := url.Parse(base)
		if err != nil {
			t.Fatal(err)
		}
		return u.Host
	}
	federation := []string{"dfs.nameservices", "ns1,ns2", "dfs.ha.namenodes.ns1", "a,b",
		"dfs.namenode.http-address.ns1.b", host(one)}
	o := VerdictOptions{NameNodes: []string{one + ",http://127.0.0.1:1", two}}
	v, err := judge(t, e, hdfsConf(t, federation...), o)
	if err != nil || v.Outcome != migrate.NoVerdict || v.Images[0].Nameservice != "ns1" ||
		!strings.Contains(strings.Join(v.Problems, "\n"), "fetch it by --namenode") {
		t.Errorf("%v\n%s", err, verdictText(v))
	}
	v, err = judge(t, e, hdfsConf(t, append(federation, "dfs.namenode.http-address.ns2", host(two),
		propQueue, "1")...), o)
	if err != nil || v.Images[1].Nameservice != "ns2" || v.Images[1].Namespace != 815 ||
		!strings.Contains(strings.Join(v.Problems, "\n"), "keeps ready ones for 12h0m0s") || len(v.Problems) != 1 {
		t.Errorf("%v\n%s", err, verdictText(v))
	}
}

// TestAcceptedZones: a path may have equal signs, so the last one divides it from the number.
func TestAcceptedZones(t *testing.T) {
	o := VerdictOptions{AcceptUnencrypted: []string{"/z=3", "/day=1/z=2"}}
	if zones, err := o.accepted(); err != nil || !maps.Equal(zones, map[string]uint64{"/z": 3, "/day=1/z": 2}) {
		t.Errorf("%v, %v", zones, err)
	}
}

// TestPipes: a named pipe without a writer, and a device, are refused at once, as an image and beside one.
func TestPipes(t *testing.T) {
	pipe, image := filepath.Join(t.TempDir(), "pipe"), write(t, zoneTree())
	if err := errors.Join(syscall.Mkfifo(pipe, 0o600), os.Remove(image+".md5"),
		syscall.Mkfifo(image+".md5", 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{pipe, "/dev/null", image} {
		const want = "a pipe, device or folder cannot be read"
		if _, err := judge(t, nil, hdfsConf(t), VerdictOptions{Images: []string{file}}); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("verdict of %s: %v", file, err)
		}
		if file == image {
			continue
		}
		if _, err := run(Options{}, file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("census of %s: %v", file, err)
		}
	}
}

// TestServiceOf: a NameNode's address in hdfs-site.xml, or the default one of its RPC server's host.
func TestServiceOf(t *testing.T) {
	ha := []string{"dfs.nameservices", "a,b", "dfs.ha.namenodes.a", "n1,n2", "dfs.namenode.rpc-address.a.n1", "h1:8020",
		"dfs.namenode.https-address.a.n2", "H2:9999", "dfs.namenode.http-address.b", "0.0.0.0:5",
		"dfs.namenode.rpc-address.b", "h3:1"}
	single := []string{"fs.defaultFS", "hdfs://nn"}
	for _, c := range []struct {
		url, want string
		conf      []string
	}{
		{"http://h1:9870", "a", ha}, {"https://h1:9871", "a", ha}, {"https://h2:9999", "a", ha},
		{"http://h3:5", "b", ha},
		{"http://h2:9999", "", ha}, {"http://h1:9871", "", ha}, {"http://other:9870", "", ha},
		{"http://nn:9870", onlyService, single}, {"http://nn:9870", "", nil},
		{"http://h5:7", "one", []string{"dfs.nameservices", "one", "dfs.namenode.http-address", "h5:7"}},
		{"http://h5:7", "", []string{"dfs.nameservices", "one,two", "dfs.namenode.http-address", "h5:7"}},
	} {
		s, err := readSite(hdfsConf(t, c.conf...))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.serviceOf(c.url); got != c.want {
			t.Errorf("%s: %q, want %q", c.url, got, c.want)
		}
	}
	if s, err := readSite(hdfsConf(t, "dfs.nameservices", "far,near", "dfs.internal.nameservices", "near", propQueue,
		"86400000")); err != nil || len(s.names) != 1 || s.queue != 24*time.Hour {
		t.Errorf("%+v, %v", s, err)
	}
	for _, names := range []string{" , ", "${no.such.property}", "ns1,${none}", "ns1 ns2"} {
		if s, err := readSite(hdfsConf(t, "dfs.nameservices", names)); err == nil {
			t.Errorf("nameservices %q: %q", names, s.names)
		}
	}
	if _, err := readSite(hdfsConf(t, propQueue, "soon")); err == nil {
		t.Error("a queue that is no number")
	}
}

// TestMoreNamespaces: files that show more namespaces than dfs.nameservices has, as those of a client, do not say how
// many there are.
func TestMoreNamespaces(t *testing.T) {
	mounts := []string{"fs.viewfs.mounttable.c.link./a", "hdfs://ns1/a", "fs.viewfs.mounttable.c.link./b",
		"hdfs://NS1/b,hdfs://ns2/b", "fs.viewfs.mounttable.c.link./c", "s3a://bucket/"}
	ha := []string{"dfs.ha.namenodes.ns1", "a,b", "dfs.ha.namenodes.ns2", "a"}
	with := func(list []string, more ...string) []string { return append(slices.Clone(list), more...) }
	for _, c := range []struct {
		conf []string
		want string
	}{
		{mounts, "fs.viewfs.mounttable.* names 2 namespaces, and dfs.nameservices 0"},
		{with(mounts, "dfs.nameservices", "ns1"), "fs.viewfs.mounttable.* names 2 namespaces, and dfs.nameservices 1"},
		{with(mounts, "dfs.nameservices", "ns1,ns2"), ""},
		{with(mounts, "dfs.internal.nameservices", "ns1"), ""},
		{mounts[:2], ""},
		{ha, "dfs.ha.namenodes.* names 2 namespaces, and dfs.nameservices 0"},
		{with(ha, "dfs.nameservices", "ns1"), "dfs.ha.namenodes.* names 2 namespaces, and dfs.nameservices 1"},
		{with(ha, "dfs.nameservices", "ns1,ns2"), ""},
		{with(ha, "dfs.nameservices", "ns1,ns2", "dfs.internal.nameservices", "ns1"), ""},
		{[]string{"fs.defaultFS", "viewfs://c"}, "fs.defaultFS is viewfs"},
		{[]string{"fs.defaultFS", "viewfs://c", "dfs.nameservices", "ns1"}, ""},
	} {
		s, err := readSite(hdfsConf(t, c.conf...))
		if err != nil || c.want == "" && s.unknown != "" || !strings.Contains(s.unknown, c.want) {
			t.Errorf("%q: %v, %q, want %q", c.conf, err, s.unknown, c.want)
		}
	}
	v, err := judge(t, migrated(t), hdfsConf(t, mounts...), VerdictOptions{Images: []string{write(t, zoneTree())}})
	if err != nil || v.Outcome != migrate.NoVerdict || !strings.Contains(verdictText(v), "names 2 namespaces") {
		t.Errorf("%v\n%s", err, verdictText(v))
	}
}

// TestVerdictUsage: faults of the command line.
func TestVerdictUsage(t *testing.T) {
	for _, o := range []VerdictOptions{{Workers: 1}, {Images: []string{"x"}, Workers: 0},
		{Images: []string{"x"}, Workers: 1, Paths: -1},
		{Images: []string{"x"}, Workers: 1, AcceptGone: []uint{1 << 32}},
		{Images: []string{"x"}, Workers: 1, AcceptUnencrypted: []string{"/z"}},
		{Images: []string{"x"}, Workers: 1, AcceptUnencrypted: []string{"/z=many"}}} {
		_, err := o.Verdict(t.Context(), "", hdfsConf(t), nil, io.Discard)
		if !errors.As(err, new(*terminal.UsageError)) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// TestVerdictFaults: faults of NameNodes and of the configuration are errors, and no verdict is recorded.
func TestVerdictFaults(t *testing.T) {
	e, conf := migrated(t), hdfsConf(t)
	broken := hdfsConf(t)
	if err := os.WriteFile(filepath.Join(broken, "hdfs-site.xml"), []byte("<configuration>"), 0o600); err != nil {
		t.Fatal(err)
	}
	image, _ := zoneTree().Bytes()
	for _, c := range []struct {
		want, conf string
		options    VerdictOptions
	}{
		{"dfs.cluster.administrators", conf,
			VerdictOptions{NameNodes: []string{start(t, &server{status: http.StatusForbidden})}}},
		{"the image of http://", conf,
			VerdictOptions{NameNodes: []string{start(t, &server{image: image[:len(image)-5], txid: 3})}}},
		{"tried 3 times", conf,
			VerdictOptions{NameNodes: []string{start(t, &server{image: image, txid: 3, breaks: 9})}}},
		{"hdfs-site.xml", broken, VerdictOptions{Images: []string{write(t, zoneTree())}}},
		{"is no number of milliseconds", hdfsConf(t, propQueue, "-1"),
			VerdictOptions{Images: []string{write(t, zoneTree())}}},
		{"a pipe, device or folder cannot be read", conf, VerdictOptions{Images: []string{t.TempDir()}}},
	} {
		if v, err := judge(t, e, c.conf, c.options); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, %+v, want %q", err, v, c.want)
		}
	}
	f, err := e.Finish(t.Context(), migrate.FinishOptions{Since: time.Now(), Verdict: true})
	if err != nil || !strings.Contains(strings.Join(f.Refusals, "\n"), "there is no verdict") {
		t.Errorf("%v, %q", err, f.Refusals)
	}
}
