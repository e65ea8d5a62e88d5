// Package golden compares what a test shows with a file of testdata. The flag -update makes the test write the file.
package golden

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the files that the tests compare")

// Compare fails the test if a file has another text. With -update, it writes the text into the file first.
func Compare(t testing.TB, file, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil { //nolint:gosec // no secret
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || string(want) != text {
		t.Errorf("%s differs, %v; run with -update and read the diff:\n%s", file, err, text)
	}
}

// Sections compares texts with a file that has a section for each text, in the order of their names. whole says that
// no test of the file was left out; only then -update writes the file, and the file must have no other section.
func Sections(t testing.TB, file string, texts map[string]string, whole bool) {
	t.Helper()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		b.WriteString(section(name, texts[name]))
	}
	if whole && *update {
		Compare(t, file, b.String())
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range texts {
		if !strings.Contains(string(want), section(name, text)) {
			t.Errorf("%s is not as %s says:\n%s", name, file, text)
		}
	}
	if whole && b.String() != string(want) {
		t.Errorf("%s differs; run with -update and read the diff", file)
	}
}

func section(name, text string) string { return fmt.Sprintf("# %s\n%s\n", name, text) }

// Mask is a regular expression of parts of a text that differ in each run, and their replacement.
type Mask [2]string

// Masked applies masks to a text, one after the other.
func Masked(text string, masks []Mask) string {
	for _, m := range masks {
		text = regexp.MustCompile(m[0]).ReplaceAllString(text, m[1])
	}
	return text
}
