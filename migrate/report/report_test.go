package report_test

import (
	"strings"
	"testing"

	"claviger/migrate"
	"claviger/migrate/report"
)

// TestOneLine: the text of a source's error makes no line of its own.
func TestOneLine(t *testing.T) {
	var b strings.Builder
	const text = "refused\n  forged     source alive: it answers"
	report.Plan(&b, &migrate.Plan{Read: true, Checks: []migrate.Check{{Name: "source", Measured: text, Cure: text}},
		Keys: []migrate.KeyLine{{Key: "k", Why: text}}})
	report.Verification(&b, &migrate.Verification{Keys: []migrate.KeyDiff{{Key: "k", Remarks: []string{text}}}})
	if strings.Contains(b.String(), "\n  forged ") || !strings.Contains(b.String(), `refused\n  forged`) {
		t.Error(b.String())
	}
}
