package console

import (
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"claviger/internal/logtest"
)

var metricsURL = regexp.MustCompile(`msg="serving metrics" url=(\S+)`)

// TestServe: no address serves nothing; an address that other hosts reach gives a warning.
func TestServe(t *testing.T) {
	for address, warns := range map[string]bool{"": false, "127.0.0.1:0": false, ":0": true} {
		var text logtest.Buffer
		log := slog.New(slog.NewTextHandler(&text, nil))
		stop, err := Serve(t.Context(), "--metrics-listen", address,
			Config{Log: log, Metrics: NewServiceMetrics("test")})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(text.String(), "other hosts can read the metrics"); got != warns {
			t.Errorf("%q: warning: %t\n%s", address, got, &text)
		}
		url := metricsURL.FindStringSubmatch(text.String())
		if (address == "") != (url == nil) {
			t.Errorf("%q: %s", address, &text)
		}
		if url != nil {
			resp, err := http.Get(url[1])
			if err != nil {
				t.Fatal(err)
			}
			page, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || !strings.Contains(string(page), "claviger_test_requests_in_flight") {
				t.Errorf("%q: %v\n%s", address, err, page)
			}
		}
		if err := stop(); err != nil {
			t.Errorf("%q: %v", address, err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestServeNowhere: the error names the flag.
func TestServeNowhere(t *testing.T) {
	cfg := Config{Log: slog.New(slog.DiscardHandler)}
	if _, err := Serve(t.Context(), "--metrics-listen", "nowhere", cfg); err == nil ||
		!strings.HasPrefix(err.Error(), "--metrics-listen: ") {
		t.Errorf("an address without a port: %v", err)
	}
}
