package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// TestOperations: the operation of an error names its package. If two packages have the same
// name, such as the stores in SQLite, the operation has the path, to be clear in a log.
func TestOperations(t *testing.T) {
	named := map[string]int{}
	for _, p := range packages(t) {
		if room := p.room(); !strings.HasPrefix(room, "test/") {
			named[path.Base(room)]++
		}
	}
	seen := 0
	for _, p := range packages(t) {
		name := path.Base(p.room())
		if named[name] < 2 || p.room() == name {
			continue
		}
		for _, file := range p.sources() {
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, filepath.Join(p.Dir, file), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			seen++
			for _, pos := range shortOperations(f, name) {
				t.Errorf("%s: write the operation as %q, since other packages are named %s too",
					set.Position(pos), p.room()+".Operation", name)
			}
		}
	}
	if seen == 0 {
		t.Error("no two packages have the same name: this test is not needed")
	}
}

// shortOperations finds strings such as "sqlite.Open".
func shortOperations(f *ast.File, name string) (found []token.Pos) {
	ast.Inspect(f, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return true
		}
		text := strings.Trim(lit.Value, "\"`")
		if op, ok := strings.CutPrefix(text, name+"."); ok && token.IsIdentifier(op) {
			found = append(found, lit.Pos())
		}
		return true
	})
	return found
}

// TestOperationCheck: the checker finds operations with a wrong name.
func TestOperationCheck(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "x.go",
		`package sqlite
const op, file, long = "sqlite.Open", "sqlite.d/x", "trustee/server/sqlite.Open"`, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(shortOperations(f, "sqlite")); n != 1 {
		t.Errorf("found %d short operations, want 1", n)
	}
}
