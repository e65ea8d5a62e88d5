package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/console"
	"claviger/keystore"
)

// metricsLog is a server's log, in which it says where its metrics are.
type metricsLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *metricsLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *metricsLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *metricsLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

var metricsAt = regexp.MustCompile(`msg="serving metrics" url=(\S+)/metrics`)

// figures demands that a page of the server that was started last holds all texts.
func (l *metricsLog) figures(t *testing.T, page string, want ...string) {
	t.Helper()
	found := metricsAt.FindAllStringSubmatch(l.String(), -1)
	if len(found) == 0 {
		t.Fatalf("it does not say where its metrics are:\n%s", l)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, found[len(found)-1][1]+page, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		if !strings.Contains(string(body), w) {
			t.Errorf("%s does not hold %s\n%s", page, w, body)
		}
	}
}

// TestServeConsole: nothing by default, a warning where others may read, and an error
// that names the flag.
func TestServeConsole(t *testing.T) {
	for address, warned := range map[string]bool{"": false, "127.0.0.1:0": false, ":0": true} {
		var log metricsLog
		stop, err := serveConsole(t.Context(), address, console.Config{Log: log.logger(), Metrics: console.NewServiceMetrics("test")})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(log.String(), "beyond this host"); got != warned {
			t.Errorf("%q: warned: %t\n%s", address, got, &log)
		}
		if (address == "") == strings.Contains(log.String(), "serving metrics") {
			t.Errorf("%q: %s", address, &log)
		}
		if err := stop(); err != nil {
			t.Errorf("%q: %v", address, err)
		}
	}
	if _, err := serveConsole(t.Context(), "nowhere", console.Config{Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.HasPrefix(err.Error(), "--metrics-listen: ") {
		t.Errorf("an address without a port: %v", err)
	}
}

// TestWarnOfExpiry: from 30 days before the end on, and not before.
func TestWarnOfExpiry(t *testing.T) {
	for _, tt := range []struct {
		life   time.Duration
		warned bool
	}{{31 * 24 * time.Hour, false}, {29 * 24 * time.Hour, true}, {-time.Minute, true}} {
		certPEM, _, err := keystore.SelfSigned("kts-1.example.com", []string{"kts-1.example.com", "kts.example.com"}, tt.life)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(certPEM)
		certificate := func() (*x509.Certificate, error) { return x509.ParseCertificate(block.Bytes) }
		var log metricsLog
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { warnOfExpiry(ctx, certificate, "make another", log.logger()); close(ended) }()
		for range 200 { // it says so at once; a silence is waited for to its end
			if strings.Contains(log.String(), "CN=kts-1.example.com ends at") {
				break
			}
			time.Sleep(time.Millisecond)
		}
		cancel()
		<-ended
		if got := strings.Contains(log.String(), "CN=kts-1.example.com ends at") && strings.Contains(log.String(), "make another"); got != tt.warned {
			t.Errorf("%v before its end: warned: %t\n%s", tt.life, got, &log)
		}
	}
}
