package trustee_test

import (
	"strings"
	"testing"

	"claviger/trustee"
)

// TestParseFingerprint: a fingerprint is read in any case, with blanks, and after the size of the key.
func TestParseFingerprint(t *testing.T) {
	digits := strings.Repeat("0123456789ABCDEF", 3)[:40]
	for _, s := range []string{digits, strings.ToLower(digits), "4096R/" + digits, digits[:4] + " " + digits[4:]} {
		if got, ok := trustee.ParseFingerprint(s); !ok || got != digits {
			t.Errorf("%q is %s, %t", s, got, ok)
		}
	}
	for _, s := range []string{"", "bob", digits[1:], digits + "0", "g" + digits[1:], "4096R/"} {
		if got, ok := trustee.ParseFingerprint(s); ok {
			t.Errorf("%q is accepted as %s", s, got)
		}
	}
}
