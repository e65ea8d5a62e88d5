package pkcs11

import (
	"fmt"
	"strings"
	"testing"
)

// TestTokenDirectory: SoftHSM's settings are read as SoftHSM reads them.
func TestTokenDirectory(t *testing.T) {
	const usual = "/var/lib/softhsm/tokens/"
	for settings, want := range map[string]string{
		"":                              usual,
		"log.level = ERROR\n":           usual,
		"directories.tokendir = \n":     usual,
		"# directories.tokendir = /a\n": usual,
		"directories.tokendir = /a\n":   "/a",
		"directories.tokendir=/a # of the KMS\r\n":               "/a",
		"  directories.tokendir\t=\t/a b/c  \nslots.x = true":    "/a b/c",
		"directories.tokendir = /a\ndirectories.tokendir = /b\n": "/b",
		"directories.tokendir = /a=b\n":                          "/a",
		"directories.tokendir.old = /a\n":                        usual,
	} {
		if got := tokenDirectory(strings.NewReader(settings)); got != want {
			t.Errorf("%q: %q, want %q", settings, got, want)
		}
	}
}

// TestTokenFolderFits: a folder is recognised by the serial number in its name and by its label. SoftHSM fills the
// label up with blanks to 32 bytes (not characters).
func TestTokenFolderFits(t *testing.T) {
	folder := func(label string) tokenFolder {
		padded := label + strings.Repeat(" ", 32-len(label))
		return tokenFolder{
			path:  "/tokens/0f3d1f3a-1b7e-3c52-9d11-6a7b8c9d0e1f",
			label: []byte(fmt.Sprintf("\x00\x00\x00\x20%s\x80\x00", padded)),
		}
	}
	const serial = "9d116a7b8c9d0e1f"
	for _, c := range []struct {
		of    string
		by    Config
		wants bool
	}{
		{"kms", Config{TokenLabel: "kms"}, true},
		{"kms", Config{TokenLabel: "km"}, false},
		{"kms", Config{TokenLabel: "kms2"}, false},
		{"schlüssel", Config{TokenLabel: "schlüssel"}, true},
		{"鍵", Config{TokenLabel: "鍵", Serial: serial}, true},
		{"kms", Config{Serial: serial}, true},
		{"kms", Config{Serial: "0" + serial[1:]}, false},
		{"kms", Config{Serial: serial, TokenLabel: "other"}, false},
		{"kms", Config{}, false}, // named by its slot, which a folder does not show
		{"kms", Config{TokenLabel: strings.Repeat("k", 40)}, false},
	} {
		if got := folder(c.of).fits(&c.by); got != c.wants {
			t.Errorf("%q fits %+v: %t", c.of, c.by, got)
		}
	}
}
