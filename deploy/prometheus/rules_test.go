// Package prometheus tests the alerts of rules.yaml.
package prometheus

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// names returns the first group of all matches, each once.
func names(pattern, text string) (found []string) {
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		if !slices.Contains(found, m[1]) {
			found = append(found, m[1])
		}
	}
	return found
}

// TestRules: promtool accepts the rules, and each alert fires and is silent as rules_test.yaml says.
func TestRules(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CLAVIGER_REQUIRE_PROMTOOL") != "" {
			t.Fatal("promtool is missing; `make setup` installs it")
		}
		t.Skip("promtool is missing")
	}
	for _, args := range [][]string{{"check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"},
		{"test", "rules", "rules_test.yaml"}} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %q: %v\n%s", args, err, out)
		}
	}
}

// TestEachAlert: each alert has a test in which it fires and one in which it is silent, and a page.
func TestEachAlert(t *testing.T) {
	rules, tests := read(t, "rules.yaml"), read(t, "rules_test.yaml")
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
			if !strings.Contains(read(t, filepath.Join(root, page)), part) {
				t.Errorf("%s has no part %q", page, part)
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(root, "docs/runbooks/*.md"))
	if err != nil || len(files) != len(pages) {
		t.Errorf("%d pages, %d of them belong to an alert (%v)", len(files), len(pages), err)
	}
}

// TestMetricsExist: each metric of a rule is described in docs/monitoring.md, whose metrics are those of a server.
func TestMetricsExist(t *testing.T) {
	page := read(t, filepath.Join(root, "docs/monitoring.md"))
	series := regexp.MustCompile(`_(count|bucket|sum)$`)
	for _, name := range names(`(claviger_[a-z_]+)`, read(t, "rules.yaml")) {
		name = series.ReplaceAllString(name, "")
		limit := "`" + strings.TrimSuffix(name, "_max") + "` of `_max`"
		if !strings.Contains(page, name) && !strings.Contains(page, limit) {
			t.Errorf("docs/monitoring.md has no metric %s", name)
		}
	}
}
