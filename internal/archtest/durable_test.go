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

// rawWrites are calls that write data which a power cut may destroy, or that sync it.
var rawWrites = []string{"Rename", "Link", "Symlink", "WriteFile", "CreateTemp", "MkdirTemp", "Mkdir", "MkdirAll",
	"Create", "Truncate"}

// mayWrite lists the files that may write without package durable, with the reasons.
var mayWrite = map[string]string{
	"cmd/claviger/demo.go":   "the demo's folder ends with it",
	"kms/edeks/edeks.go":     "a fetched image has no name, and ends with the process that counts it",
	"terminal/manual.go":     "man pages can be written again",
	"pkcs11/worker/serve.go": "the name of a process is not on a disk",
	"trustee/backup/backup.go": "a restoration works in a temporary folder, which " +
		"takes its place by package durable",
	"trustee/server/sqlite/room.go": "a file that shows whether there is room is removed again",
	"trustee/server/sqlite/readonly.go": "a temporary copy of a store with an older " +
		"schema is removed when it is closed",
	"trustee/replica/peer.go": "a copy from the other trustee is read and removed by the process that wrote it",
}

// TestDurable: package durable writes all data that must survive a power cut. Its suite
// tests each sync and each error.
func TestDurable(t *testing.T) {
	for _, p := range packages(t) {
		room := p.room()
		if strings.HasPrefix(room, "durable") || strings.HasPrefix(room, "test/") ||
			strings.HasPrefix(room, "internal/") ||
			room == "demo" || room == "kms/kmstest" {
			continue
		}
		for _, name := range p.sources() {
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if mayWrite[room+"/"+name] != "" {
				continue
			}
			for _, pos := range rawWritesOf(f) {
				t.Errorf("%s: use package durable, or say in mayWrite why not", set.Position(pos))
			}
			for _, pos := range mountsOf(f) {
				t.Errorf("%s: durable.Mount is for tests", set.Position(pos))
			}
		}
	}
}

// rawWritesOf finds calls such as os.Rename, and calls of Sync in a source file that opens
// files without package durable.
func rawWritesOf(f *ast.File) []token.Pos {
	opens := calls(f, func(recv, name string, _ int) bool {
		return recv == "os" && slices.Contains([]string{"Open", "OpenFile", "Create", "CreateTemp"}, name)
	})
	return calls(f, func(recv, name string, args int) bool {
		return recv == "os" && slices.Contains(rawWrites, name) || name == "Sync" && args == 0 && len(opens) > 0
	})
}

func mountsOf(f *ast.File) []token.Pos {
	return calls(f, func(recv, name string, _ int) bool { return recv == "durable" && name == "Mount" })
}

// calls finds calls of a method or of a package's function. recv is the last name
// before the dot.
func calls(f *ast.File, wanted func(recv, name string, args int) bool) (found []token.Pos) {
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		recv := ""
		switch x := sel.X.(type) {
		case *ast.Ident:
			recv = x.Name
		case *ast.SelectorExpr:
			recv = x.Sel.Name
		}
		if wanted(recv, sel.Sel.Name, len(call.Args)) {
			found = append(found, call.Pos())
		}
		return true
	})
	return found
}

// TestRawWriteCheck: the checker finds raw writes.
func TestRawWriteCheck(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "x.go", `package x
func f(tmp *os.File) {
	os.Open("x")
	os.Rename("a", "b")
	os.WriteFile("a", nil, 0)
	tmp.Sync()
	durable.Rename("a", "b")
	os.Remove("a")
}`, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(rawWritesOf(f)); n != 3 {
		t.Errorf("%d found, want 3", n)
	}
}
