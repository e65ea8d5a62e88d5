package hadoop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWayBack goes back to the source after HDFS was pointed at our server, by the steps of docs/migration.md, "The way
// back". A file that was written meanwhile opens only at our server, until it is copied.
func TestWayBack(t *testing.T) {
	Require(t)
	source := origin{kms: StartJavaKMS(t, KMSOptions{ACLs: sourceACLs(), Site: sourceSite()})}
	cluster := NewCluster(t, source.kms.ProviderURI(), nil)
	cluster.Start()
	const key, written = "fin.key", "written meanwhile"
	admin, super := NewClient(t, keyAdmin, cluster.Conf()), NewClient(t, HDFSUser, cluster.Conf())
	admin.KeyShell("create", key, "-size", "128")
	super.FsShell("-mkdir", "/finance", "/aside")
	super.CryptoAdmin("-createZone", "-keyName", key, "-path", "/finance")
	super.FsShell("-chown", alice, "/finance", "/aside")
	super.FsShell("-chmod", "700", "/aside")
	file := func(text string) string {
		t.Helper()
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	user := NewClient(t, alice, cluster.Conf())
	user.FsShell("-put", file("old"), "/finance/old")

	conf, env := clavigerConf(t, source)
	ours := StartClaviger(t, ClavigerOptions{Conf: conf, Env: env})
	cluster.SetKeyProvider(ours.ProviderURI())
	cluster.Restart()
	user = NewClient(t, alice, cluster.Conf())
	user.FsShell("-put", file(written), "/finance/new")
	if _, version := user.FileKey("/finance/new"); version != key+"@1" {
		t.Fatalf("the new file has the version %s", version)
	}

	super = NewClient(t, HDFSUser, cluster.Conf())
	super.DFSAdmin("-safemode", "enter")
	super.DFSAdmin("-saveNamespace")
	super.DFSAdmin("-safemode", "leave")
	list := Claviger(t, env, "edek", "census", "--list", key+"@1", "--namenode",
		"http://"+cluster.Conf()["dfs.namenode.http-address"])
	if !strings.Contains(list, "/finance/new") || strings.Contains(list, "/finance/old") {
		t.Errorf("the census lists\n%s", list)
	}
	user.FsShell("-cp", "/finance/new", "/aside/new")

	cluster.SetKeyProvider(source.kms.ProviderURI())
	cluster.Restart()
	user = NewClient(t, alice, cluster.Conf())
	if got := user.FsShell("-cat", "/finance/old"); got != "old" {
		t.Errorf("the old file reads %q", got)
	}
	user.MustFail("fs", "-cat", "/finance/new")
	user.FsShell("-cp", "-f", "/aside/new", "/finance/new")
	if got := user.FsShell("-cat", "/finance/new"); got != written {
		t.Errorf("the copied file reads %q", got)
	}
	if _, version := user.FileKey("/finance/new"); version != key+"@0" {
		t.Errorf("the copied file has the version %s", version)
	}
}
