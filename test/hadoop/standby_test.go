package hadoop

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"claviger/namenode"
)

// pair is an HDFS of two NameNodes, without a DataNode.
type pair struct {
	*Cluster
	rpc, web [2]string // addresses
}

const mainNameNode = "org.apache.hadoop.hdfs.server.namenode.NameNode"

// newPair formats an HDFS of two NameNodes, nn0 and nn1, with a shared folder of edits.
func newPair(t *testing.T) *pair {
	t.Helper()
	Require(t)
	dir, ports := t.TempDir(), FreePorts(t, 4)
	p := &pair{Cluster: &Cluster{t: t, dir: dir}}
	p.conf = noGroups.With(Conf{"fs.defaultFS": "hdfs://ns1", "hadoop.tmp.dir": filepath.Join(dir, "tmp"),
		"dfs.nameservices": "ns1", "dfs.ha.namenodes.ns1": "nn0,nn1", "dfs.ha.fencing.methods": "shell(/bin/true)",
		"dfs.namenode.shared.edits.dir":   "file://" + filepath.Join(dir, "shared"),
		"dfs.namenode.safemode.extension": "0",
		"dfs.client.failover.proxy.provider.ns1": "org.apache.hadoop.hdfs.server.namenode.ha." +
			"ConfiguredFailoverProxyProvider"})
	for i := range 2 {
		p.rpc[i], p.web[i] = fmt.Sprintf("127.0.0.1:%d", ports[i]), fmt.Sprintf("127.0.0.1:%d", ports[2+i])
		nn := fmt.Sprintf("ns1.nn%d", i)
		p.conf["dfs.namenode.rpc-address."+nn], p.conf["dfs.namenode.http-address."+nn] = p.rpc[i], p.web[i]
		p.conf["dfs.namenode.name.dir."+nn] = "file://" + p.names(i)
	}
	for _, d := range []string{"conf", "web/webapps/hdfs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	p.writeConf()
	p.run(p.nameNodeOf(0, "-format", "-force", "-nonInteractive"))
	if err := os.CopyFS(p.names(1), os.DirFS(p.names(0))); err != nil {
		t.Fatal(err)
	}
	return p
}

// names is the folder of a NameNode's images.
func (p *pair) names(i int) string { return filepath.Join(p.dir, fmt.Sprint("name", i)) }

func (p *pair) nameNodeOf(i int, args ...string) java {
	return p.java(fmt.Sprint("namenode", i), mainNameNode, append([]string{fmt.Sprintf("-Ddfs.ha.namenode.id=nn%d", i)},
		args...)...)
}

// run runs a command to its end.
func (p *pair) run(j java) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if out, err := j.command(ctx, p.t).CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v\n%s", j.name, err, out)
	}
}

// TestStandbyImages: a standby serves its images, too. Of a standby that is named first, and the active NameNode, the
// newest image is counted. The states of both are known.
func TestStandbyImages(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for i := range 2 {
		Start(t, fmt.Sprint("namenode", i), p.nameNodeOf(i).command(context.Background(), t)).WaitLog("NameNode RPC up")
	}
	p.run(p.java("haadmin", "org.apache.hadoop.hdfs.tools.DFSHAAdmin", "-transitionToActive", "nn1"))
	super := NewClient(t, HDFSUser, p.Conf())
	super.FsShell("-mkdir", "/folder")
	super.DFSAdmin("-safemode", "enter")
	super.DFSAdmin("-saveNamespace")
	count := func(urls string) (inodes int) {
		var r struct{ Image struct{ INodes int } }
		out := Claviger(t, nil, "edek", "census", "--namenode", urls, "--quiet", "-o", "json")
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatal(err)
		}
		return r.Image.INodes
	}
	standby, active := "http://"+p.web[0], "http://"+p.web[1]
	if n := count(standby + "," + active); n != 2 {
		t.Errorf("the newest image has %d inodes, want / and /folder", n)
	}
	if n := count(standby); n < 1 {
		t.Errorf("the image of the standby has %d inodes", n)
	}
	client, err := namenode.New([]string{standby, active}, namenode.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range client.States(t.Context()) {
		if want := []string{"standby", "active"}[i]; s.Err != nil || s.Role != want {
			t.Errorf("%s is %q, want %s: %v", s.URL, s.Role, want, s.Err)
		}
	}
}
