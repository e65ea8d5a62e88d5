package golden

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	failed string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.failed += fmt.Sprintf(format, args...) + "\n"
}

// TestCompare: a text that is not in the file fails the test, and -update writes it.
func TestCompare(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.golden")
	r := &recorder{TB: t}
	if Compare(r, file, "text"); !strings.Contains(r.failed, "run with -update") {
		t.Errorf("without a file: %q", r.failed)
	}
	withUpdate(t, func() { Compare(t, file, "text") })
	Compare(t, file, "text")
	r = &recorder{TB: t}
	if Compare(r, file, "other"); !strings.Contains(r.failed, "other") {
		t.Errorf("another text: %q", r.failed)
	}
}

// TestSections: some sections are compared alone; all of them must be the whole file, and only then -update writes it.
func TestSections(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.golden")
	withUpdate(t, func() { Sections(t, file, map[string]string{"b": "2\n", "a": "1\n"}, true) })
	if text, err := os.ReadFile(file); err != nil || string(text) != "# a\n1\n\n# b\n2\n\n" {
		t.Errorf("%q, %v", text, err)
	}
	Sections(t, file, map[string]string{"a": "1\n", "b": "2\n"}, true)
	Sections(t, file, map[string]string{"a": "1\n"}, false)
	withUpdate(t, func() { Sections(t, file, map[string]string{"a": "1\n"}, false) })
	for _, whole := range []bool{false, true} {
		r := &recorder{TB: t}
		if Sections(r, file, map[string]string{"a": "3\n", "b": "2\n"}, whole); !strings.HasPrefix(r.failed,
			"a is not as ") {
			t.Errorf("another text: %q", r.failed)
		}
	}
	r := &recorder{TB: t}
	if Sections(r, file, map[string]string{"a": "1\n"}, true); !strings.Contains(r.failed, "differs") {
		t.Errorf("another section in the file: %q", r.failed)
	}
}

// withUpdate calls f as a test with -update does.
func withUpdate(t *testing.T, f func()) {
	t.Helper()
	before := *update
	defer func() { *update = before }()
	*update = true
	f()
}

func TestMasked(t *testing.T) {
	masks := []Mask{{`slot (\d+)`, "slot N$1"}, {`N\d`, "SLOT"}}
	if got := Masked("slot 7, slot 8", masks); got != "slot SLOT, slot SLOT" {
		t.Error(got)
	}
}
