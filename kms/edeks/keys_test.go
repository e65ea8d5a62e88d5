package edeks

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/internal/imagetest"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// keySite makes the configuration of a KMS with the keys k and idle, and gone, which has been destroyed.
func keySite(t *testing.T) string {
	t.Helper()
	dir, properties := kmstest.HSM(t)
	kmstest.WriteSite(t, dir, properties)
	svc, err := kms.Open(t.Context(), dir, "claviger", hsm.Destroy, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"k", "idle", "gone"} {
		if err == nil {
			_, err = svc.Primary.Create(t.Context(), provider.Spec{Name: name, Cipher: claviger.DefaultCipher,
				BitLength: 128})
		}
	}
	if err == nil {
		err = svc.Primary.Delete(t.Context(), "gone")
	}
	if err == nil {
		err = svc.Primary.(*hsm.Provider).Purge(t.Context(), "gone", "gone@0")
	}
	if err = errors.Join(err, svc.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// keyTree has zones of the keys k, gone and theirs.
func keyTree() *imagetest.Tree {
	return &imagetest.Tree{Nodes: []imagetest.Node{
		{ID: imagetest.Root, Folder: true, Children: []uint64{20000, 20001, 20002}},
		{ID: 20000, Name: "z", Folder: true, Zone: "k", Children: []uint64{20003}},
		{ID: 20001, Name: "y", Folder: true, Zone: "gone"},
		{ID: 20002, Name: "x", Folder: true, Zone: "theirs", Children: []uint64{20004, 20005}},
		{ID: 20003, Name: "f", EDEK: "k@0"},
		{ID: 20004, Name: "g", EDEK: "theirs@4"},
		{ID: 20005, Name: "h", EDEK: "theirs@4"},
	}}
}

// TestKeysOfZones: with the configuration of a KMS, the census names zones and EDEKs whose key is nowhere, and keys
// that nothing uses, in text and in JSON.
func TestKeysOfZones(t *testing.T) {
	dir, file := keySite(t), write(t, keyTree())
	out, err := run(Options{Conf: dir}, file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Warning: zone /x has key theirs, which is neither in the KMS nor in the journal of its migration.\n",
		"Warning: zone /y has key gone, which was in the KMS and has been destroyed.\n",
		"Warning: 2 EDEKs have version theirs@4, which is neither in the KMS nor in the journal of its migration.\n",
		"Nobody can read these files by this KMS.",
		"Keys of the KMS that no zone and no EDEK has: idle\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "zone /z") {
		t.Errorf("the key of /z is there:\n%s", out)
	}
	var buffer strings.Builder
	var o Options
	cmd := new(cobra.Command)
	o.Define(cmd)
	cmd.SetOut(&buffer)
	var got result
	if err := cmd.ParseFlags([]string{"-o", "json", "--conf", dir}); err != nil {
		t.Fatal(err)
	}
	if err := Census(t.Context(), &o, []string{file}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(buffer.String()), &got); err != nil {
		t.Fatal(err)
	}
	if k := got.Keys; k.Unchecked != "" || !slices.Equal(k.Unused, []string{"idle"}) ||
		!slices.Equal(k.LostZones, []lostZone{{"/x", "theirs", "nobody"}, {"/y", "gone", "destroyed"}}) ||
		!slices.Equal(k.LostVersions, []lostVersion{{"theirs@4", 2, "nobody"}}) || len(got.Zones) != 3 {
		t.Errorf("%s", buffer.String())
	}
}

// TestKeysUnknown: without a KMS, or with one that cannot be read, the census is made, and says that keys were not
// checked and why.
func TestKeysUnknown(t *testing.T) {
	bare := hdfsConf(t)
	if err := os.WriteFile(filepath.Join(bare, "core-site.xml"), []byte("<configuration><property><name>hadoop.a"+
		"</name><value>b</value></property></configuration>"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	kmstest.WriteSite(t, broken, map[string]string{"hadoop.kms.key.provider.uri": "cloudera.hsmkp://file@/none"})
	file := write(t, keyTree())
	for dir, want := range map[string]string{
		"":     "name the configuration folder of the KMS by --conf",
		bare:   "hadoop.kms.key.provider.uri is not set there",
		broken: "/none",
	} {
		out, err := run(Options{Conf: dir}, file)
		if err != nil || !strings.Contains(out, "theirs@4") || strings.Contains(out, "Warning") ||
			!strings.Contains(out, "Whether the keys exist was not checked: ") || !strings.Contains(out, want) {
			t.Errorf("%q: %v, want %q in\n%s", dir, err, want, out)
		}
	}
}

// TestMissingConf: a folder of --conf that does not exist is an error before the count, which may take long.
func TestMissingConf(t *testing.T) {
	out, err := run(Options{Conf: filepath.Join(t.TempDir(), "nothing")}, write(t, keyTree()))
	if err == nil || !strings.Contains(err.Error(), "does not exist; name it with --conf") || out != "" {
		t.Errorf("%v, want an error that names --conf, and no output:\n%s", err, out)
	}
}

// TestPINOfOptionalPart: a census without the names of keys is still a census, so no PIN is tried for them at a token
// that reports a wrong try.
func TestPINOfOptionalPart(t *testing.T) {
	dir := keySite(t)
	token, _, err := hsm.TokenConfig("cloudera.hsmkp://file@" + filepath.Join(dir, "luna.keystore"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(token.PINFile, []byte("87654321"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pkcs11.Open(t.Context(), token); !pkcs11.IsPINRefused(err) {
		t.Fatalf("the wrong PIN: %v", err)
	}
	out, err := run(Options{Conf: dir}, write(t, keyTree()))
	if err != nil || !strings.Contains(out, "a wrong PIN was tried at token") {
		t.Errorf("%v\n%s", err, out)
	}
}
