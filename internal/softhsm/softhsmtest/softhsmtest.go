// Package softhsmtest gives tests a SoftHSM token in their own process.
package softhsmtest

import (
	"os"
	"path/filepath"
	"testing"

	"claviger/internal/softhsm"
)

// New makes a token that this process can open. If SoftHSM is not installed the test fails with a line that says what
// to install, because these tests mean nothing without an HSM.
//
// SoftHSM reads its configuration when the library is initialised. So a token that was opened earlier must be closed
// before New is called.
func New(t testing.TB) softhsm.Token {
	t.Helper()
	return NewIn(t, filepath.Join(t.TempDir(), "softhsm"), "claviger-test")
}

// NewIn makes a token with that label in a folder that may already hold other tokens.
func NewIn(t testing.TB, dir, label string) softhsm.Token {
	t.Helper()
	token, err := softhsm.Create(dir, label)
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range token.Env {
		for i := range kv {
			if kv[i] == '=' {
				old, had := os.LookupEnv(kv[:i])
				if err := os.Setenv(kv[:i], kv[i+1:]); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if had {
						_ = os.Setenv(kv[:i], old)
					} else {
						_ = os.Unsetenv(kv[:i])
					}
				})
				break
			}
		}
	}
	return token
}

// LetEnter lets every user of the host enter folders of a test, and those above them up to the system's folder for
// temporary files, which is sticky.
func LetEnter(t testing.TB, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		for ; dir != "/"; dir = filepath.Dir(dir) {
			info, err := os.Stat(dir)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode()&os.ModeSticky != 0 {
				break
			}
			if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the purpose of this function
				t.Fatal(err)
			}
		}
	}
}
