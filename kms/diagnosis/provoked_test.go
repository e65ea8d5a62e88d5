package diagnosis

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"claviger/doctor"
)

// notProvoked are the checks that no file of testdata has a warning or failure of, each with the reason.
var notProvoked = map[string]string{
	"D-hsm-sessions":   "SoftHSM reports no limit; TestRoomAndSessions judges made reports (room.golden)",
	"D-hsm-room":       "SoftHSM does not report its room; TestRoomAndSessions judges made reports (room.golden)",
	"D-seed-isolation": "it is skipped when D-hsm-attributes fails, whose failures are in hsm.golden",
	"D-seed-keyhsm":    "a Key Trustee Server does not tell its clients; D-trustee-keyhsm fails on the trustee's host",
}

// TestEachCheckIsProvoked: a file of testdata has a warning or a failure of each check, so a test provokes the check.
func TestEachCheckIsProvoked(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.golden"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	found := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^  (?:warning|failure) +(D-\S+) `).FindAllSubmatch(text, -1) {
			found[string(m[1])] = true
		}
	}
	groups, _, err := groups(&doctor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		for _, c := range g.Checks {
			if _, excepted := notProvoked[c.ID]; found[c.ID] == excepted {
				t.Errorf("%s: provoked: %v, in notProvoked: %v", c.ID, found[c.ID], excepted)
			}
		}
	}
}
