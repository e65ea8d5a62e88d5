// Package deploy tests the files for other programs: the alerts of Prometheus and the dashboards of Grafana.
package deploy

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"claviger/internal/pagetest"
)

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

// promtool runs promtool, which must accept what it reads. If promtool is missing, the test is skipped, or fails if
// CLAVIGER_REQUIRE_PROMTOOL is set.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput()
	switch {
	case errors.Is(err, exec.ErrNotFound) && os.Getenv("CLAVIGER_REQUIRE_PROMTOOL") != "":
		t.Fatal("promtool is missing; `make setup` installs it")
	case errors.Is(err, exec.ErrNotFound):
		t.Skip("promtool is missing")
	case err != nil:
		t.Errorf("promtool %q: %v\n%s", args, err, out)
	}
}

// TestMetricsExist: docs/monitoring, whose metrics are those of a server, has each metric of a rule and of a query.
func TestMetricsExist(t *testing.T) {
	page := pagetest.Topic(t, "monitoring")
	series := regexp.MustCompile(`_(count|bucket|sum)$`)
	used := read(t, rulesFile) + strings.Join(exprs(t), "\n")
	for _, name := range names(`(claviger_[a-z_]+)`, used) {
		name = series.ReplaceAllString(name, "")
		limit := "`" + strings.TrimSuffix(name, "_max") + "` of `_max`"
		if !strings.Contains(page, name) && !strings.Contains(page, limit) {
			t.Errorf("docs/monitoring has no metric %s", name)
		}
	}
}
