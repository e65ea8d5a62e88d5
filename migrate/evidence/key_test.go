package evidence

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestLowOrderKeys: for a public key of low order, a signature that nobody has made verifies some texts. No such key
// is read, with either sign.
func TestLowOrderKeys(t *testing.T) {
	constant := make([]byte, ed25519.SignatureSize)
	constant[0] = 1 // the neutral point, and the number 0
	for _, point := range lowOrderPoints {
		for _, sign := range []byte{0, 0x80} {
			key, err := hex.DecodeString(point)
			if err != nil || len(key) != ed25519.PublicKeySize {
				t.Fatal(point, err)
			}
			key[len(key)-1] |= sign
			forged := false
			for n := 0; n < 200 && !forged; n++ {
				forged = ed25519.Verify(key, []byte(strconv.Itoa(n)), constant)
			}
			if !forged {
				t.Errorf("%x verifies no text of 200 by the constant signature", key)
			}
			der, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(key))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "key.pub")
			if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: der}),
				0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadPublicKey(path); err == nil ||
				!strings.Contains(err.Error(), "belongs to no private key") {
				t.Errorf("%x: %v", key, err)
			}
		}
	}
}

// TestMakeKeyFails: if the private key cannot be written, no public key remains, and the file at its place stays.
func TestMakeKeyFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.key")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := MakeKey(path); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "mine" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := os.Stat(path + ".pub"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the public key is there: %v", err)
	}
}

// TestPipes: no command waits for the writer of a named pipe whose name it is given.
func TestPipes(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	_, private := ReadKey(pipe)
	_, public := ReadPublicKey(pipe)
	_, report := Verify(pipe, make(ed25519.PublicKey, ed25519.PublicKeySize))
	for _, err := range []error{private, public, report} {
		if err == nil || !strings.Contains(err.Error(), "is not a regular file") {
			t.Error(err)
		}
	}
}
