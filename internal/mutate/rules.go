package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Mutant is one change of one file.
type Mutant struct {
	// ID names the mutant without a line number: package, function, rule and the
	// text of the line, and a count where a function has the same line again.
	ID   string
	File string // relative to the module
	Line int
	// The bytes from Start to End of the file become Text. Source is the file as it
	// was read: it may be edited while a run is under way.
	Start, End   int
	Text, Source string
}

// apply returns the changed file.
func (m Mutant) apply() []byte {
	return []byte(m.Source[:m.Start] + m.Text + m.Source[m.End:])
}

// mutants lists the changes by rule of a package's files, in the order of the
// files and lines. Test files and generated files are left out.
func mutants(root, room string) ([]Mutant, error) {
	names, err := filepath.Glob(filepath.Join(root, room, "*.go"))
	if err != nil {
		return nil, err
	}
	var all []Mutant
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		of, err := mutantsOf(room, filepath.Join(room, filepath.Base(name)), src)
		if err != nil {
			return nil, err
		}
		all = append(all, of...)
	}
	seen := map[string]int{}
	for i := range all {
		id := all[i].ID
		if seen[id]++; seen[id] > 1 {
			all[i].ID = fmt.Sprintf("%s #%d", id, seen[id])
		}
	}
	return all, nil
}

// mutantsOf lists the changes of one file.
func mutantsOf(room, name string, src []byte) ([]Mutant, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	if ast.IsGenerated(f) {
		return nil, nil
	}
	w := &walker{room: room, name: name, src: src, source: string(src), fset: fset}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
			w.function(fn)
		}
	}
	return w.found, nil
}

type walker struct {
	room, name string
	src        []byte
	source     string // the same
	fset       *token.FileSet
	fn         string // the function whose body is walked
	found      []Mutant
}

func (w *walker) function(fn *ast.FuncDecl) {
	w.fn = fn.Name.Name
	if fn.Recv != nil && len(fn.Recv.List) == 1 {
		w.fn = receiver(fn.Recv.List[0].Type) + "." + w.fn
	}
	w.body(fn.Body, fn.Type)
}

// receiver is the name of a receiver's type.
func receiver(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.StarExpr:
		return receiver(x.X)
	case *ast.IndexExpr:
		return receiver(x.X)
	case *ast.Ident:
		return x.Name
	}
	return "?"
}

// body walks the body of a function of the given type, and those in it.
func (w *walker) body(b *ast.BlockStmt, typ *ast.FuncType) {
	ast.Inspect(b, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			w.body(n.Body, n.Type)
			return false
		case *ast.IfStmt:
			w.condition(n)
		case *ast.ForStmt:
			if n.Cond != nil {
				w.add("negate", n.Cond, "!("+w.text(n.Cond)+")")
			}
		case *ast.BinaryExpr:
			w.operator(n)
		case *ast.ExprStmt:
			w.call(n, n.X)
		case *ast.DeferStmt:
			w.call(n, n.Call)
		case *ast.AssignStmt:
			w.ignored(n)
		case *ast.CallExpr:
			w.value(n)
		case *ast.ReturnStmt:
			w.results(n, typ)
		}
		return true
	})
}

// condition drops a check for an error that only returns, and negates any other
// condition.
func (w *walker) condition(n *ast.IfStmt) {
	if n.Else == nil && len(n.Body.List) > 0 && strings.Contains(w.text(n.Cond), "err != nil") {
		if _, ok := n.Body.List[len(n.Body.List)-1].(*ast.ReturnStmt); ok {
			w.add("drop-check", n.Cond, "false && ("+w.text(n.Cond)+")")
			return
		}
	}
	w.add("negate", n.Cond, "!("+w.text(n.Cond)+")")
}

var operators = map[token.Token]struct {
	rule string
	to   token.Token
}{
	token.LSS:  {"boundary", token.LEQ},
	token.LEQ:  {"boundary", token.LSS},
	token.GTR:  {"boundary", token.GEQ},
	token.GEQ:  {"boundary", token.GTR},
	token.LAND: {"and-or", token.LOR},
	token.LOR:  {"and-or", token.LAND},
}

func (w *walker) operator(n *ast.BinaryExpr) {
	if o, ok := operators[n.Op]; ok {
		start := w.fset.Position(n.OpPos).Offset
		w.addAt(o.rule, n.OpPos, start, start+len(n.Op.String()), o.to.String())
	}
}

// always are calls whose loss says nothing of the tests. Without one of Lock and
// Unlock a program stops at once; of both, the race detector knows. go vet
// (lostcancel) watches cancel. What is logged for a person is not a promise.
var always = []string{"Lock", "Unlock", "RLock", "RUnlock", "cancel", "Debug", "Info", "Warn", "Error", "Helper",
	"DebugContext", "InfoContext", "WarnContext", "ErrorContext", "panic"}

// call leaves out a statement that is a call. It stays in the file behind a
// condition, so that no variable and no import is unused.
func (w *walker) call(stmt ast.Node, x ast.Expr) {
	if c, ok := x.(*ast.CallExpr); ok && !slices.Contains(always, called(c)) {
		w.add("drop-call", stmt, "if false { "+w.text(stmt)+" }")
	}
}

// ignored leaves out a call whose results go nowhere: _ = f.Close().
func (w *walker) ignored(n *ast.AssignStmt) {
	for _, l := range n.Lhs {
		if id, ok := l.(*ast.Ident); !ok || id.Name != "_" {
			return
		}
	}
	if len(n.Rhs) == 1 {
		w.call(n, n.Rhs[0])
	}
}

// value replaces a call that makes something durable, or closes it, by success.
func (w *walker) value(n *ast.CallExpr) {
	if s, ok := n.Fun.(*ast.SelectorExpr); ok && len(n.Args) == 0 &&
		slices.Contains([]string{"Sync", "Close", "Flush"}, s.Sel.Name) {
		w.add("drop-sync", n, "error(nil)")
	}
}

// results returns no error where there is one, and the other of two truths.
func (w *walker) results(n *ast.ReturnStmt, typ *ast.FuncType) {
	if typ.Results == nil || len(n.Results) != typ.Results.NumFields() {
		return
	}
	last := n.Results[len(n.Results)-1]
	of, ok := typ.Results.List[len(typ.Results.List)-1].Type.(*ast.Ident)
	switch {
	case !ok:
	case of.Name == "error" && w.text(last) != "nil":
		w.add("nil-error", last, "nil")
	case of.Name == "bool" && w.text(last) == "true":
		w.add("truth", last, "false")
	case of.Name == "bool" && w.text(last) == "false":
		w.add("truth", last, "true")
	}
}

// called is the last name of the function that is called.
func called(c *ast.CallExpr) string {
	switch f := c.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		return f.Sel.Name
	}
	return ""
}

func (w *walker) text(n ast.Node) string {
	return string(w.src[w.fset.Position(n.Pos()).Offset:w.fset.Position(n.End()).Offset])
}

func (w *walker) add(rule string, n ast.Node, text string) {
	w.addAt(rule, n.Pos(), w.fset.Position(n.Pos()).Offset, w.fset.Position(n.End()).Offset, text)
}

func (w *walker) addAt(rule string, at token.Pos, start, end int, text string) {
	line := w.fset.Position(at).Line
	whole := strings.Split(string(w.src), "\n")[line-1]
	w.found = append(w.found, Mutant{
		ID:   fmt.Sprintf("%s %s %s: %s", w.room, w.fn, rule, strings.Join(strings.Fields(whole), " ")),
		File: w.name, Line: line, Start: start, End: end, Text: text, Source: w.source,
	})
}
