package pkcs11

import (
	"testing"

	"claviger/internal/softhsm/softhsmtest"
)

// TestTry: Try leaves nothing on the token.
func TestTry(t *testing.T) {
	made := softhsmtest.New(t)
	info, err := Try(t.Context(), config(made))
	if err != nil || info.Label != made.Label {
		t.Fatal(info, err)
	}
	tok, _ := openAs(t, config(made))
	keys, err := tok.List(t.Context())
	if err != nil || len(keys) > 0 {
		t.Errorf("%v, %v: the token holds keys after the try", keys, err)
	}
}
