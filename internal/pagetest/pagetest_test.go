package pagetest

import (
	"strings"
	"testing"
)

// TestAll: the pages of docs, of its folders, and the README are there.
func TestAll(t *testing.T) {
	pages := All(t)
	for _, name := range []string{"../README.md", "hsm.md", "hsm/softhsm.md", "adr/README.md"} {
		if !strings.HasPrefix(pages[name], "# ") {
			t.Errorf("page %s begins with %.20q", name, pages[name])
		}
	}
}

// TestTopic: a topic has its first page and the pages of its folder.
func TestTopic(t *testing.T) {
	text, pages := Topic(t, "hsm"), All(t)
	if !strings.HasPrefix(text, pages["hsm.md"]) || !strings.Contains(text, pages["hsm/softhsm.md"]) {
		t.Error("the topic hsm lacks a page")
	}
}

func TestOneLine(t *testing.T) {
	if got := OneLine(" a\n  b\tc "); got != "a b c" {
		t.Error(got)
	}
}
