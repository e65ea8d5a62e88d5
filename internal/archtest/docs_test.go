package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

var quoted = regexp.MustCompile("`([^`]*)`")

// TestRoomTable: each room has a row in docs/architecture/rooms.md, and each row a room.
func TestRoomTable(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(moduleRoot(t), "docs", "architecture", "rooms.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "\n| room | what is in it |\n")
	if !ok {
		t.Fatal("docs/architecture/rooms.md has no table of rooms")
	}
	table, _, _ = strings.Cut(strings.TrimSpace(table), "\n\n")
	rows := map[string]bool{}
	for _, line := range strings.Split(table, "\n")[1:] {
		for _, m := range quoted.FindAllStringSubmatch(strings.Split(line, "|")[1], -1) {
			if rows[m[1]] {
				t.Errorf("docs/architecture/rooms.md has two rows for %s", m[1])
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
			t.Errorf("docs/architecture/rooms.md has no row for %s: describe it in one line", room)
		}
		delete(rows, room)
	}
	for room := range rows {
		t.Errorf("docs/architecture/rooms.md has a row for %s, which is not a package", room)
	}
}

// maxColumns is the greatest length of a line, in pages and in code.
const maxColumns = 120

// generatedPages are written by tests. They have long rows, one for each item.
var generatedPages = []string{"docs/settings.md", "docs/cli.md", "docs/monitoring/reference.md"}

// TestPageColumns: a line of a page has at most 120 columns. A code block shows what a
// program prints, and a code span or link cannot be broken.
func TestPageColumns(t *testing.T) {
	root, pages := moduleRoot(t), 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if name := d.Name(); d.IsDir() && (rel == "bin" || rel == "try" || strings.HasPrefix(name, ".") && rel != ".") {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".md" || slices.Contains(generatedPages, rel) {
			return nil
		}
		pages++
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, n := range longLines(string(text)) {
			t.Errorf("%s:%d is longer than %d columns", rel, n, maxColumns)
		}
		return nil
	})
	if err != nil || pages < 20 {
		t.Fatalf("%d pages, %v", pages, err)
	}
}

// unbreakable are code spans and links.
var unbreakable = regexp.MustCompile("`[^`]*`|\\[[^]]*\\]\\([^)]*\\)")

// longLines returns the numbers of lines that are too long and could be broken.
func longLines(text string) (numbers []int) {
	code := false
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			code = !code
		}
		words := strings.TrimLeft(unbreakable.ReplaceAllString(line, "x"), "-*> ")
		if !code && utf8.RuneCountInString(line) > maxColumns && strings.Contains(words, " ") {
			numbers = append(numbers, i+1)
		}
	}
	return numbers
}

// TestLongLines: longLines finds long lines, and no others.
func TestLongLines(t *testing.T) {
	long := strings.Repeat("word ", 25)
	page := long + "\n| " + long + " |\n```\n" + long + "\n```\n- `" + long + "`,\nshort\n"
	if got := longLines(page); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("lines %d are too long, want 1 and 2", got)
	}
}

// TestNamesDocumented: each exported name has a comment, and each exported method of an
// exported type. A group of constants or variables may have one comment.
func TestNamesDocumented(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range p.sources() {
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil,
				parser.SkipObjectResolution|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range undocumented(f) {
				t.Errorf("%s: %s has no comment", set.Position(id.Pos()), id.Name)
			}
		}
	}
}

// wellKnown are methods of the standard library's interfaces, which document them.
var wellKnown = []string{"Error", "Unwrap", "Is", "As", "String", "Len", "Less", "Swap", "Read", "Write", "Close",
	"Format", "GoString", "MarshalJSON", "UnmarshalJSON", "MarshalText", "UnmarshalText", "LogValue", "ServeHTTP",
	"Handle", "Enabled", "WithAttrs", "WithGroup", "WriteHeader", "Header", "Flush", "Timeout", "Temporary", "Push",
	"Pop", "Describe", "Collect", "Set", "Type"}

func undocumented(f *ast.File) (found []*ast.Ident) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && d.Doc == nil &&
				(d.Recv == nil || exportedReceiver(d) && !slices.Contains(wellKnown, d.Name.Name)) {
				found = append(found, d.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				found = append(found, undocumentedSpec(d, spec)...)
			}
		}
	}
	return found
}

func exportedReceiver(d *ast.FuncDecl) bool {
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if generic, ok := typ.(*ast.IndexExpr); ok {
		typ = generic.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

func undocumentedSpec(d *ast.GenDecl, spec ast.Spec) (found []*ast.Ident) {
	switch s := spec.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
			found = append(found, s.Name)
		}
	case *ast.ValueSpec:
		for _, id := range s.Names {
			if id.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
				found = append(found, id)
			}
		}
	}
	return found
}

// TestUndocumented: undocumented finds names without a comment.
func TestUndocumented(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "x.go", `package x
func A() {}
type B struct{}
func (B) C() {}
func (B) String() string { return "" }
func (b *b) D() {}
const E = 1
const F = 1 // F is commented.
// G is commented.
func G() {}
type h struct{}
`, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, id := range undocumented(f) {
		names = append(names, id.Name)
	}
	if !slices.Equal(names, []string{"A", "B", "C", "E"}) {
		t.Errorf("found %q", names)
	}
}

// TestDecisionPages: each page of docs/adr has its number in its title, and the parts that docs/adr/README.md promises,
// in their order.
func TestDecisionPages(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(moduleRoot(t), "docs", "adr", "0*.md"))
	if err != nil || len(files) < 12 {
		t.Fatalf("%d pages, %v", len(files), err)
	}
	parts := []string{"Decision", "Why", "What it costs", "What would change it"}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(file)
		if !strings.HasPrefix(string(text), "# "+name[:4]+": ") {
			t.Errorf("%s: the title does not begin with its number and a colon", name)
		}
		var got []string
		for line := range strings.Lines(string(text)) {
			if part, ok := strings.CutPrefix(line, "## "); ok {
				got = append(got, strings.TrimSpace(part))
			}
		}
		if !slices.Equal(got, parts) {
			t.Errorf("%s has the parts %q, want %q", name, got, parts)
		}
	}
}
