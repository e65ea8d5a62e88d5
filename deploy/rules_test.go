package deploy

import (
	"path/filepath"
	"strings"
	"testing"
)

const (
	rulesFile  = "prometheus/rules.yaml"
	rulesTests = "prometheus/rules_test.yaml"
)

// TestRules: promtool accepts the rules, and each alert fires and is silent as rules_test.yaml says.
func TestRules(t *testing.T) {
	promtool(t, "check", "rules", "--lint=all", "--lint-fatal", rulesFile)
	promtool(t, "test", "rules", rulesTests)
}

// TestEachAlert: each alert has a test in which it fires and one in which it is silent, and a page.
func TestEachAlert(t *testing.T) {
	rules, tests := read(t, rulesFile), read(t, rulesTests)
	pages := map[string]bool{}
	alerts := names(`- alert: (\w+)`, rules)
	if len(alerts) < 10 {
		t.Fatalf("only %d alerts", len(alerts))
	}
	for _, alert := range alerts {
		if !strings.Contains(tests, "- name: "+alert+" fires\n") ||
			!strings.Contains(tests, "- {eval_time: 90m, alertname: "+alert+"}\n") {
			t.Errorf("%s has no test in which it fires, or none in which it is silent", alert)
		}
	}
	for _, page := range names(`runbook_url: (\S+)`, rules) {
		pages[filepath.Base(page)] = true
		for _, part := range []string{"## How to look", "## How to mend it"} {
			if !strings.Contains(read(t, filepath.Join("..", page)), part) {
				t.Errorf("%s has no part %q", page, part)
			}
		}
	}
	files, err := filepath.Glob("../docs/runbooks/Claviger*.md")
	if err != nil || len(files) != len(pages) {
		t.Errorf("%d pages, %d of them belong to an alert (%v)", len(files), len(pages), err)
	}
}
