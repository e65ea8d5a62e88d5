package pkcs11

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// seeds makes a fuzz target fail if its seed folder is empty.
func seeds(f *testing.F, least int) {
	f.Helper()
	list, err := os.ReadDir(filepath.Join("testdata", "fuzz", f.Name()))
	if err != nil || len(list) < least {
		f.Fatalf("%d seeds in testdata/fuzz/%s, want at least %d; %v", len(list), f.Name(), least, err)
	}
}

// FuzzKeystoreFile: a file that is accepted has everything that a use needs. Written and read again, it has the same
// content.
func FuzzKeystoreFile(f *testing.F) {
	seeds(f, 5)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseKeystore("x", data)
		if err != nil {
			return
		}
		if err := c.check("x"); err != nil {
			t.Fatalf("read, and not complete: %v", err)
		}
		out, err := c.format()
		if err != nil {
			t.Fatalf("read, and not to be written: %v", err)
		}
		again, err := parseKeystore("x", out)
		if err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%+v was written as\n%s\nand is read as %+v, %v", c, out, again, err)
		}
	})
}

// FuzzParseURI: an accepted URI names a library, a token and a PIN.
func FuzzParseURI(f *testing.F) {
	seeds(f, 5)
	f.Fuzz(func(t *testing.T, uri string) {
		c, _, err := ParseURI(uri)
		if err != nil {
			if !reflect.ValueOf(c).IsZero() {
				t.Fatalf("%+v beside %v", c, err)
			}
			return
		}
		if !filepath.IsAbs(c.Module) || c.TokenLabel == "" && c.Serial == "" && c.Slot == nil || c.PIN == nil {
			t.Fatalf("%q: %+v", uri, c)
		}
		if _, key, _, err := ParseKeyURI(uri); err == nil && key.Label == "" && len(key.ID) == 0 {
			t.Fatalf("%q names no key", uri)
		}
	})
}
