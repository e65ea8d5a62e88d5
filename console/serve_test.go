package console

import (
	"io"
	"log/slog"
	"net"
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

// TestServeManyConnections: the connections of one address leave room for others.
func TestServeManyConnections(t *testing.T) {
	var text logtest.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	stop, err := Serve(t.Context(), "--metrics-listen", "127.0.0.1:0",
		Config{Log: log, Metrics: NewServiceMetrics("test")})
	if err != nil {
		t.Fatal(err)
	}
	url := metricsURL.FindStringSubmatch(text.String())[1]
	address, _, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	other := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}
	for range maxConnections {
		conn, err := other.DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
	}
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if !strings.Contains(text.String(), `it has reached its limit" property="a fixed limit" address=127.0.0.2`) {
		t.Error(&text)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestServeNowhere: the error names the flag.
func TestServeNowhere(t *testing.T) {
	cfg := Config{Log: slog.New(slog.DiscardHandler)}
	if _, err := Serve(t.Context(), "--metrics-listen", "nowhere", cfg); err == nil ||
		!strings.HasPrefix(err.Error(), "--metrics-listen: ") {
		t.Errorf("an address without a port: %v", err)
	}
}
