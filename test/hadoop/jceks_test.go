package hadoop

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// requestJSON sends one request of Hadoop's REST protocol as keyAdmin, and decodes the answer, which must have status
// 200.
func requestJSON(t *testing.T, kms *KMS, method, path string, body, answer any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		in = bytes.NewReader(b)
	}
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	req, err := http.NewRequestWithContext(ctx, method, kms.URL+"/v1/"+path+sep+"user.name="+keyAdmin, in)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s\n%s", method, path, resp.Status, b)
	}
	if err := json.Unmarshal(b, answer); err != nil {
		t.Fatalf("%s %s: %v in %q", method, path, err, b)
	}
}

// keyContent is everything that a KMS returns about a key: metadata, and the name and the material of each
// version.
type keyContent struct {
	Metadata map[string]any
	Versions []map[string]any
}

func content(t *testing.T, kms *KMS) map[string]keyContent {
	t.Helper()
	var names []string
	requestJSON(t, kms, http.MethodGet, "keys/names", nil, &names)
	all := map[string]keyContent{}
	for _, name := range names {
		var k keyContent
		requestJSON(t, kms, http.MethodGet, "key/"+url.PathEscape(name)+"/_metadata", nil, &k.Metadata)
		requestJSON(t, kms, http.MethodGet, "key/"+url.PathEscape(name)+"/_versions", nil, &k.Versions)
		for _, v := range k.Versions {
			if m, _ := v["material"].(string); m == "" {
				t.Fatalf("%s shows no material for %v", kms.Name, v["versionName"])
			}
		}
		all[name] = k
	}
	return all
}

// edek is an EDEK in the form of the REST protocol.
type edek struct {
	VersionName         string `json:"versionName"`
	IV                  string `json:"iv"`
	EncryptedKeyVersion struct {
		Material string `json:"material"`
	} `json:"encryptedKeyVersion"`
}

func decrypt(t *testing.T, kms *KMS, key string, e edek) string {
	t.Helper()
	var dek struct {
		Material string `json:"material"`
	}
	requestJSON(t, kms, http.MethodPost, "keyversion/"+url.PathEscape(e.VersionName)+"/_eek?eek_op=decrypt",
		map[string]string{"name": key, "iv": e.IV, "material": e.EncryptedKeyVersion.Material}, &dek)
	if dek.Material == "" {
		t.Fatalf("%s decrypted an EDEK of %s to nothing", kms.Name, e.VersionName)
	}
	return dek.Material
}

var reference = flag.Bool("reference", false, "let the real Java KMS stand in for claviger in the tests of "+
	"keystore files, to prove the tests")

// clavigerOnJCEKS starts our server with a keystore file, without a migration and open to everybody.
func clavigerOnJCEKS(t *testing.T, keystore string) *KMS {
	t.Helper()
	if *reference {
		return StartJavaKMS(t, KMSOptions{Keystore: keystore})
	}
	dir := t.TempDir()
	Conf{
		"hadoop.kms.http.host":        "127.0.0.1",
		"hadoop.kms.key.provider.uri": "jceks://file@" + keystore,
		"claviger.metastore.uri":      "sqlite://" + filepath.Join(dir, "claviger.db"),
	}.Write(t, filepath.Join(dir, "kms-site.xml"))
	OpenACLs().Write(t, filepath.Join(dir, "kms-acls.xml"))
	noGroups.Write(t, filepath.Join(dir, "core-site.xml"))
	return StartClaviger(t, ClavigerOptions{Conf: dir})
}

// TestKeyShellOnJCEKS runs the stock `hadoop key` with our server and a keystore file.
func TestKeyShellOnJCEKS(t *testing.T) {
	Require(t)
	ourKMS := clavigerOnJCEKS(t, filepath.Join(t.TempDir(), "kms.keystore"))
	c := NewClient(t, keyAdmin, Conf{"hadoop.security.key.provider.path": ourKMS.ProviderURI()})
	list := func() []string {
		t.Helper()
		lines := strings.Split(strings.TrimSpace(c.KeyShell("list")), "\n")
		if !strings.HasPrefix(lines[0], "Listing keys for KeyProvider: ") {
			t.Fatalf("list printed %q", lines)
		}
		slices.Sort(lines[1:])
		return lines[1:]
	}
	described := func(want string) {
		t.Helper()
		if out := c.KeyShell("list", "-metadata"); !strings.Contains(out, want) {
			t.Errorf("list -metadata printed %q, want %q in it", out, want)
		}
	}

	if got := list(); len(got) != 0 {
		t.Errorf("a new keystore lists %q", got)
	}
	out := c.KeyShell("create", "k1", "-size", "128", "-description", "first", "-attr", "a=b")
	if !strings.Contains(out, "k1 has been successfully created") {
		t.Errorf("create printed %q", out)
	}
	c.KeyShell("create", "k2", "-size", "256")
	if got, want := list(), []string{"k1", "k2"}; !slices.Equal(got, want) {
		t.Errorf("list: %q, want %q", got, want)
	}
	described("k1 : cipher: AES/CTR/NoPadding, length: 128, description: first, created: ")
	described("k2 : cipher: AES/CTR/NoPadding, length: 256, description: null, created: ")
	if out := c.MustFail("key", "create", "k1"); !strings.Contains(out, "k1 already exists") {
		t.Errorf("a second creation printed %q", out)
	}
	if out := c.MustFail("key", "create", "k3", "-size", "100"); !strings.Contains(out, "k3 has not been created") {
		t.Errorf("a creation with 100 bits printed %q", out)
	}
	if out := c.KeyShell("roll", "k1"); !strings.Contains(out, "k1 has been successfully rolled") {
		t.Errorf("roll printed %q", out)
	}
	described("version: 2, attributes: [a=b]")
	c.MustFail("key", "roll", "nokey")
	out = c.KeyShell("invalidateCache", "k1")
	if !strings.Contains(out, "Cached keyversions of k1 has been successfully invalidated") {
		t.Errorf("invalidateCache printed %q", out)
	}
	c.KeyShell("delete", "k2", "-f")
	c.MustFail("key", "delete", "k2", "-f")
	if got, want := list(), []string{"k1"}; !slices.Equal(got, want) {
		t.Errorf("list after the deletion: %q, want %q", got, want)
	}
	if code := ourKMS.Stop(); code != 0 && !*reference {
		t.Errorf("claviger kms ended with status %d on SIGTERM", code)
	}
}

// TestJCEKSBothWays uses one keystore file with our server and Hadoop's in turn. Each must read everything that
// the other wrote, with the material, and write a file that the other reads.
func TestJCEKSBothWays(t *testing.T) {
	Require(t)
	keystore := filepath.Join(t.TempDir(), "kms.keystore")
	uri := "jceks://file@" + keystore

	ourKMS := clavigerOnJCEKS(t, keystore)
	shell := NewClient(t, keyAdmin, Conf{"hadoop.security.key.provider.path": ourKMS.ProviderURI()})
	shell.KeyShell("create", "plain", "-size", "128")
	shell.KeyShell("create", "full/name with%signs", "-size", "256", "-description", "Grüße, 鍵", "-attr",
		"a=b", "-attr", "c=d")
	shell.KeyShell("roll", "plain")
	shell.KeyShell("create", "gone", "-size", "192")
	shell.KeyShell("delete", "gone", "-f")
	var edeks []edek
	requestJSON(t, ourKMS, http.MethodGet, "key/plain/_eek?eek_op=generate&num_keys=3", nil, &edeks)
	var deks []string
	for _, e := range edeks {
		deks = append(deks, decrypt(t, ourKMS, "plain", e))
	}
	written := content(t, ourKMS)
	if len(written) != 2 || len(written["plain"].Versions) != 2 {
		t.Fatalf("our server says that it holds %v", written)
	}
	ourKMS.Stop()

	// Hadoop's provider reads the file without a server.
	out := shell.KeyShell("list", "-metadata", "-provider", uri)
	if !strings.Contains(out, "plain : cipher: AES/CTR/NoPadding, length: 128") ||
		!strings.Contains(out, "description: Grüße, 鍵") {
		t.Errorf("Hadoop reads from our keystore: %q", out)
	}

	java := StartJavaKMS(t, KMSOptions{Keystore: keystore, Env: fewIterations})
	if got := content(t, java); !reflect.DeepEqual(got, written) {
		t.Errorf("Hadoop's server read our keystore as\n%v\nwant\n%v", got, written)
	}
	for i, e := range edeks {
		if got := decrypt(t, java, "plain", e); got != deks[i] {
			t.Errorf("Hadoop's server decrypted EDEK %d to another key than ours", i)
		}
	}
	shell.KeyShell("roll", "plain", "-provider", java.ProviderURI())
	for i := range 3 {
		shell.KeyShell("create", fmt.Sprintf("java%d", i), "-size", "256", "-attr", "made=by java", "-provider",
			java.ProviderURI())
	}
	written = content(t, java)
	java.Stop()

	ourKMS = clavigerOnJCEKS(t, keystore)
	if got := content(t, ourKMS); !reflect.DeepEqual(got, written) {
		t.Errorf("our server read Hadoop's keystore as\n%v\nwant\n%v", got, written)
	}
	shell.KeyShell("delete", "java1", "-f", "-provider", ourKMS.ProviderURI())
	ourKMS.Stop()

	// Hadoop's file system writes a checksum file beside the keystore. The checksum must fit a keystore that we
	// wrote over Hadoop's.
	var left []string
	for line := range strings.Lines(shell.KeyShell("list", "-provider", uri)) {
		if name := strings.TrimSpace(line); strings.HasPrefix(name, "java") {
			left = append(left, name)
		}
	}
	slices.Sort(left)
	if want := []string{"java0", "java2"}; !slices.Equal(left, want) {
		t.Errorf("Hadoop lists %q after our deletion, want %q", left, want)
	}
}
