package server_test

import (
	"strings"
	"testing"

	"claviger"
	"claviger/trustee/server"
)

// TestNewOrg: each organization has an id and a secret of its own, and a name without blanks.
func TestNewOrg(t *testing.T) {
	a, err := server.NewOrg("SITE", []string{"keys@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := server.NewOrg("SITE", nil)
	if err != nil || a.UUID == b.UUID || a.Auth == b.Auth || len(a.Auth) != 32 || a.Name != "SITE" ||
		len(a.Contacts) != 1 ||
		a.Created.IsZero() {
		t.Errorf("%v, %v, %v", a, b, err)
	}
	for _, name := range []string{"", "TWO WORDS", "A\n", "A\x7f", strings.Repeat("A", 256)} {
		if _, err := server.NewOrg(name, nil); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
