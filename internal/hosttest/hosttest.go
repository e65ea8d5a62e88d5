// Package hosttest runs a server in the process of a test, and reads its metrics and readiness.
package hosttest

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"claviger/internal/logtest"
)

// startTimeout is how long Start waits for the ready file.
const startTimeout = 10 * time.Second

// Start calls run, which serves until its context ends, and waits until the ready file has the URL of the
// server. stop ends the server, waits for its end, and fails the test if run returned an error.
func Start(t testing.TB, ready string, run func(context.Context) error) (url string, stop func()) {
	t.Helper()
	url, end := StartWithin(t, startTimeout, ready, run)
	return url, func() {
		if err := end(); err != nil {
			t.Errorf("the server ended with an error: %v", err)
		}
	}
}

// StartWithin is Start with a limit of its own for the wait. stop returns the error of run.
func StartWithin(t testing.TB, limit time.Duration, ready string, run func(context.Context) error) (
	url string, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	stop = func() error {
		cancel()
		return <-ended
	}
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if text, err := os.ReadFile(ready); err == nil {
			return strings.TrimSpace(string(text)), stop
		}
		select {
		case err := <-ended:
			cancel()
			t.Fatalf("the server did not start: %v", err)
		default:
		}
	}
	t.Fatalf("the server did not start in time (%v)", stop())
	return "", nil
}

// Log is the log of a server. The server logs the address of its metrics. The zero value is ready for use.
type Log struct{ logtest.Buffer }

// Logger returns a logger that writes into the log.
func (l *Log) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

var metricsURL = regexp.MustCompile(`msg="serving metrics" url=(\S+)/metrics`)

// Contains fails the test unless a page of the server that was started last contains all texts. page is the path
// of the page, like /metrics.
func (l *Log) Contains(t testing.TB, page string, texts ...string) {
	t.Helper()
	body := l.Page(t, page)
	for _, text := range texts {
		if !strings.Contains(body, text) {
			t.Errorf("%s does not contain %s\n%s", page, text, body)
		}
	}
}

// Page returns a page of the server that was started last.
func (l *Log) Page(t testing.TB, page string) string {
	t.Helper()
	found := metricsURL.FindAllStringSubmatch(l.String(), -1)
	if len(found) == 0 {
		t.Fatalf("the log has no address of the metrics:\n%s", l)
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
	return string(body)
}
