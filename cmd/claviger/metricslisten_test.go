package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
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
