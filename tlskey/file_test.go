package tlskey

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"claviger/internal/certtest"
)

// TestReadURIs: a file holds URIs, or a private key.
func TestReadURIs(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "key")
	const a, b = "pkcs11:token=t;object=a?module-path=/m&pin-source=file:/pin", "PKCS11:token=t;object=b"
	for text, want := range map[string][]string{a: {a}, a + "\n" + b + "\n": {a, b}, "": nil, "text": nil} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, ok, err := ReadURIs(file); err != nil || ok != (want != nil) || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %t, %v", text, got, ok, err)
		}
	}
	if got, ok, err := ReadURIs(certtest.New(t, dir).Issue("kms")); ok || got != nil || err != nil {
		t.Errorf("a private key: %q, %v", got, err)
	}
	if _, _, err := ReadURIs(file + ".none"); err == nil {
		t.Error("no file is no error")
	}
	if list := SecretFiles([]string{a, "text"}); len(list) != 1 || list[0].Path != "/pin" {
		t.Errorf("%+v", list)
	}
}
