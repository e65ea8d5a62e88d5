package console_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"claviger/console"
)

// TestCheckMetrics: the metrics say of each check and purpose what /readyz says, and show names only to those who may
// see them.
func TestCheckMetrics(t *testing.T) {
	for _, details := range []bool{true, false} {
		m := console.NewMetrics(nil)
		h := console.New(console.Config{Metrics: m, Details: func(*http.Request) bool { return details },
			Checks: []console.Check{
				{Name: "hsm", Run: works},
				{Name: "store takes writes", For: []console.Purpose{console.Write}, Run: fails("disk full")},
				{Name: "source kms://host", Anonymous: "source 1", Informational: true, Run: fails("no route to host")},
			}}, otherPaths)
		page := get(h, http.MethodGet, "/metrics").Body.String()
		source := "source kms://host"
		if !details {
			source = "source 1"
		}
		for _, line := range []string{
			`claviger_check_ok{check="hsm",informational="false"} 1`,
			`claviger_check_ok{check="store takes writes",informational="false"} 0`,
			`claviger_check_ok{check="` + source + `",informational="true"} 0`,
			`claviger_ready{for="decrypt"} 1`, `claviger_ready{for="generate"} 1`, `claviger_ready{for="write"} 0`,
		} {
			if !strings.Contains(page, line+"\n") {
				t.Errorf("details %v: no line %s", details, line)
			}
		}
		if strings.Contains(page, "disk full") || !details && strings.Contains(page, "kms://host") {
			t.Errorf("details %v: the page says too much", details)
		}
	}
}

// TestCheckMetricsHang: a check that hangs is 0, and the other metrics are shown.
func TestCheckMetricsHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := console.New(console.Config{Metrics: console.NewMetrics(nil), Checks: []console.Check{
			{Name: "hangs", Run: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
			{Name: "works", Run: works},
		}}, otherPaths)
		w := get(h, http.MethodGet, "/metrics")
		for _, line := range []string{`claviger_check_ok{check="hangs",informational="false"} 0`,
			`claviger_check_ok{check="works",informational="false"} 1`, "claviger_kms_requests_in_flight 0"} {
			if !strings.Contains(w.Body.String(), line+"\n") {
				t.Errorf("%d: no line %s", w.Code, line)
			}
		}
		time.Sleep(time.Minute) // of the bubble's clock: the check ends at its own limit
	})
}
