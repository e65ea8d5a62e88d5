// Package pagetest reads the pages of docs, for tests that compare pages with the program.
package pagetest

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/internal/modroot"
)

// All returns the README of the module and all pages of docs. The name of a page is its path below docs, for example
// hsm/softhsm.md; the README is ../README.md.
func All(t testing.TB) map[string]string {
	t.Helper()
	docs := filepath.Join(modroot.Path(), "docs")
	pages := map[string]string{"../README.md": read(t, filepath.Join(docs, "..", "README.md"))}
	err := filepath.WalkDir(docs, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		name, err := filepath.Rel(docs, path)
		pages[filepath.ToSlash(name)] = read(t, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

// Topic returns the text of a topic: the page of that name in docs, and then the pages of the folder of that name, in
// the order of their names.
func Topic(t testing.TB, name string) string {
	t.Helper()
	docs := filepath.Join(modroot.Path(), "docs")
	files, err := filepath.Glob(filepath.Join(docs, name, "*.md"))
	if err != nil || len(files) == 0 {
		t.Fatalf("docs/%s has no pages: %v", name, err)
	}
	text := read(t, filepath.Join(docs, name+".md"))
	for _, file := range files {
		text += "\n" + read(t, file)
	}
	return text
}

func read(t testing.TB, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// OneLine returns a text with one space for each run of white space: a page folds long lines at a space.
func OneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
