package console_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"claviger/internal/golden"
)

const metricsHead = `# All metrics

Each metric of claviger's servers, with its type, its labels and its help text.

The page is written from the code (` + "`go test ./console -run TestMetricsPage -update`" + `).
[metrics.md](metrics.md) says what the figures of a KMS mean, and which need an alert; [trustee.md](trustee.md) those of
a Key Trustee Server and a Key HSM. A histogram has the series ` + "`_bucket`, `_sum` and `_count`" + `.
Metrics whose part is not configured are absent.
Each server also has the metrics of Go and of its process (` + "`go_*`, `process_*`" + `).

| metric | type | by | help |
|---|---|---|---|
`

// TestMetricsPage: docs/monitoring/reference.md has each metric that the code makes. -update writes the page.
func TestMetricsPage(t *testing.T) {
	found := metricsOfCode(t)
	if len(found) < 70 {
		t.Fatalf("only %d metrics in the code", len(found))
	}
	page := metricsHead
	for _, name := range slices.Sorted(maps.Keys(found)) {
		m := found[name]
		by := ""
		if len(m.labels) > 0 {
			by = "`" + strings.Join(m.labels, "`, `") + "`"
		}
		page += fmt.Sprintf("| `%s` | %s | %s | %s |\n", name, m.kind, by, strings.Join(m.help, " Or: "))
	}
	golden.Compare(t, "../docs/monitoring/reference.md", page)
}

// A metric is what a call in the code says of it.
type metric struct {
	kind   string
	labels []string
	help   []string // several if parts of the program make the metric in their own way
}

// A reader reads calls that make metrics. values has the constants of the package by name, and what variables are in
// each turn of a loop.
type reader struct {
	found  map[string]*metric
	values map[string]string
}

// metricsOfCode returns the metrics that the program makes, by name.
func metricsOfCode(t *testing.T) map[string]*metric {
	t.Helper()
	files := map[string][]*ast.File{} // by folder
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if name := d.Name(); d.IsDir() && (name == ".cache" || name == "test" || name == "internal" || name == "bin") {
			return fs.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err == nil && f.Name.Name != "ignore" {
			files[filepath.Dir(path)] = append(files[filepath.Dir(path)], f)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*metric{}
	for _, list := range files {
		r := &reader{found, constants(list)}
		for _, f := range list {
			r.walk(f)
		}
	}
	return found
}

// constants returns the constants that are texts.
func constants(files []*ast.File) map[string]string {
	values := map[string]string{}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			d, ok := n.(*ast.GenDecl)
			if !ok || d.Tok != token.CONST {
				return true
			}
			for _, s := range d.Specs {
				spec := s.(*ast.ValueSpec)
				for i, name := range spec.Names {
					if i < len(spec.Values) {
						if text, ok := (&reader{values: values}).text(spec.Values[i]); ok {
							values[name.Name] = text
						}
					}
				}
			}
			return true
		})
	}
	return values
}

// walk reads all calls below a node.
func (r *reader) walk(n ast.Node) {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Name.Name == "newMetrics" { // it is called for each server
				servers := map[string]string{"kms": "status", "trustee": "result", "keyhsm": "result"}
				for service, outcome := range servers {
					r.with(n.Body, map[string]string{"service": service, "outcome": outcome})
				}
				return false
			}
		case *ast.RangeStmt:
			table, ok := n.X.(*ast.CompositeLit)
			if !ok {
				return true
			}
			for _, e := range table.Elts {
				if row, ok := e.(*ast.KeyValueExpr); ok && n.Key != nil {
					r.with(n.Body, r.turn(n, row))
				}
			}
			return false
		case *ast.CallExpr:
			r.call(n)
		}
		return true
	})
}

// turn returns the values of one turn of a loop over a table: the key, and the member help of the value.
func (r *reader) turn(loop *ast.RangeStmt, row *ast.KeyValueExpr) map[string]string {
	values := map[string]string{}
	if key, ok := loop.Key.(*ast.Ident); ok {
		values[key.Name], _ = r.text(row.Key)
	}
	if value, ok := loop.Value.(*ast.Ident); ok {
		if record, ok := row.Value.(*ast.CompositeLit); ok && len(record.Elts) > 0 {
			values[value.Name+".help"], _ = r.text(record.Elts[0])
		}
	}
	return values
}

// with walks a node with further values.
func (r *reader) with(n ast.Node, values map[string]string) {
	all := maps.Clone(r.values)
	maps.Copy(all, values)
	(&reader{r.found, all}).walk(n)
}

// text returns the value of an expression of texts that are known.
func (r *reader) text(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return text, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		a, okA := r.text(e.X)
		b, okB := r.text(e.Y)
		return a + b, okA && okB && e.Op == token.ADD
	case *ast.Ident:
		text, ok := r.values[e.Name]
		return text, ok
	case *ast.SelectorExpr:
		if x, ok := e.X.(*ast.Ident); ok {
			text, ok := r.values[x.Name+"."+e.Sel.Name]
			return text, ok
		}
	}
	return "", false
}

// call reads a call that makes a metric.
func (r *reader) call(c *ast.CallExpr) {
	fun, ok := c.Fun.(*ast.SelectorExpr)
	if !ok || len(c.Args) == 0 {
		return
	}
	switch name := fun.Sel.Name; name {
	case "Counter", "Gauge", "Query", "Gauges", "Info", "Expiries", "Timed", "NewDesc":
		if len(c.Args) > 1 {
			r.add(name, c.Args[0], c.Args[1], r.labels(name, c))
		}
	case "NewHistogramVec", "NewHistogram", "NewCounterVec", "NewGauge":
		var metric, help ast.Expr
		opts, ok := c.Args[0].(*ast.CompositeLit)
		for _, e := range elements(opts, ok) {
			switch e.Key.(*ast.Ident).Name {
			case "Name":
				metric = e.Value
			case "Help":
				help = e.Value
			}
		}
		r.add(name, metric, help, r.labels(name, c))
	}
}

func elements(table *ast.CompositeLit, ok bool) (list []*ast.KeyValueExpr) {
	if !ok {
		return nil
	}
	for _, e := range table.Elts {
		if pair, ok := e.(*ast.KeyValueExpr); ok {
			list = append(list, pair)
		}
	}
	return list
}

// labels returns the labels of a metric.
func (r *reader) labels(name string, c *ast.CallExpr) (labels []string) {
	last := c.Args[len(c.Args)-1]
	switch name {
	case "Gauges", "NewDesc":
		last = c.Args[2]
	case "Expiries":
		return []string{"name", "subject"}
	case "Timed":
		return []string{"op", "result"}
	}
	if label, ok := r.text(last); ok && name == "Gauges" {
		return []string{label}
	}
	if list, ok := last.(*ast.CompositeLit); ok && (name == "Info" || strings.HasPrefix(name, "New")) {
		for _, e := range list.Elts {
			if pair, ok := e.(*ast.KeyValueExpr); ok {
				e = pair.Key
			}
			if label, ok := r.text(e); ok {
				labels = append(labels, label)
			}
		}
	}
	return labels
}

// add adds a metric, if its name is known.
func (r *reader) add(call string, name, help ast.Expr, labels []string) {
	text, ok := r.text(name)
	if !ok || !strings.HasPrefix(text, "claviger_") {
		return
	}
	m := r.found[text]
	if m == nil {
		m = &metric{kind: "gauge", labels: labels}
		r.found[text] = m
	}
	switch {
	case strings.Contains(call, "Histogram") || call == "Timed":
		m.kind = "histogram"
	case strings.HasSuffix(text, "_total"):
		m.kind = "counter"
	}
	if what, _ := r.text(help); !slices.Contains(m.help, what) {
		m.help = append(m.help, what)
		slices.Sort(m.help)
	}
}
