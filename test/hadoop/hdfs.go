package hadoop

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"
)

// HDFSUser is the user of the NameNode and the DataNode: the superuser.
const HDFSUser = "hdfs"

// Cluster is an HDFS of one NameNode and one DataNode.
type Cluster struct {
	t        testing.TB
	dir      string
	conf     Conf
	security *Security // nil is simple authentication
	nameNode *Process
	dataNode *Process
}

// NewCluster formats an HDFS whose key provider is the KMS at keyProvider ("kms://http@..."). It does not start
// the HDFS.
func NewCluster(t testing.TB, keyProvider string, extra Conf) *Cluster {
	t.Helper()
	return newCluster(t, "127.0.0.1", keyProvider, extra, nil)
}

func newCluster(t testing.TB, host, keyProvider string, extra Conf, security *Security) *Cluster {
	t.Helper()
	Require(t)
	dir := t.TempDir()
	ports := FreePorts(t, 5)
	at := func(i int) string { return fmt.Sprintf("%s:%d", host, ports[i]) }
	c := &Cluster{t: t, dir: dir, security: security, conf: noGroups.With(Conf{
		"fs.defaultFS":              "hdfs://" + at(0),
		"hadoop.tmp.dir":            filepath.Join(dir, "tmp"),
		"dfs.replication":           "1",
		"dfs.namenode.name.dir":     "file://" + filepath.Join(dir, "name"),
		"dfs.datanode.data.dir":     "file://" + filepath.Join(dir, "data"),
		"dfs.namenode.http-address": at(1),
		"dfs.datanode.address":      at(2),
		"dfs.datanode.http.address": at(3),
		"dfs.datanode.ipc.address":  at(4),
		// Otherwise, writes are refused for 30 s after each restart.
		"dfs.namenode.safemode.extension":                           "0",
		"dfs.namenode.reencrypt.sleep.interval":                     "1s", // otherwise once a minute
		"dfs.heartbeat.interval":                                    "1",
		"dfs.namenode.fs-limits.min-block-size":                     "4096",
		"dfs.client.block.write.replace-datanode-on-failure.enable": "false",
		// Hadoop's own codec needs libhadoop. Without this property, each file logs a warning.
		"hadoop.security.crypto.codec.classes.aes.ctr.nopadding": "org.apache.hadoop.crypto.JceAesCtrCryptoCodec",
	}, extra)}
	c.SetKeyProvider(keyProvider)
	for _, d := range []string{"conf", "web/webapps/hdfs", "web/webapps/datanode"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	c.writeConf()
	c.format()
	return c
}

// formatted holds the files that a NameNode wrote when it formatted a cluster of this process.
var formatted struct {
	sync.Mutex
	files fstest.MapFS
}

// format formats the HDFS. The first cluster of a process starts a NameNode for that, which takes seconds. All others
// get copies of its files: they hold no addresses, only ids, and no two clusters meet.
func (c *Cluster) format() {
	c.t.Helper()
	formatted.Lock()
	defer formatted.Unlock()
	name := filepath.Join(c.dir, "name")
	if formatted.files != nil {
		if err := os.CopyFS(name, formatted.files); err != nil {
			c.t.Fatal(err)
		}
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	format := c.java("NameNode", "org.apache.hadoop.hdfs.server.namenode.NameNode", "-format", "-force",
		"-nonInteractive").command(ctx, c.t)
	if out, err := format.CombinedOutput(); err != nil {
		c.t.Fatalf("formatting the NameNode: %v\n%s", err, out)
	}
	files := fstest.MapFS{}
	err := filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, name+"/")] = &fstest.MapFile{Data: data, Mode: 0o600}
		return err
	})
	if err != nil || len(files) == 0 {
		c.t.Fatalf("a formatted NameNode has %d files in %s: %v", len(files), name, err)
	}
	formatted.files = files
}

// SetKeyProvider makes HDFS and its clients use another KMS, after the next Start, and in new clients.
func (c *Cluster) SetKeyProvider(uri string) {
	c.conf["hadoop.security.key.provider.path"] = uri
}

// Conf returns the configuration of a client of this cluster.
func (c *Cluster) Conf() Conf { return c.conf.With() }

// ConfDir returns the folder with the configuration files of the cluster.
func (c *Cluster) ConfDir() string { return filepath.Join(c.dir, "conf") }

func (c *Cluster) writeConf() {
	dir := filepath.Join(c.dir, "conf")
	c.conf.writeSites(c.t, dir)
	if c.security != nil {
		c.security.sslServer().Write(c.t, filepath.Join(dir, "ssl-server.xml"))
		if c.security.SSLClient != nil {
			c.security.SSLClient.Write(c.t, filepath.Join(dir, "ssl-client.xml"))
		}
	}
	writeLog4j(c.t, dir, "INFO")
}

func (c *Cluster) java(name, main string, args ...string) java {
	j := java{
		name: name,
		conf: filepath.Join(c.dir, "conf"),
		// The servers need folders "webapps/..." on the class path, which their jars do not have.
		classPath: []string{filepath.Join(c.dir, "web")},
		main:      main,
		args:      args,
		user:      HDFSUser,
	}
	if c.security != nil {
		j.user, j.flags, j.env = "", c.security.flags(), c.security.env()
	}
	return j
}

// Start starts both servers and returns when files can be written.
func (c *Cluster) Start() {
	c.t.Helper()
	c.writeConf()
	c.nameNode = Start(c.t, "namenode", c.java("namenode", "org.apache.hadoop.hdfs.server.namenode.NameNode").
		command(context.Background(), c.t))
	c.dataNode = Start(c.t, "datanode", c.java("datanode", "org.apache.hadoop.hdfs.server.datanode.DataNode").
		command(context.Background(), c.t))
	c.nameNode.WaitLog("NameNode RPC up")
	c.dataNode.WaitLog("Successfully sent block report")
	c.nameNode.WaitLog("STATE\\* Leaving safe mode|STATE\\* Safe mode is OFF")
}

// Stop kills both servers. An HDFS must survive that.
func (c *Cluster) Stop() {
	c.t.Helper()
	c.dataNode.Kill()
	c.nameNode.Kill()
}

// Restart stops and starts the servers, as after a change of configuration.
func (c *Cluster) Restart() {
	c.t.Helper()
	begun := time.Now()
	c.Stop()
	c.Start()
	c.t.Logf("HDFS restarted in %.1fs", time.Since(begun).Seconds())
}
