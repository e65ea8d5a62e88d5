package hadoop

import (
	"os"
	"strings"
	"testing"
)

// TestHarness proves the harness by a Hadoop without any part of ours.
func TestHarness(t *testing.T) {
	kms := StartJavaKMS(t, KMSOptions{})
	cluster := NewCluster(t, kms.ProviderURI(), nil)
	cluster.Start()
	c := NewClient(t, HDFSUser, cluster.Conf())
	c.KeyShell("create", "k1", "-size", "256", "-description", "first", "-attr", "a=b")
	if out := c.KeyShell("list", "-metadata"); !strings.Contains(out, "k1 : cipher: AES/CTR/NoPadding, length: 256, description: first") {
		t.Errorf("list -metadata printed %q", out)
	}
	if out := c.MustFail("key", "create", "k1"); !strings.Contains(out, "k1") {
		t.Errorf("a second creation printed %q", out)
	}
	c.FsShell("-mkdir", "/z")
	c.CryptoAdmin("-createZone", "-keyName", "k1", "-path", "/z")
	file := t.TempDir() + "/f"
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.FsShell("-put", file, "/z/f")
	if out := c.CryptoAdmin("-getFileEncryptionInfo", "-path", "/z/f"); !strings.Contains(out, "ezKeyVersionName: k1@0") {
		t.Errorf("-getFileEncryptionInfo printed %q", out)
	}
	cluster.Restart()
	c = NewClient(t, HDFSUser, cluster.Conf())
	if got := c.FsShell("-cat", "/z/f"); got != "content" {
		t.Errorf("read %q after the restart", got)
	}
}
