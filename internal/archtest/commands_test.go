package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// maxCommandLines is how many lines the commands have together, without tests: flags, one call, printing. What needs
// more belongs in a room.
const maxCommandLines = 4500

// TestCommandsAreShort: cmd/claviger has at most maxCommandLines lines without tests.
func TestCommandsAreShort(t *testing.T) {
	lines := 0
	for _, src := range commandSources(t) {
		lines += strings.Count(src, "\n")
	}
	if lines == 0 || lines > maxCommandLines {
		t.Errorf("cmd/claviger has %d lines without tests, over %d: move what is not a command into a room", lines,
			maxCommandLines)
	}
}

// commandSources returns the sources of cmd/claviger by file name, without its tests.
func commandSources(t *testing.T) map[string]string {
	t.Helper()
	sources := map[string]string{}
	for _, p := range packages(t) {
		if p.room() != "cmd/claviger" {
			continue
		}
		for _, name := range p.sources() {
			src, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			sources[name] = string(src)
		}
	}
	return sources
}

// otherCommandTypes are the types of cmd/claviger that are neither flags nor output, each with the reason.
var otherCommandTypes = map[string]string{
	"exitError":     "an error with an exit code",
	"shown":         "an error whose text is in the output",
	"metastoreWork": "the signature of the work of a subcommand of metastore",
	"migration":     "what the subcommands of migrate share: flags, service and engine",
}

// TestCommandTypes: cmd/claviger declares commands, their flags and their output. Any other type belongs in a room,
// where a server can use it too.
func TestCommandTypes(t *testing.T) {
	faults, types := commandTypeFaults(t, commandSources(t))
	for _, fault := range faults {
		t.Errorf("cmd/claviger: %s", fault)
	}
	for name := range otherCommandTypes {
		if !types[name] {
			t.Errorf("otherCommandTypes lists %s, which is not a type of cmd/claviger", name)
		}
	}
	if len(types) < 20 {
		t.Errorf("only %d types", len(types))
	}
}

// commandTypeFaults returns what is wrong with the types of commands, and the names of all types. A type is allowed if
// it is one of:
//   - flags: a struct named ...Flags. Its methods are define(cmd), and methods without parameters that return the
//     configuration of a room.
//   - output: a struct whose fields all have a JSON name or are embedded. Its only method is text(w), for people.
//   - a type in otherCommandTypes.
func commandTypeFaults(t *testing.T, sources map[string]string) (faults []string, types map[string]bool) {
	t.Helper()
	types = map[string]bool{}
	methods := map[string][]*ast.FuncDecl{}
	specs := map[string]*ast.TypeSpec{}
	for name, src := range sources {
		f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv != nil {
				methods[receiver(fn)] = append(methods[receiver(fn)], fn)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				specs[spec.Name.Name] = spec
			}
			return true
		})
	}
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		types[name] = true
		if _, listed := otherCommandTypes[name]; listed {
			continue
		}
		if fault := commandTypeFault(specs[name], methods[name]); fault != "" {
			faults = append(faults, "type "+name+" "+fault)
		}
	}
	return faults, types
}

// receiver returns the name of the type that a method belongs to.
func receiver(fn *ast.FuncDecl) string {
	of := fn.Recv.List[0].Type
	if star, ok := of.(*ast.StarExpr); ok {
		of = star.X
	}
	if id, ok := of.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// commandTypeFault returns what is wrong with a type of cmd/claviger; "" if nothing is.
func commandTypeFault(spec *ast.TypeSpec, methods []*ast.FuncDecl) string {
	fields, ok := spec.Type.(*ast.StructType)
	if !ok {
		return "is not a struct: it is neither flags nor output, so it belongs in a room"
	}
	isFlags := strings.HasSuffix(spec.Name.Name, "Flags")
	for _, f := range fields.Fields.List {
		named := f.Tag != nil && strings.Contains(f.Tag.Value, `json:"`)
		if !isFlags && len(f.Names) > 0 && !named {
			return "has the field " + f.Names[0].Name + " without a JSON name: it is neither flags nor output, so it " +
				"belongs in a room"
		}
	}
	for _, m := range methods {
		switch {
		case isFlags && (m.Name.Name == "define" || m.Type.Params.NumFields() == 0):
		case !isFlags && m.Name.Name == "text":
		default:
			return "has the method " + m.Name.Name + ": flags have define and methods without parameters, output has " +
				"text; other work belongs in a room"
		}
	}
	return ""
}

// TestCommandTypeChecks: each kind of fault is found.
func TestCommandTypeChecks(t *testing.T) {
	for src, want := range map[string]string{
		"type aFlags struct{}; func (f *aFlags) define(c int) {}; func (f aFlags) open() {}":   "",
		"type report struct { N int `json:\"n\"`; embedded }; func (r *report) text(w int) {}": "",
		"func (e *exitError) Anything(x int) {}; type exitError struct{ code int }":            "",
		"type Engine struct{ keys []string }":                                                  "field keys",
		"func f() { type inner struct{ keys []string } }":                                      "field keys",
		"type Store interface{ Close() }":                                                      "not a struct",
		"type level int":                                                                       "not a struct",
		"type aFlags struct{}; func (f *aFlags) purge(name string) {}":                         "method purge",
		"type report struct{}; func (r *report) Repair() {}":                                   "method Repair",
	} {
		faults, _ := commandTypeFaults(t, map[string]string{"a.go": "package main\n" + src})
		got := strings.Join(faults, "; ")
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", src, got, want)
		}
	}
}
