package archtest

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var vagueNames = []string{"util", "utils", "common", "helper", "helpers", "misc", "shared", "pkg", "lib", "base"}

// TestPackages: each package has a comment and a name that says something.
func TestPackages(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" && len(p.sources()) > 0 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
		for _, part := range strings.Split(p.room(), "/") {
			if slices.Contains(vagueNames, part) {
				t.Errorf("%s: a package is named by a noun that a user or operator would look for, not %q",
					p.ImportPath, part)
			}
		}
	}
}

// maxLines is the greatest length of a file. The package comment must name a longer file,
// with the reason.
const maxLines = 600

// isFace reports whether a room is a face: a package that answers HTTP requests, and so may write statuses.
func isFace(room string) bool {
	return slices.Contains([]string{"kmsapi", "console", "console/pages", "trustee/server", "keyhsm", "web",
		"internal/otlptest"}, room)
}

// TestFiles: no file is too long, has an init function, or writes an HTTP status outside of the faces.
func TestFiles(t *testing.T) {
	for _, p := range packages(t) {
		comment := packageComment(t, p)
		for _, name := range p.allFiles() {
			file := filepath.Join(p.Dir, name)
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(src, []byte("\n")); n > maxLines && !strings.Contains(comment, name) {
				t.Errorf("%s/%s has %d lines, over %d: split it, or name it in the package comment with the reason",
					p.room(), name, n, maxLines)
			}
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, file, src, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, pos := range initFunctions(f) {
				t.Errorf("%s: an init function: build the value where it is used", set.Position(pos))
			}
			inTest := strings.HasSuffix(name, "_test.go")
			if !inTest && !isFace(p.room()) && !strings.HasPrefix(p.room(), "test/") {
				for _, pos := range statusWrites(f) {
					t.Errorf("%s: writes an HTTP status: only the packages in isFace do", set.Position(pos))
				}
			}
		}
	}
}

// packageComment returns the whole package comment; `go list` returns only its first sentence.
func packageComment(t *testing.T, p *pkg) string {
	t.Helper()
	var all strings.Builder
	for _, name := range p.sources() {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil,
			parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if f.Doc != nil {
			all.WriteString(f.Doc.Text())
		}
	}
	return all.String()
}

func initFunctions(f *ast.File) (found []token.Pos) {
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			found = append(found, fn.Pos())
		}
	}
	return found
}

// statusWrites finds the calls of http.Error, http.Redirect, http.NotFound and of any method named WriteHeader. It
// reads only files that import net/http, since archives have a WriteHeader too. The declaration of such a method, as in
// a wrapper of a ResponseWriter, is not a call.
func statusWrites(f *ast.File) (found []token.Pos) {
	if !slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"net/http"` }) {
		return nil
	}
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if sel.Sel.Name == "WriteHeader" {
			found = append(found, call.Pos())
		}
		if x, ok := sel.X.(*ast.Ident); ok && x.Name == "http" &&
			slices.Contains([]string{"Error", "Redirect", "NotFound"}, sel.Sel.Name) {
			found = append(found, call.Pos())
		}
		return true
	})
	return found
}

// TestFileChecks: the checkers find init functions and written statuses.
func TestFileChecks(t *testing.T) {
	const bad = `package x
import "net/http"
func init() {}
type r struct{}
func (r) init() {}
func (r) WriteHeader(int) {}
func h(w http.ResponseWriter) { http.Error(w, "no", 500); w.WriteHeader(403) }
`
	f, err := parser.ParseFile(token.NewFileSet(), "x.go", bad, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(initFunctions(f)); n != 1 {
		t.Errorf("found %d init functions, want 1", n)
	}
	if n := len(statusWrites(f)); n != 2 {
		t.Errorf("found %d writes of a status, want 2", n)
	}
}

// TestFuzzSeeds: every fuzz target has seeds, so that a normal test run tests the parser
// with some input.
func TestFuzzSeeds(t *testing.T) {
	targets := 0
	for _, p := range packages(t) {
		for _, name := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Fuzz") {
					continue
				}
				targets++
				seeds, err := filepath.Glob(filepath.Join(p.Dir, "testdata", "fuzz", fn.Name.Name, "*"))
				if err != nil {
					t.Fatal(err)
				}
				if len(seeds) == 0 {
					t.Errorf("%s in %s: testdata/fuzz/%s has no seed", fn.Name.Name, p.ImportPath, fn.Name.Name)
				}
			}
		}
	}
	if targets == 0 {
		t.Error("no fuzz target found: the parsers of peers' input should have some")
	}
}

// TestDirectDependencies: go.mod, the imports of the code, and the table of
// docs/architecture/dependencies.md have the same direct dependencies, and each has a reason.
func TestDirectDependencies(t *testing.T) {
	root := moduleRoot(t)
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	required := requirements(t, string(mod))

	imported := map[string]bool{}
	for _, p := range packages(t) {
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if m := moduleOf(i, required); m != "" {
				imported[m] = true
			} else if first, _, _ := strings.Cut(i, "/"); strings.Contains(first, ".") {
				t.Errorf("%s imports %s, which no module in go.mod holds", p.ImportPath, i)
			}
		}
	}

	page := filepath.Join(root, "docs", "architecture", "dependencies.md")
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatalf("%v: it holds the table of direct dependencies", err)
	}
	documented := dependencyTable(string(text))
	if len(documented) == 0 {
		t.Fatal("docs/architecture/dependencies.md has no table")
	}

	for m, reason := range documented {
		if strings.TrimSpace(reason) == "" {
			t.Errorf("docs/architecture/dependencies.md gives no reason for %s", m)
		}
		if !imported[m] {
			t.Errorf("docs/architecture/dependencies.md lists %s, which no package imports", m)
		}
	}
	for m := range imported {
		if _, ok := documented[m]; !ok {
			t.Errorf("%s is imported, and docs/architecture/dependencies.md gives no reason for it", m)
		}
		if required[m] {
			t.Errorf("go.mod marks %s as indirect, yet it is imported: go mod tidy", m)
		}
	}
	for m, indirect := range required {
		if !indirect && !imported[m] {
			t.Errorf("go.mod requires %s directly, and nothing imports it: go mod tidy", m)
		}
	}
}

var requireLine = regexp.MustCompile(
	`^\s*(?:require\s+)?([a-zA-Z0-9./_~-]+\.[a-zA-Z0-9./_~-]+) v\S+( // indirect)?\s*$`)

// requirements returns the modules of go.mod; the value is true for an indirect one.
func requirements(t *testing.T, mod string) map[string]bool {
	t.Helper()
	required := map[string]bool{}
	for s := bufio.NewScanner(strings.NewReader(mod)); s.Scan(); {
		if m := requireLine.FindStringSubmatch(s.Text()); m != nil {
			required[m[1]] = m[2] != ""
		}
	}
	if len(required) == 0 {
		t.Fatal("found no requirement in go.mod")
	}
	return required
}

// moduleOf returns the module of an import path: the longest that contains it.
func moduleOf(importPath string, modules map[string]bool) string {
	best := ""
	for m := range modules {
		if (importPath == m || strings.HasPrefix(importPath, m+"/")) && len(m) > len(best) {
			best = m
		}
	}
	return best
}

// dependencyTable reads the rows "| module | reason |" of a page.
func dependencyTable(markdown string) map[string]string {
	rows := map[string]string{}
	for _, line := range strings.Split(markdown, "\n") {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) < 2 || !strings.HasPrefix(line, "|") {
			continue
		}
		name := strings.Trim(strings.TrimSpace(cells[0]), "`")
		if strings.Contains(name, ".") && !strings.ContainsAny(name, " -") || strings.Contains(name, "/") {
			rows[name] = strings.TrimSpace(cells[1])
		}
	}
	return rows
}

// TestDependencyTable: the reader of the table finds its rows, and takes neither its head nor text for a row.
func TestDependencyTable(t *testing.T) {
	got := dependencyTable("# A\n\nText of g.h/i | j.\n\n| module | why |\n|---|---|\n| `a.b/c` | x |\n" +
		"| d.e/f-g/v2 | |\n")
	want := map[string]string{"a.b/c": "x", "d.e/f-g/v2": ""}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// machinePaths match the beginnings of paths that exist on only one machine.
var machinePaths = regexp.MustCompile(
	strings.Join([]string{`/wo` + `rk/`, `/tmp/l` + `ab`, `/ro` + `ot/\.`, `\.\./sh` + `ared`}, "|"))

// TestNoPathsOfOneMachine reads every file under version control.
func TestNoPathsOfOneMachine(t *testing.T) {
	root := moduleRoot(t)
	seen := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == ".git" || name == ".cache" || path == filepath.Join(root, "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if d.Name() == ".git" { // a linked worktree has a file there, which is not under version control
			return nil
		}
		if info, err := d.Info(); err != nil || !info.Mode().IsRegular() || info.Size() > 1<<20 {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		seen++
		for i, line := range strings.Split(string(b), "\n") {
			if m := machinePaths.FindString(line); m != "" {
				rel, _ := filepath.Rel(root, path)
				t.Errorf("%s:%s names %s, a path of one machine", rel, strconv.Itoa(i+1), m)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 10 {
		t.Fatalf("read %d files only", seen)
	}
}
