package kms

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/pagetest"
	"claviger/kms/kmstest"
)

// comeLater are metrics of docs/limits.md that appear only with their first event: those of
// requests that waited, or were refused.
var comeLater = []string{"claviger_kms_slot_wait_seconds", "claviger_kms_slot_refused_total",
	"claviger_kms_refused_total"}

// TestLimitsPage: each property of the pages of limits exists, each metric is in /metrics before
// its limit is reached, and each check is in /readyz.
func TestLimitsPage(t *testing.T) {
	page := pagetest.Topic(t, "limits")
	quoted := regexp.MustCompile("`[^`\n]+`").FindAllString(page, -1)
	props, figures, checks := map[string]string{}, []string{}, []string{}
	full := "" // the metric before a bare _suffix
	for _, q := range quoted {
		q = strings.Trim(q, "`")
		switch {
		case regexp.MustCompile(`^claviger\.[a-z.]+$`).MatchString(q):
			props[q] = "1"
		case regexp.MustCompile(`^claviger_[a-z_]+$`).MatchString(q):
			full = q
			figures = append(figures, q)
		case regexp.MustCompile(`^_[a-z_]+$`).MatchString(q):
			figures = append(figures, full+" "+q)
		}
	}
	for _, m := range regexp.MustCompile("check `([^`]+)` of\\s+`/readyz`").FindAllStringSubmatch(page, -1) {
		checks = append(checks, m[1])
	}
	if len(props) < 25 || len(figures) < 30 || len(checks) < 6 {
		t.Fatalf("found in the page: %d properties, %d figures, %d checks", len(props), len(figures), len(checks))
	}

	dir := t.TempDir()
	kmstest.WriteSite(t, dir, props)
	conf, err := hadoopconf.LoadKMS(dir, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range conf.Warnings() {
		t.Errorf("the page names a property that has no effect: %s", w)
	}

	source := "jceks://file@" + filepath.Join(t.TempDir(), "old.keystore")
	kms, _ := onHSM(t, map[string]string{hadoopconf.SourceURI: source})
	_, text := kmstest.Get(t, kms, "/metrics", "")
	shown := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\w+) `).FindAllStringSubmatch(text, -1) {
		shown[m[1]] = true
	}
	reference := pagetest.All(t)["monitoring/reference.md"]
	for name := range shown {
		if strings.HasPrefix(name, "claviger_") && !strings.Contains(reference, "`"+name+"`") {
			t.Errorf("docs/monitoring/reference.md lacks %s: run TestMetricsPage of package console with -update", name)
		}
	}
	for _, f := range figures {
		name, suffix, cut := strings.Cut(f, " ")
		if strings.HasPrefix(name, "claviger_trustee_") || slices.Contains(comeLater, name) {
			continue // it is of another server, or appears later
		}
		found := shown[name]
		for cut && !found && name != "claviger" { // "_max" may stand for the end of the name
			found = shown[name+suffix]
			name = name[:strings.LastIndexByte(name, '_')]
		}
		if !found {
			t.Errorf("/metrics has no %s", f)
		}
	}
	_, ready := kmstest.Readyz(t, kms)
	for _, name := range checks {
		if name != "requests" && !slices.ContainsFunc(ready.Checks,
			func(c kmstest.Check) bool { return c.Name == name }) {
			t.Errorf("/readyz has no check %q", name)
		}
	}
}
