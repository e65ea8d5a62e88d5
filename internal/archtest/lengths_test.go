package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// How long a function and a test may be, in lines, with their signature.
const (
	maxFunction = 60
	maxTest     = 80
)

// tabColumns is the width of a tab where lines are measured.
const tabColumns = 4

// TestLengths: a function fits a screen, and a line has at most 120 columns.
func TestLengths(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range p.allFiles() {
			src, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			for _, fault := range lengthFaults(t, filepath.Join(p.room(), name), string(src)) {
				t.Error(fault)
			}
		}
	}
}

// TestLengthFaults: the check reports lines and functions that are too long, and no others.
func TestLengthFaults(t *testing.T) {
	lines := func(n int) string { return strings.Repeat("\tf()\n", n) }
	for _, c := range []struct {
		file, body string
		want       int
	}{
		{"a.go", "func f() {\n" + lines(58) + "}\n", 0},
		{"a.go", "func f() {\n" + lines(59) + "}\n", 1},
		{"a_test.go", "func TestF(t *testing.T) {\n" + lines(78) + "}\n", 0},
		{"a_test.go", "func TestF(t *testing.T) {\n" + lines(79) + "}\n", 1},
		{"a.go", "// " + strings.Repeat("x", 117) + "\n", 0},
		{"a.go", "// " + strings.Repeat("x", 118) + "\n", 1},
		{"a.go", "func f() {\n\t// " + strings.Repeat("ä", 113) + "\n}\n", 0},
		{"a.go", "func f() {\n\t// " + strings.Repeat("ä", 114) + "\n}\n", 1},
	} {
		if got := lengthFaults(t, c.file, "package a\n"+c.body); len(got) != c.want {
			t.Errorf("%s: %q", c.file, got)
		}
	}
}

// lengthFaults names the functions and lines of a file that are too long.
func lengthFaults(t *testing.T, file, src string) (faults []string) {
	t.Helper()
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, file, src, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	limit := maxFunction
	if strings.HasSuffix(file, "_test.go") {
		limit = maxTest
	}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		at := set.Position(fn.Pos())
		if n := set.Position(fn.End()).Line - at.Line + 1; n > limit {
			faults = append(faults, fmt.Sprintf("%s: %s has %d lines, over %d: split it", at, fn.Name.Name, n, limit))
		}
	}
	for i, line := range strings.Split(src, "\n") {
		n := utf8.RuneCountInString(line) + (tabColumns-1)*strings.Count(line, "\t")
		if n > maxColumns {
			at := token.Position{Filename: file, Line: i + 1}
			faults = append(faults, fmt.Sprintf("%s: the line has %d columns, over %d: fold it", at, n, maxColumns))
		}
	}
	return faults
}
