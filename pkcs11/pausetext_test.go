package pkcs11

import (
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
)

// TestPauseNamesTheCause: the answer during the pause of a key has the error of its last failure.
func TestPauseNamesTheCause(t *testing.T) {
	tok := new(Token)
	s := keySubject("k@0")
	for range 2 {
		tok.failed(s, time.Now(), p11.Error(p11.CKR_DEVICE_ERROR))
	}
	if err := tok.paused(s); err == nil || !strings.Contains(err.Error(), "CKR_DEVICE_ERROR") {
		t.Errorf("%v", err)
	}
}
