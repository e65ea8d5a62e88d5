package hadoop

import (
	"path/filepath"
	"testing"

	"claviger/internal/softhsm"
	"claviger/pkcs11"
)

// HSM is a SoftHSM token with a keystore file that names it. Each process that uses the token needs Env.
type HSM struct {
	softhsm.Token
	URI string // of the key provider: "cloudera.hsmkp://file@PATH"
}

// NewHSM makes an empty token.
func NewHSM(t testing.TB) HSM {
	t.Helper()
	dir := t.TempDir()
	token, err := softhsm.Create(filepath.Join(dir, "token"), "claviger")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "hsm.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: token.Module, Token: token.Label,
		PINFile: token.PINFile}); err != nil {
		t.Fatal(err)
	}
	return HSM{Token: token, URI: "cloudera.hsmkp://file@" + file}
}
