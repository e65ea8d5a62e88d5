package pages

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestCures: each check of a KMS has its section of a runbook, with the first step, and without marks of Markdown.
func TestCures(t *testing.T) {
	page, err := os.ReadFile("../../docs/monitoring/checks.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("(?m)^- `([^`]*)`(?:, `([^`]*)`)* \\(").FindAllStringSubmatch(string(page), -1)
	if len(names) < 25 {
		t.Fatalf("docs/monitoring/checks.md has %d checks", len(names))
	}
	for _, name := range names {
		c := cureOf(name[1])
		if c == nil {
			t.Errorf("%s has no section", name[1])
			continue
		}
		text := ""
		for _, step := range c.Steps {
			text += step.Title + ": " + step.Text + "\n"
		}
		if !strings.Contains(text, "Do first: ") || strings.ContainsAny(text, "`*[]") {
			t.Errorf("%s: %q", name[1], text)
		}
	}
	if c := cureOf("source kms://http@old:9600/kms"); c == nil || c.Page != "docs/runbooks/sources.md" {
		t.Errorf("a source: %+v", c)
	}
	if c := cureOf("no such check"); c != nil {
		t.Errorf("%+v", c)
	}
}

// TestPagesNamed: each page of docs, and each section, that the console names exists.
func TestPagesNamed(t *testing.T) {
	names := regexp.MustCompile(`docs/([a-z/-]+\.md)(?:, section “([^”{]*)”)?`)
	named := 0
	err := fs.WalkDir(os.DirFS("."), ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(file, "_test.go") {
			return err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for _, m := range names.FindAllStringSubmatch(string(text), -1) {
			named++
			page, err := os.ReadFile("../../docs/" + m[1])
			if err != nil {
				t.Errorf("%s: %v", file, err)
			} else if m[2] != "" && !strings.Contains(string(page), "\n## "+m[2]+"\n") {
				t.Errorf("%s: docs/%s has no section %s", file, m[1], m[2])
			}
		}
		return nil
	})
	if err != nil || named < 3 {
		t.Fatalf("%d pages are named, %v", named, err)
	}
}
