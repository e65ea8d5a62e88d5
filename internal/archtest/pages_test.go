package archtest

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"claviger/internal/pagetest"
)

var (
	codeBlock = regexp.MustCompile("(?ms)^ *```[a-z]*\n(.*?)^ *```")
	linkTo    = regexp.MustCompile(`\]\(([^)#\s]*)(?:#([^)\s]*))?\)`)
	heading   = regexp.MustCompile(`(?m)^#+ (.*)$`)
	dropped   = regexp.MustCompile("[^a-z0-9 _-]")
)

// A link names a page of docs or another file of the repository, and maybe a heading in it.
type link struct{ text, target, anchor string }

// links returns the links of a page of docs to files of the repository. Targets are paths below docs.
func links(name, page string) (found []link) {
	for _, m := range linkTo.FindAllStringSubmatch(codeBlock.ReplaceAllString(page, ""), -1) {
		target := name
		if m[1] != "" {
			target = strings.TrimPrefix(path.Join(path.Dir(name), m[1]), "../docs/")
		}
		if !strings.Contains(m[1], ":") { // of the web
			found = append(found, link{m[0], target, m[2]})
		}
	}
	return found
}

// anchors returns the anchors of a page's headings, as GitHub makes them.
func anchors(page string) map[string]bool {
	all := map[string]bool{"": true}
	for _, h := range heading.FindAllStringSubmatch(codeBlock.ReplaceAllString(page, ""), -1) {
		all[strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")] = true
	}
	return all
}

// maxPage is the largest number of lines of a page that a person writes.
const maxPage = 200

// writtenByTests are pages without a limit.
var writtenByTests = []string{"settings.md", "cli.md", "doctor.md"}

// TestPageForm: each page begins with a title and one line that says what the page is for, and is not too long. The
// title of a decision is its purpose.
func TestPageForm(t *testing.T) {
	purpose := regexp.MustCompile("^# [^\n]+\n\n[A-Z`][^\n]*[.:](?: [^\n]*)?\n")
	for name, page := range pagetest.All(t) {
		if name == "../README.md" {
			continue
		}
		if n := strings.Count(page, "\n"); n > maxPage && !slices.Contains(writtenByTests, name) {
			t.Errorf("docs/%s has %d lines, more than %d: make pages by topic of it", name, n, maxPage)
		}
		if !strings.HasPrefix(name, "adr/0") && !purpose.MatchString(page) {
			t.Errorf("docs/%s does not begin with a title and one line that says what the page is for", name)
		}
	}
}

// TestPagesReached: links lead from docs/README.md to each page.
func TestPagesReached(t *testing.T) {
	pages := pagetest.All(t)
	reached, next := map[string]bool{}, []string{"README.md"}
	for len(next) > 0 {
		name := next[0]
		next = next[1:]
		if page, ok := pages[name]; ok && !reached[name] && name != "../README.md" {
			reached[name] = true
			for _, l := range links(name, page) {
				next = append(next, l.target)
			}
		}
	}
	for name := range pages {
		if !reached[name] && name != "../README.md" {
			t.Errorf("no link leads from docs/README.md to docs/%s", name)
		}
	}
}

// namedPage finds the path of a page in a text that is no page.
var namedPage = regexp.MustCompile(`\bdocs/[A-Za-z0-9/-]+\.md\b`)

// TestNamedPages: each page that code, a message, an alert or a unit names exists.
func TestNamedPages(t *testing.T) {
	root, found := moduleRoot(t), 0
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && (name == "bin" || name == "try" || strings.HasPrefix(name, ".") && file != root) {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() || info.Size() > 1<<20 || filepath.Ext(file) == ".md" {
			return err
		}
		text, err := os.ReadFile(file)
		for _, page := range namedPage.FindAllString(string(text), -1) {
			found++
			if _, err := os.Stat(filepath.Join(root, page)); err != nil {
				t.Errorf("%s names %s, which does not exist", file, page)
			}
		}
		return err
	})
	if err != nil || found < 50 {
		t.Errorf("%d names of pages, %v", found, err)
	}
}

// TestPageLinks: each file and each heading that a page links to exists.
func TestPageLinks(t *testing.T) {
	found, pages, docs := 0, pagetest.All(t), filepath.Join(moduleRoot(t), "docs")
	for name, page := range pages {
		for _, l := range links(name, page) {
			found++
			text, isPage := pages[l.target]
			_, err := os.Stat(filepath.Join(docs, l.target))
			if err != nil || l.anchor != "" && !(isPage && anchors(text)[l.anchor]) {
				t.Errorf("docs/%s links to %s, which does not exist", name, l.text)
			}
		}
	}
	if found < 200 {
		t.Errorf("only %d links were found", found)
	}
}
