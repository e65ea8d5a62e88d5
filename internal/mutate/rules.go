package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Mutant is one change of one file.
type Mutant struct {
	// ID names the mutant without a line number: package, function, rule and the
	// text of the line, and a count if a function has the same line again.
	ID   string
	File string // relative to the module
	Line int
	// Function is the code of the function that holds the change, without comments.
	Function string
	edits    []edit
}

// An edit puts text around a part of a file. In the text, § stands for the
// mutant's number: mutant(§) is true in a test process that tries this mutant.
type edit struct {
	start, end    int // of the part, in bytes
	before, after string
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
	w := &walker{room: room, name: name, src: src, fset: fset,
		plain: map[ast.Node]bool{}, covered: map[ast.Node]bool{}, dropped: map[ast.Node]bool{}}
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
	fset       *token.FileSet
	fn, code   string // name and code of the function whose body is walked
	// plain are statements in places that allow no block: the first part of an if,
	// and the last part of a for.
	plain map[ast.Node]bool
	// covered are errors that a dropped check returns: no other code returns them.
	covered map[ast.Node]bool
	// dropped are calls that another rule leaves out as a statement.
	dropped map[ast.Node]bool
	found   []Mutant
}

func (w *walker) function(fn *ast.FuncDecl) {
	w.fn, w.code = fn.Name.Name, code(w.text(fn))
	if fn.Recv != nil && len(fn.Recv.List) == 1 {
		w.fn = receiver(fn.Recv.List[0].Type) + "." + w.fn
	}
	w.body(fn.Body, fn.Type)
}

// code returns Go source without its comments and its spacing.
func code(src string) string {
	var s scanner.Scanner
	fset := token.NewFileSet()
	s.Init(fset.AddFile("", -1, len(src)), []byte(src), nil, 0)
	var text strings.Builder
	for {
		_, tok, literal := s.Scan()
		switch {
		case tok == token.EOF:
			return text.String()
		case tok.IsLiteral():
			text.WriteString(literal + " ")
		default:
			text.WriteString(tok.String() + " ")
		}
	}
}

// receiver returns the name of a receiver's type.
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

// body walks the body of a function of the given type, and the functions in it.
func (w *walker) body(b *ast.BlockStmt, typ *ast.FuncType) {
	ast.Inspect(b, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			w.body(n.Body, n.Type)
			return false
		case *ast.IfStmt:
			w.plain[n.Init] = true
			w.condition(n)
		case *ast.ForStmt:
			w.plain[n.Init], w.plain[n.Post] = true, true
			if n.Cond != nil {
				w.wrap("negate", n.Cond, "mutant(§) != (", ")")
			}
		case *ast.SwitchStmt:
			w.plain[n.Init] = true
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
		if r, ok := n.Body.List[len(n.Body.List)-1].(*ast.ReturnStmt); ok {
			w.covered[r] = true
			w.wrap("drop-check", n.Cond, "!mutant(§) && (", ")")
			return
		}
	}
	w.wrap("negate", n.Cond, "mutant(§) != (", ")")
}

// operator exchanges && and ||. It does not change < and <=: most limits are sizes
// and times, and the project does not promise the last byte or nanosecond.
func (w *walker) operator(n *ast.BinaryExpr) {
	if n.Op != token.LAND && n.Op != token.LOR {
		return
	}
	// a || b is !(!a && !b), and a != true is !a.
	var edits []edit
	for _, part := range []ast.Expr{n, n.X, n.Y} {
		edits = append(edits, w.edit(part, "(mutant(§) != (", "))"))
	}
	w.add("and-or", n.OpPos, edits...)
}

// uninformative are calls whose loss says nothing about the tests. Without either Lock or
// Unlock a program stops at once; the race detector finds that both are missing. go
// vet (lostcancel) checks cancel. The project does not promise the text of the log.
var uninformative = []string{"Lock", "Unlock", "RLock", "RUnlock", "cancel", "Debug", "Info", "Warn", "Error", "Helper",
	"DebugContext", "InfoContext", "WarnContext", "ErrorContext", "panic"}

// call leaves out a statement that is a call.
func (w *walker) call(stmt ast.Node, x ast.Expr) {
	c, ok := x.(*ast.CallExpr)
	if !ok {
		return
	}
	w.dropped[c] = true
	if !w.plain[stmt] && !slices.Contains(uninformative, called(c)) {
		w.wrap("drop-call", stmt, "if !mutant(§) { ", " }")
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

// value replaces a call that syncs or closes a file by a success.
func (w *walker) value(n *ast.CallExpr) {
	if s, ok := n.Fun.(*ast.SelectorExpr); ok && len(n.Args) == 0 && !w.dropped[n] &&
		slices.Contains([]string{"Sync", "Close", "Flush"}, s.Sel.Name) {
		w.wrap("drop-sync", n, "mutantCall(§, func() error { return ", " })")
	}
}

// results replaces a returned error by nil, and negates a returned boolean.
func (w *walker) results(n *ast.ReturnStmt, typ *ast.FuncType) {
	if typ.Results == nil || len(n.Results) != typ.Results.NumFields() || w.covered[n] {
		return
	}
	last := n.Results[len(n.Results)-1]
	of, ok := typ.Results.List[len(typ.Results.List)-1].Type.(*ast.Ident)
	switch {
	case !ok:
	case of.Name == "error" && w.text(last) != "nil":
		w.wrap("nil-error", last, "mutantError(§, ", ")")
	case of.Name == "bool" && (w.text(last) == "true" || w.text(last) == "false"):
		w.wrap("truth", last, "mutant(§) != ", "")
	}
}

// called returns the last part of the name of the called function.
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
	return string(w.src[w.offset(n.Pos()):w.offset(n.End())])
}

func (w *walker) offset(p token.Pos) int { return w.fset.Position(p).Offset }

func (w *walker) edit(n ast.Node, before, after string) edit {
	return edit{start: w.offset(n.Pos()), end: w.offset(n.End()), before: before, after: after}
}

// wrap adds a mutant that puts text around a node.
func (w *walker) wrap(rule string, n ast.Node, before, after string) {
	w.add(rule, n.Pos(), w.edit(n, before, after))
}

// add adds a mutant in the line of at.
func (w *walker) add(rule string, at token.Pos, edits ...edit) {
	line := w.fset.Position(at).Line
	whole := strings.Split(string(w.src), "\n")[line-1]
	w.found = append(w.found, Mutant{
		ID:   fmt.Sprintf("%s %s %s: %s", w.room, w.fn, rule, strings.Join(strings.Fields(whole), " ")),
		File: w.name, Line: line, Function: w.code, edits: edits,
	})
}
