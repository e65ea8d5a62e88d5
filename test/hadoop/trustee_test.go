package hadoop

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestTrusteeKMSKeyShell runs `hadoop key` with a Key Trustee KMS, which trusts its server by a truststore of
// either type.
func TestTrusteeKMSKeyShell(t *testing.T) {
	Require(t)
	kt := StartTrustee(t)
	folder := filepath.Join(t.TempDir(), ".keytrustee")

	kms := kt.StartTrusteeKMS(t, folder, OpenACLs(), kt.Truststore(t, "JKS"))
	c := NewClient(t, keyAdmin, Conf{"hadoop.security.key.provider.path": kms.ProviderURI()})
	c.KeyShell("create", "fin.key", "-size", "256", "-description", "Grüße: <&>\"", "-attr", "owner=fin")
	if out := c.MustFail("key", "create", "fin.key"); !strings.Contains(out, "fin.key") {
		t.Errorf("a second fin.key: %s", out)
	}
	c.KeyShell("create", "gone.key", "-size", "128")
	c.KeyShell("roll", "fin.key")
	c.KeyShell("delete", "gone.key", "-f")
	before := listed(c, kms.ProviderURI())
	if len(before) != 1 || !strings.Contains(before[0], "fin.key : cipher: AES/CTR/NoPadding, length: "+
		"256, description: Grüße: <&>\"") ||
		!strings.Contains(before[0], "version: 2") || !strings.Contains(before[0], "owner=fin") {
		t.Errorf("hadoop key list -metadata: %q", before)
	}
	if code := kms.Stop(); code != 0 {
		t.Errorf("claviger kms ended with status %d on SIGTERM", code)
	}

	// A truststore of the other type, and a new process with the same folder.
	kms = kt.StartTrusteeKMS(t, folder, OpenACLs(), kt.Truststore(t, "PKCS12"))
	at := []string{"-provider", kms.ProviderURI()}
	if after := listed(c, kms.ProviderURI()); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("after a restart:\n%q\nbefore:\n%q", after, before)
	}
	c.KeyShell(append([]string{"roll", "fin.key"}, at...)...)
	c.KeyShell(append([]string{"delete", "fin.key", "-f"}, at...)...)
	if out := c.KeyShell(append([]string{"list"}, at...)...); strings.Contains(out, ".key\n") {
		t.Errorf("hadoop key list after the deletion of all: %s", out)
	}
}
