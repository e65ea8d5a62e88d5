package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"claviger/hadoopconf"
	"claviger/internal/pagetest"
)

// goFiles calls do with each Go file of the program, without tests and test packages.
func goFiles(t *testing.T, do func(path, text string)) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && (strings.HasPrefix(name, ".") && len(name) > 2 || name == "testdata" || name == "internal" ||
			name == "test") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil {
			do(path, string(text))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

var (
	propertyName = regexp.MustCompile(`(?m)(?:^|[^.\w])(claviger\.[a-z][A-Za-z0-9_*-]*(?:\.[A-Za-z0-9_*-]+)*)`)
	metricName   = regexp.MustCompile(`\bclaviger_[a-z_]+\b`)
	metricOfCode = regexp.MustCompile(`"(claviger_[a-z_]+)"`)
)

// fileNames begin like properties of claviger, and are names of files and units.
var fileNames = regexp.MustCompile(`^claviger\.(db|service|d|dump|sql|keystore|mount|deb|rpm|copy|old|moved|` +
	`restored|log|json|seen|uses|pin|example|fish)\b`)

// TestDocsNameWhatExists: each property and metric of claviger that a page names exists.
func TestDocsNameWhatExists(t *testing.T) {
	known := func(name string) bool {
		return slices.ContainsFunc(hadoopconf.KMS, func(k hadoopconf.Known) bool {
			before, after, pattern := strings.Cut(k.Name, "*")
			return k.Name == name || pattern && strings.HasPrefix(name, before) && strings.HasSuffix(name, after) ||
				strings.Contains(name, "*") && strings.HasPrefix(k.Name, strings.TrimSuffix(name, "*"))
		})
	}
	metrics, code := make(map[string]bool), strings.Builder{}
	goFiles(t, func(_, text string) {
		code.WriteString(text)
		for _, m := range metricOfCode.FindAllStringSubmatch(text, -1) {
			metrics[m[1]] = true
		}
	})
	if len(metrics) < 50 {
		t.Fatalf("only %d metrics in the code", len(metrics))
	}
	properties, shown, all := 0, make(map[string]bool), pagetest.All(t)
	delete(all, "monitoring/reference.md") // it has all metrics, and does not say what they mean for an operator
	for page, text := range all {
		for _, found := range propertyName.FindAllStringSubmatch(text, -1) {
			name := found[1]
			if fileNames.MatchString(name) {
				continue
			}
			properties++
			if !known(name) {
				t.Errorf("%s names the property %s, which is not in the table of hadoopconf", page, name)
			}
		}
		for _, name := range metricName.FindAllString(text, -1) {
			shown[name] = true
			plain := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count"), "_sum")
			if composed(code.String(), metrics, plain) {
				continue
			}
			family := slices.ContainsFunc(sortedKeys(metrics),
				func(m string) bool { return strings.HasPrefix(m, name) && strings.HasSuffix(name, "_") })
			if !metrics[name] && !metrics[plain] && !family {
				t.Errorf("%s names the metric %s, which no code has", page, name)
			}
		}
	}
	if properties < 100 {
		t.Errorf("only %d properties were found on the pages", properties)
	}
	for _, m := range sortedKeys(metrics) {
		base, max := strings.CutSuffix(m, "_max")
		if max { // as "NAME of _max"
			shown[m] = shown[base] || shown[base+"_in_use"]
		}
		if !shown[m] && !strings.HasSuffix(m, "_") {
			t.Errorf("no page names the metric %s", m)
		}
	}
}

// composed reports whether code builds the name of a metric from parts: a beginning and a last word, or the name of a
// service and an ending.
func composed(code string, metrics map[string]bool, name string) bool {
	for _, service := range []string{"kms", "trustee", "keyhsm"} {
		if end, ok := strings.CutPrefix(name, "claviger_"+service); ok &&
			strings.Contains(code, `"claviger_" + service + "`+end+`"`) {
			return true
		}
	}
	for m := range metrics {
		rest, ok := strings.CutPrefix(name, m)
		if !ok || !strings.HasSuffix(m, "_") {
			continue
		}
		word, _ := strings.CutSuffix(rest, "_total")
		if strings.Contains(code, `"`+word+`":`) {
			return true
		}
	}
	return false
}

func sortedKeys(m map[string]bool) []string {
	var list []string
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}

// commandLine finds a command of claviger at the beginning of a line of a code block, or of words in backticks.
var (
	codeBlock   = regexp.MustCompile("(?ms)^ *```[a-z]*\n(.*?)^ *```")
	inline      = regexp.MustCompile("`((?:sudo -u [a-z]+ )?claviger [^`\n]+)`")
	commandLine = regexp.MustCompile(`^(?:\$ |# )?(?:[A-Z0-9_]+=\S+ )*(?:sudo (?:-u \S+ )?)?(?:/usr/bin/|` +
		`(?:\.\./)?bin/|ExecStart=/usr/bin/)?claviger ([a-z].*)$`)
	endOfOne = regexp.MustCompile(`\s(?:\||>|&&|;|2>|#|&\s*$).*$`)
)

// TestDocsCommands: each command of claviger on a page exists, and has the flags that the page shows.
func TestDocsCommands(t *testing.T) {
	found := 0
	for page, text := range pagetest.All(t) {
		if page == "cli.md" { // it is the commands' own help, see TestCommandPage
			continue
		}
		var lines []string
		for _, block := range codeBlock.FindAllStringSubmatch(text, -1) {
			lines = append(lines, strings.Split(strings.ReplaceAll(block[1], "\\\n", " "), "\n")...)
		}
		for _, words := range inline.FindAllStringSubmatch(text, -1) {
			lines = append(lines, words[1])
		}
		for _, line := range lines {
			m := commandLine.FindStringSubmatch(strings.TrimSpace(line))
			if m == nil {
				continue
			}
			found++
			if why := notACommand(strings.Fields(endOfOne.ReplaceAllString(m[1], ""))); why != "" {
				t.Errorf("%s shows %q: %s", page, line, why)
			}
		}
	}
	if found < 120 {
		t.Errorf("only %d commands were found", found)
	}
}

// inMessage finds a command of claviger, with its flags, in a text of the program.
var inMessage = regexp.MustCompile(`\bclaviger( [a-z]+(?: [a-z][a-z-]*[a-z])?(?: --?[a-z][a-z-]*)*)`)

// TestMessagesNameCommands: each command of claviger that a message, help or hint names exists, and has the flags that
// follow it.
func TestMessagesNameCommands(t *testing.T) {
	root, found := newRootCommand(), 0
	check := func(path, text string) {
		for _, m := range inMessage.FindAllStringSubmatch(text, -1) {
			words := strings.Fields(m[1])
			if cmd, _, err := root.Find(words[:1]); err != nil || cmd == root {
				continue // the name of the program in a sentence
			}
			found++
			if why := notACommand(words); why != "" {
				t.Errorf("%s says %q: %s", path, m[0], why)
			}
		}
	}
	eachCommand(func(path string, cmd *cobra.Command) {
		for _, p := range strings.Split(cmd.Long, "\n\n") {
			if !strings.HasPrefix(p, " ") { // a table's columns are no sentence
				p = strings.Join(strings.Fields(p), " ")
			}
			check(path+" --help", p)
		}
	})
	goFiles(t, func(path, text string) {
		if strings.HasSuffix(path, "/usage.go") { // it names words that are not commands of claviger
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, text, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			value, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			check(path, value)
			return true
		})
	})
	if found < 100 {
		t.Errorf("only %d commands were found", found)
	}
}

// notACommand says what is wrong with the words after `claviger`.
func notACommand(words []string) string {
	cmd := newRootCommand()
	for len(words) > 0 {
		i := slices.IndexFunc(cmd.Commands(), func(c *cobra.Command) bool {
			return c.Name() == words[0] || c.HasAlias(words[0])
		})
		if i < 0 {
			break
		}
		cmd, words = cmd.Commands()[i], words[1:]
	}
	if len(words) > 0 && cmd.HasSubCommands() && regexp.MustCompile(`^[a-z]+(?:-[a-z]+)*$`).MatchString(words[0]) {
		if alternatives := strings.Split(words[0], ","); len(alternatives) == 1 {
			return "there is no " + cmd.CommandPath() + " " + words[0]
		}
	}
	for _, w := range words {
		w = strings.Trim(w, "[]")
		name, isLong := strings.CutPrefix(w, "--")
		name, _, _ = strings.Cut(name, "=")
		switch {
		case isLong && name != "" && name != "help" && cmd.Flags().Lookup(name) == nil &&
			cmd.InheritedFlags().Lookup(name) == nil:
			return cmd.CommandPath() + " has no flag --" + name
		case !isLong && len(w) == 2 && w[0] == '-' && w[1] >= 'a' && w != "-h" &&
			cmd.Flags().ShorthandLookup(w[1:]) == nil:
			return cmd.CommandPath() + " has no flag " + w
		}
	}
	return ""
}

var (
	testName  = regexp.MustCompile(`\bTest[A-Z][A-Za-z0-9]*(?:/[A-Za-z0-9]+)?\b`)
	suiteName = regexp.MustCompile("`?(Identifiers|LongNames|Claims)`?")
)

// TestThreatModel: each claim of docs/threat-model names a test, each test that a page names exists, and each part
// lists claims that do not hold.
func TestThreatModel(t *testing.T) {
	tests, subs := make(map[string]bool), strings.Builder{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".cache":
			return fs.SkipDir
		case strings.HasSuffix(path, ".txtar"):
			subs.WriteString(`"` + strings.TrimSuffix(d.Name(), ".txtar") + `"`)
		case strings.HasSuffix(path, "test.go") || strings.HasSuffix(path, ".go") &&
			strings.Contains(path, "storetest"):
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range regexp.MustCompile(`(?m)^func (Test[A-Z][A-Za-z0-9]*)\(`).
				FindAllStringSubmatch(string(text), -1) {
				tests[m[1]] = true
			}
			if !strings.HasSuffix(path, "docs_test.go") {
				subs.Write(text)
			}
		}
		return nil
	})
	if err != nil || len(tests) < 500 {
		t.Fatal(len(tests), err)
	}
	all := pagetest.All(t)
	for page, text := range all {
		for _, name := range testName.FindAllString(text, -1) {
			top, sub, nested := strings.Cut(name, "/")
			if !tests[top] {
				t.Errorf("%s names %s, and there is no such test", page, top)
			}
			if nested && !strings.Contains(subs.String(), `"`+sub+`"`) {
				t.Errorf("%s names %s, and %s has no part of that name", page, name, top)
			}
		}
	}
	parts := 0
	for page, text := range all {
		if path.Dir(page) == "threat-model" {
			parts += threats(t, page, text)
		}
	}
	if parts < 15 {
		t.Errorf("docs/threat-model has only %d parts", parts)
	}
}

// threats checks that each part of a page says what does not hold, and that each sentence names a test. It returns the
// number of parts.
func threats(t *testing.T, page, text string) int {
	t.Helper()
	parts := strings.Split(text, "\n## ")
	if len(parts) > 1 {
		parts = parts[1:]
	}
	for _, part := range parts {
		title, body, _ := strings.Cut(part, "\n")
		if !strings.Contains(strings.ToLower(body), "does not hold") {
			t.Errorf("docs/%s does not say what does not hold of %s", page, title)
		}
		item := ""
		for _, line := range append(strings.Split(body, "\n"), "") {
			if item != "" && !strings.HasPrefix(line, "  ") {
				if !testName.MatchString(item) && !suiteName.MatchString(item) &&
					!strings.HasPrefix(item, "- **Does not hold") {
					t.Errorf("docs/%s, %s: no test is named for:\n%s", page, title, item)
				}
				item = ""
			}
			if strings.HasPrefix(line, "- ") || item != "" {
				item += line + "\n"
			}
		}
	}
	return len(parts)
}

// trusteeRunbook has the checks of a Key Trustee Server and a Key HSM.
const trusteeRunbook = "runbooks/trustee.md"

// TestRunbook: each check of docs/monitoring/checks.md, which TestReadiness checks, has a part on a page of
// docs/runbooks, and no other check has one. A part says what the check means, where to look first and what to do
// first.
func TestRunbook(t *testing.T) {
	var want []string
	checks := pagetest.All(t)["monitoring/checks.md"]
	for _, m := range regexp.MustCompile("(?m)^- (`.*?) \\(").FindAllStringSubmatch(checks, -1) {
		want = append(want, codeSpans(m[1])...)
	}
	slices.Sort(want)
	got := runbookParts(t, func(page string) bool { return page != trusteeRunbook })
	if len(want) < 25 || !slices.Equal(got, slices.Compact(want)) {
		t.Errorf("docs/runbooks has the checks %q, docs/monitoring/checks.md %q", got, want)
	}

	want = []string{"certificate"} // of package console, which both servers use
	for _, room := range []string{"keyhsm/host", "trustee/host"} {
		checks := checksIn(t, "../../"+room)
		if len(checks) == 0 {
			t.Errorf("package %s names no check: this test reads the wrong files", room)
		}
		want = append(want, checks...)
	}
	slices.Sort(want)
	got = runbookParts(t, func(page string) bool { return page == trusteeRunbook })
	if len(want) < 7 || !slices.Equal(got, slices.Compact(want)) {
		t.Errorf("docs/runbooks has the checks %q of trustees and Key HSMs, the code %q", got, want)
	}
}

// checksIn returns the names of the checks in the program files of a folder.
func checksIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(dir + "/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\{Name: "([^"]+)"`).FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
	}
	return names
}

func codeSpans(text string) (names []string) {
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}

// runbookParts returns the checks on pages of docs/runbooks that are not the page of an alert.
func runbookParts(t *testing.T, wanted func(page string) bool) (names []string) {
	t.Helper()
	for page, text := range pagetest.All(t) {
		if path.Dir(page) != "runbooks" || strings.HasPrefix(page, "runbooks/Claviger") || !wanted(page) {
			continue
		}
		for _, part := range strings.Split(text, "\n## ")[1:] {
			title, body, _ := strings.Cut(part, "\n")
			names = append(names, codeSpans(title)...)
			for _, say := range []string{"- **It means:** ", "- **Look first:** ", "- **Do first:** "} {
				if strings.Count(body, say) != 1 {
					t.Errorf("docs/%s: %s does not say once %q", page, title, say)
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
