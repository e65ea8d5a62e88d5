package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSleeps: a test waits for a condition. time.Sleep may be in a loop, as the pause between two checks
// of a condition, or in a bubble of testing/synctest, where it takes no time. Elsewhere a comment on its
// line must say why the test cannot wait for a condition.
func TestSleeps(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range append(p.TestGoFiles, p.XTestGoFiles...) {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			explained := map[int]bool{}
			for _, c := range f.Comments {
				explained[fset.Position(c.Pos()).Line] = true
			}
			for _, line := range bareSleeps(fset, f) {
				if !explained[line] {
					t.Errorf("%s/%s:%d: a bare sleep: wait for a condition, use testing/synctest, or give the reason "+
						"in a comment on the line", p.room(), name, line)
				}
			}
		}
	}
}

// bareSleeps lists the lines with a time.Sleep outside of loops and bubbles. In a file that uses
// testing/synctest every sleep counts as inside a bubble.
func bareSleeps(fset *token.FileSet, f *ast.File) (lines []int) {
	for _, i := range f.Imports {
		if strings.Trim(i.Path.Value, `"`) == "testing/synctest" {
			return nil
		}
	}
	var walk func(n ast.Node, inLoop bool)
	walk = func(n ast.Node, inLoop bool) {
		ast.Inspect(n, func(x ast.Node) bool {
			switch x := x.(type) {
			case *ast.ForStmt:
				if x != n {
					walk(x, true)
				}
				return x == n
			case *ast.RangeStmt: // for range 100 {: a loop with a number of tries
				if x != n {
					walk(x, x.Key == nil)
				}
				return x == n
			case *ast.FuncLit:
				if x != n {
					walk(x, false)
				}
				return x == n
			case *ast.SelectorExpr:
				if id, ok := x.X.(*ast.Ident); ok && id.Name == "time" && x.Sel.Name == "Sleep" && !inLoop {
					lines = append(lines, fset.Position(x.Pos()).Line)
				}
			}
			return true
		})
	}
	walk(f, false)
	return lines
}

// TestSleepsAreFound tests the rule with sleeps of each kind.
func TestSleepsAreFound(t *testing.T) {
	const source = `package p

func f() {
	time.Sleep(1)
	for !done() {
		time.Sleep(1)
		go func() { time.Sleep(1) }()
	}
	for range 100 {
		time.Sleep(1)
	}
	for _, c := range cases {
		time.Sleep(1)
	}
	for ; ; time.Sleep(1) {
	}
}
`
	for imports, want := range map[string][]int{"": {4, 7, 13}, `import "testing/synctest"`: nil} {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, "x.go", strings.Replace(source, "package p\n", "package p; "+imports+"\n", 1),
			0)
		if err != nil {
			t.Fatal(err)
		}
		if got := bareSleeps(fset, f); !slices.Equal(got, want) {
			t.Errorf("%q: lines %d, want %d", imports, got, want)
		}
	}
}
