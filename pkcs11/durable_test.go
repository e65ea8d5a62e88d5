package pkcs11

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"claviger/durable/durabletest"
)

// TestKeystoreFileSurvivesFaults makes each step of writing the keystore file fail, and interrupts each step.
// Afterwards there is no file, or a complete one.
func TestKeystoreFileSurvivesFaults(t *testing.T) {
	durabletest.Run(t, durabletest.Case{
		Do: func(dir string) error {
			return WriteKeystoreFile(filepath.Join(dir, "luna.keystore"),
				FileConfig{Module: "/x.so", Token: "t", PINFile: "/pin"})
		},
		State: func(dir string) (string, error) {
			path := filepath.Join(dir, "luna.keystore")
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				return "none", nil
			}
			c, _, err := ReadKeystoreFile(path)
			return c.TokenLabel, err
		},
	})
}
