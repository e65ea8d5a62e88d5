package diagnosis

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"claviger/doctor"
	"claviger/hadoopconf"
	"claviger/internal/golden"
	"claviger/kms"
)

// points returns a provocation: HDFS has these properties, and this server is at port 9600 of 127.0.0.1.
func points(pairs ...string) func(*lab) {
	return func(l *lab) {
		l.set("hadoop.kms.http.port", "9600")
		l.hdfs(pairs...)
	}
}

const hereURI = "kms://http@127.0.0.1:9600/kms"

// hdfsFailures are failures of HDFS' configuration.
var hdfsFailures = []failure{
	{"no provider", "D-hdfs-path", false, points("fs.defaultFS", "hdfs://nn")},
	{"a URI that cannot be read", "D-hdfs-path", false, points(hdfsPath, "kms://127.0.0.1:9600/kms")},
	{"two URIs", "D-hdfs-path", false, points(hdfsPath, hereURI+",kms://http@127.0.0.2:9600/kms")},
	{"another port", "D-hdfs-path", false, points(hdfsPath, "kms://http@127.0.0.1:16000/kms")},
	{"another scheme", "D-hdfs-path", false, points(hdfsPath, "kms://https@127.0.0.1:9600/kms")},
	{"another path", "D-hdfs-path", false, points(hdfsPath, "kms://http@127.0.0.1:9600/")},
	{"another host", "D-hdfs-path", false, points(hdfsPath, "kms://http@192.0.2.7:9600/kms")},
	{"an unknown host", "D-hdfs-path", false, points(hdfsPath, "kms://http@127.0.0.1;kms-2.invalid:9600/kms")},
	{"the older spelling", "D-hdfs-spelling", false, points(hdfsOldPath, hereURI)},
	{"both spellings", "D-hdfs-spelling", false, points(hdfsPath, hereURI, hdfsOldPath, hereURI)},
	{"two KMSs", "D-hdfs-spelling", false, points(hdfsPath, hereURI, hdfsOldPath, "kms://http@192.0.2.7:9600/kms")},
	{"a cache that is too small", "D-hdfs-queue", false, points(hdfsPath, hereURI,
		"hadoop.security.kms.client.encrypted.key.cache.size", "3")},
	{"a cache that is too large", "D-hdfs-queue", false, points(hdfsPath, hereURI,
		"hadoop.security.kms.client.encrypted.key.cache.size", "200000")},
	{"batches that are too large", "D-hdfs-queue", false, points(hdfsPath, hereURI,
		"dfs.namenode.reencrypt.batch.size", "100001")},
	{"a text that is not a number", "D-hdfs-queue", false, points(hdfsPath, hereURI,
		"hadoop.security.kms.client.encrypted.key.cache.low-watermark", "low")},
}

// TestHDFSFailures provokes each finding about HDFS' configuration.
func TestHDFSFailures(t *testing.T) { provokeAll(t, "hdfs.golden", hdfsFailures) }

// TestHealthyHDFS: an HDFS that uses this server has no warning. While HDFS uses the source, its address is not
// judged.
func TestHealthyHDFS(t *testing.T) {
	l := newLab(t)
	points(hdfsPath, hereURI)(l)
	text, err := l.check("D-hdfs-spelling", "D-hdfs-queue", "D-hdfs-nodes")
	for _, want := range []string{"ok       D-hdfs-path", "keeps at most 500 EDEKs for a key", "re-encrypts 1000",
		"no failure, no warning"} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("%v: %q is not in\n%s", err, want, text)
		}
	}
	const source = "kms://http@127.0.0.1:16000/kms"
	points(hdfsPath, source)(l)
	l.set(hadoopconf.SourceURI, source)
	if text, err := l.check("D-hdfs-path"); err != nil || !strings.Contains(text, "HDFS does not use this server yet") {
		t.Errorf("%v\n%s", err, text)
	}
}

// TestNodesInURI: each host that runs a node must be in the URI, by its name or by an address.
func TestNodesInURI(t *testing.T) {
	addresses := map[string][]string{"kms-2.example.com": {"192.0.2.2"}, "192.0.2.2": {"192.0.2.2"}}
	lookup := func(host string) []string { return addresses[host] }
	for _, tt := range []struct {
		hosts, nodes string
		missing      string
	}{
		{"kms-1.example.com kms-2.example.com", "kms-1.example.com kms-2.example.com", ""},
		{"kms-1.example.com kms-2.example.com", "kms-1 KMS-2 kms-2", ""},
		{"kms-1.example.com 192.0.2.2", "kms-1 kms-2.example.com", ""},
		{"kms-1.example.com", "kms-1.example.com kms-2.example.com", "kms-2.example.com"},
		{"kms-1.example.com", "kms-10.example.com", "kms-10.example.com"},
		{"192.0.2.1", "192", "192"}, // an address has no short name
	} {
		var nodes []kms.Node
		for name := range strings.FieldsSeq(tt.nodes) {
			nodes = append(nodes, kms.Node{Host: name})
		}
		var missing []string
		for _, f := range nodesInURI(strings.Fields(tt.hosts), nodes, lookup) {
			if name, _, ok := strings.Cut(f.Measured, " runs on the metastore"); ok != (f.Status == doctor.Warning) {
				t.Errorf("%+v", f)
			} else if ok {
				missing = append(missing, name)
			}
		}
		if !slices.Equal(missing, strings.Fields(tt.missing)) {
			t.Errorf("%q in %q: missing %q, want %q", tt.nodes, tt.hosts, missing, tt.missing)
		}
	}
}

// TestNodesOfServer: the host of a server that runs is compared with the URI.
func TestNodesOfServer(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	replace(t, &lookupHost, func(_ context.Context, name string) ([]string, error) {
		if name == host {
			name = "127.0.0.1"
		}
		return []string{name}, nil
	})
	l := newLab(t)
	l.ownPort()
	port := l.props["hadoop.kms.http.port"]
	l.hdfs(hdfsPath, "kms://http@127.0.0.1:"+port+"/kms")
	l.serve()
	text, err := l.check("D-hdfs-nodes")
	if err != nil || !strings.Contains(text, host+" is in the URI") {
		t.Errorf("%v\n%s", err, text)
	}
	l.hdfs(hdfsPath, "kms://http@192.0.2.7:"+port+"/kms")
	text, _ = l.check("D-hdfs-nodes")
	golden.Sections(t, "testdata/nodes.golden", map[string]string{"a node that is not in the URI": strings.ReplaceAll(
		l.lines(text, "D-hdfs-nodes"), " "+host+" ", " HOST ")}, true)
}

// TestOtherVersions: a node of another version, or of an unknown one, is found.
func TestOtherVersions(t *testing.T) {
	var b strings.Builder
	for _, f := range nodeFindings([]kms.Node{{Name: "process 1 on kms-1", Version: "1.0.0"},
		{Name: "process 1 on kms-2", Version: "1.1.0"}, {Name: "process 1 on kms-3"}}) {
		fmt.Fprintf(&b, "  %s  %s\n", f.Status, f.Measured)
	}
	golden.Sections(t, "testdata/versions.golden", map[string]string{"three versions": b.String()}, true)
}
