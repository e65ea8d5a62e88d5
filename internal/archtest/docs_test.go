package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var quoted = regexp.MustCompile("`([^`]*)`")

// TestRoomTable: each room has a row in docs/ARCHITECTURE.md, and each row a room.
func TestRoomTable(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(moduleRoot(t), "docs", "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "\n| room | what is in it |\n")
	if !ok {
		t.Fatal("docs/ARCHITECTURE.md has no table of rooms")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	rows := map[string]bool{}
	for _, line := range strings.Split(table, "\n")[1:] {
		for _, m := range quoted.FindAllStringSubmatch(strings.Split(line, "|")[1], -1) {
			if rows[m[1]] {
				t.Errorf("docs/ARCHITECTURE.md has two rows for %s", m[1])
			}
			rows[m[1]] = true
		}
	}
	delete(rows, module)
	for _, p := range packages(t) {
		room := p.room()
		if room == "" {
			room = "."
		}
		if !rows[room] {
			t.Errorf("docs/ARCHITECTURE.md has no row for %s: say in one line what is in it", room)
		}
		delete(rows, room)
	}
	for room := range rows {
		t.Errorf("docs/ARCHITECTURE.md has a row for %s, which is no package", room)
	}
}
